//! Object definitions (`--object`). Secrets are known, and nothing uses them yet: encrypted images are not opened.

use crate::failure::{Failure, Outcome};
use crate::keyval::split;
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
    for unused in ["iv", "keyid"] {
        options.take(unused);
    }
    if let Some(format) = format.filter(|format| !["raw", "base64"].contains(&format.as_str())) {
        return Err(not_accepted("format", &format));
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
        (Some(_), None) => Ok(()),
        (None, Some(file)) => check_readable(&file),
    }
}

fn check_readable(file: &str) -> Outcome {
    let told = |what: &str, error: &std::io::Error| {
        let reason = qcow::error::reason(error);
        Failure::new(format!("Unable to read {file}: {what} file “{file}”: {reason}"))
    };
    let mut opened = std::fs::File::open(file).map_err(|e| told("Failed to open", &e))?;
    let read = std::io::copy(&mut opened, &mut std::io::sink());
    read.map(|_| ()).map_err(|e| told("Error reading", &e))
}

fn is_identifier(text: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(inside)
}

fn not_accepted(name: &str, value: &str) -> Failure {
    Failure::new(format!("Parameter '{name}' does not accept value '{value}'"))
}
