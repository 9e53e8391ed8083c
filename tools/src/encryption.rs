//! The encryption of new images: what the options `encrypt.*` ask for.

use std::sync::Arc;
use std::time::Duration;

use qcow::crypt::cipher::{Aes, CipherSpec, Iv, Mode};
use qcow::crypt::luks::{Cost, NewLuks};
use qcow::crypt::{Hash, Passphrase};
use qcow::engine::NewEncryption;

use crate::failure::{Failure, Outcome, tell};
use crate::keyval::OptionValues;
use crate::new_image::not_accepted;
use crate::secrets;

/// How every option's name begins.
const PREFIX: &str = "encrypt.";

/// What QEMU knows and this program does not.
const FOREIGN_CIPHERS: [&str; 8] = [
    "3des",
    "cast5-128",
    "serpent-128",
    "serpent-192",
    "serpent-256",
    "sm4",
    "twofish-128",
    "twofish-192",
];
const FOREIGN_HASHES: [&str; 3] = ["md5", "ripemd160", "sm3"];
const FOREIGN_MODES: [&str; 2] = ["ecb", "ctr"];

/// The encryption that `values` ask for, if they do.
///
/// # Errors
/// In QEMU's words, without the file's name: options contradict each other, are wrong, or not supported.
pub fn plan(values: &OptionValues) -> Outcome<Option<NewEncryption>> {
    let format = match (values.is_on("encryption"), values.text("encrypt.format")) {
        (true, Some(_)) => {
            return Err(Failure::new(
                "'encrypt.format' and its alias 'encryption' can't be used at the same time",
            ));
        }
        (true, None) => "aes",
        (false, Some(format)) => format,
        (false, None) if values.names().any(|name| name.starts_with(PREFIX)) => {
            return Err(Failure::new("Parameter 'encrypt.format' is missing"));
        }
        (false, None) => return Ok(None),
    };
    match format {
        "aes" => plan_aes(values).map(Some),
        "luks" => {
            let (new, key) = plan_luks(values, PREFIX)?;
            Ok(Some(NewEncryption::Luks(new, key)))
        }
        other => Err(not_accepted("format", other)),
    }
}

fn plan_aes(values: &OptionValues) -> Outcome<NewEncryption> {
    let known = ["encrypt.format", "encrypt.key-secret"];
    let other = values.names().find(|name| name.starts_with(PREFIX) && !known.contains(name));
    if let Some(name) = other {
        return Err(Failure::new(format!("Parameter '{name}' is unexpected")));
    }
    let key = key(values, PREFIX)?;
    tell(
        "warning: encrypt.format=aes is weak by design, and only tools open it: use encrypt.format=luks",
    );
    Ok(NewEncryption::Aes(key))
}

/// The LUKS encryption that the options that begin with `prefix` ask for, and its key.
///
/// # Errors
/// As [`plan`].
pub fn plan_luks(values: &OptionValues, prefix: &str) -> Outcome<(NewLuks, Arc<Passphrase>)> {
    let text = |name: &str| values.text(&format!("{prefix}{name}"));
    let aes = match text("cipher-alg") {
        None => Aes::Aes256,
        Some(name) => [Aes::Aes128, Aes::Aes192, Aes::Aes256]
            .into_iter()
            .find(|aes| aes.to_string() == name)
            .ok_or_else(|| unknown("cipher-alg", name, &FOREIGN_CIPHERS))?,
    };
    let mode = match text("cipher-mode") {
        None => Mode::Xts,
        Some(name) => {
            Mode::named(name).ok_or_else(|| unknown("cipher-mode", name, &FOREIGN_MODES))?
        }
    };
    let hash = |name: &str, default| match text(name) {
        None => Ok(default),
        Some(value) => value.parse().map_err(|()| unknown(name, value, &FOREIGN_HASHES)),
    };
    let iv_hash = hash("ivgen-hash-alg", Hash::Sha256)?;
    let iv = match text("ivgen-alg") {
        None | Some("plain64") => Iv::Plain64,
        Some("plain") => Iv::Plain,
        Some("essiv") => Iv::Essiv(iv_hash),
        Some(other) => return Err(not_accepted("ivgen-alg", other)),
    };
    let cost = match values.number(&format!("{prefix}iter-time")) {
        None => Cost::default(),
        Some(milliseconds) => Cost::Time(Duration::from_millis(milliseconds)),
    };
    let hash = hash("hash-alg", Hash::Sha256)?;
    let cipher = CipherSpec::new(aes, mode, iv).map_err(|e| Failure::new(e.message()))?;
    let new = NewLuks { cipher, hash, cost };
    new.check().map_err(|e| Failure::new(e.message()))?;
    Ok((new, key(values, prefix)?))
}

fn key(values: &OptionValues, prefix: &str) -> Outcome<Arc<Passphrase>> {
    let Some(id) = values.text(&format!("{prefix}key-secret")) else {
        let what = format!("Parameter '{prefix}key-secret' is required for cipher");
        return Err(Failure::new(what));
    };
    secrets::find(id).map_err(Failure::new)
}

/// The failure that `value` is not among those of `name`, or only among QEMU's.
fn unknown(name: &str, value: &str, foreign: &[&str]) -> Failure {
    match foreign.contains(&value) {
        true => Failure::new(format!("{name} '{value}' is not supported")),
        false => not_accepted(name, value),
    }
}
