//! The integrity of new images: what the option `integrity` asks for.

use std::time::Duration;

use qcow::crypt::seal::SealKind;
use qcow::crypt::sealed_slots::SlotCost;
use qcow::engine::NewIntegrity;

use crate::failure::{Failure, Outcome};
use crate::keyval::OptionValues;
use crate::new_image::not_accepted;
use crate::secrets;

/// log2 of the cluster size where none is asked for. Each write, however small, writes a whole cluster.
pub const CLUSTER_BITS: u32 = 14;

/// The integrity that `values` ask for, if they do.
///
/// # Errors
/// It is unknown, does not go with other options, or its key is missing.
pub fn plan(values: &OptionValues) -> Outcome<Option<NewIntegrity>> {
    let Some(name) = values.text("integrity") else { return Ok(None) };
    let kind: SealKind = name.parse().map_err(|_| not_accepted("integrity", name))?;
    let known: &[&str] = match kind {
        SealKind::Crc32c => &[],
        SealKind::Aes256Gcm => &["encrypt.key-secret", "encrypt.iter-time"],
    };
    let other = values.names().find(|name| {
        let is_about_keys = *name == "encryption" || name.starts_with("encrypt.");
        is_about_keys && !known.contains(name)
    });
    if let Some(other) = other {
        return Err(Failure::new(format!(
            "Parameter '{other}' is unexpected with integrity={name}"
        )));
    }
    if kind == SealKind::Crc32c {
        return Ok(Some(NewIntegrity::Crc32c));
    }
    let Some(id) = values.text("encrypt.key-secret") else {
        return Err(Failure::new("Parameter 'encrypt.key-secret' is required for cipher"));
    };
    let time = values.number("encrypt.iter-time").map(Duration::from_millis);
    let cost = time.map_or(SlotCost::default(), SlotCost::Time);
    Ok(Some(NewIntegrity::Aes256Gcm(secrets::find(id).map_err(Failure::new)?, cost)))
}
