//! Object definitions (`--object`): secrets, which [`crate::secrets`] keeps.

use qcow::ErrorKind;
use qcow::crypt::Passphrase;

use crate::failure::{Failure, Outcome};
use crate::keyval::split;
use crate::secrets;
use crate::source::Options;

const KIND: &str = "qom-type";

/// What QEMU's tools let people define besides secrets.
const OTHER_KINDS: [&str; 11] = [
    "authz-list",
    "authz-list-file",
    "authz-simple",
    "main-loop",
    "pr-manager-helper",
    "secret_keyring",
    "thread-context",
    "throttle-group",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
];

/// Checks a definition, and gives it back.
///
/// # Errors
/// In QEMU's words where it has some: the definition lacks something, or is of another kind than a secret.
pub fn checked(definition: &str) -> Outcome<String> {
    let mut options = options(definition)?;
    let missing = |name: &str| Failure::new(format!("Parameter '{name}' is missing"));
    let kind = options.take_text(KIND).ok_or_else(|| missing(KIND))?;
    if OTHER_KINDS.contains(&kind.as_str()) {
        return Err(Failure::new(format!("object type '{kind}' is not supported")));
    }
    if kind != "secret" {
        return Err(not_accepted(KIND, &kind));
    }
    let id = options.take_text("id").ok_or_else(|| missing("id"))?;
    check_secret(&id, options)?;
    Ok(definition.to_owned())
}

/// As [`checked`], for commands that fail with exit code 2 here.
pub fn checked_for_two(definition: &str) -> Outcome<String> {
    checked(definition).map_err(|failure| failure.with_code(2))
}

fn options(definition: &str) -> Outcome<Options> {
    if definition.trim_start().starts_with('{') {
        let told = |reason: String| {
            let prefix = "Could not parse the JSON options: ";
            Failure::new(reason.strip_prefix(prefix).unwrap_or(&reason))
        };
        return Options::from_json(definition).map_err(told);
    }
    let mut options = Options::default();
    for (number, item) in split(definition).iter().enumerate() {
        match item.split_once('=') {
            Some((name, value)) => options.set(name, value),
            None if item.is_empty() && definition.is_empty() => {}
            None if item.is_empty() => return Err(Failure::new("Invalid parameter ''")),
            None if number == 0 => options.set(KIND, item),
            None => return Err(Failure::new(format!("Expected '=' after parameter '{item}'"))),
        }
    }
    Ok(options)
}

fn check_secret(id: &str, mut options: Options) -> Outcome {
    let [data, file, format] = ["data", "file", "format"].map(|name| options.take_text(name));
    options.take("iv");
    let key = options.take_text("keyid");
    if let Some(format) = format.as_ref().filter(|name| !["raw", "base64"].contains(&name.as_str()))
    {
        return Err(not_accepted("format", format));
    }
    if let Some(name) = options.first_name() {
        return Err(Failure::new(format!("Parameter '{name}' is unexpected")));
    }
    if !is_identifier(id) {
        return Err(Failure::new(
            "Parameter 'id' expects an identifier\n\
             Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
        ));
    }
    match (data, file) {
        (Some(_), Some(_)) => Err(Failure::new("'file' and 'data' are mutually exclusive")),
        (None, None) => Err(Failure::new("Either 'file' or 'data' must be provided")),
        (Some(_), None) => {
            let what = "is in the command line, where all can read it: put it into a file (file=)";
            secrets::define(id, Err(format!("secret '{id}' {what}")));
            Ok(())
        }
        (None, Some(_)) if key.is_some() => {
            let what = "is encrypted with another one (keyid), which is not supported";
            secrets::define(id, Err(format!("secret '{id}' {what}")));
            Ok(())
        }
        (None, Some(file)) => {
            secrets::define(id, read(id, &file, format.as_deref() == Some("base64"))?);
            Ok(())
        }
    }
}

/// The passphrase in `file`, or why it is none.
fn read(id: &str, file: &str, base64: bool) -> Outcome<Result<Passphrase, String>> {
    let told = |what: &str, reason: String| {
        Failure::new(format!("Unable to read {file}: {what} file “{file}”: {reason}"))
    };
    let opened =
        std::fs::File::open(file).map_err(|e| told("Failed to open", qcow::error::reason(&e)))?;
    let passphrase = match base64 {
        true => Passphrase::read_base64(opened),
        false => Passphrase::read(opened),
    };
    match passphrase {
        Ok(passphrase) => Ok(Ok(passphrase)),
        Err(e) => match e.errno() {
            Some(errno) => {
                let reason = qcow::error::reason(&std::io::Error::from_raw_os_error(errno));
                Err(told("Error reading", reason))
            }
            None if e.kind() == ErrorKind::Invalid && !base64 => {
                Ok(Err(format!("Data from secret {id} is not valid UTF-8")))
            }
            None => Ok(Err(format!("secret '{id}': {}", e.message()))),
        },
    }
}

fn is_identifier(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(inside)
}

fn not_accepted(name: &str, value: &str) -> Failure {
    Failure::new(format!("Parameter '{name}' does not accept value '{value}'"))
}
