//! Object definitions (`--object`). Secrets are known, and nothing uses them yet: encrypted images are not opened.

use crate::failure::{Failure, Outcome};
use crate::source::Options;

/// Checks the definitions.
///
/// # Errors
/// In QEMU's words: a definition lacks something, or is of another kind than a secret.
pub fn check(definitions: &[String]) -> Outcome {
    definitions.iter().try_for_each(|definition| check_one(definition))
}

fn check_one(definition: &str) -> Outcome {
    let mut options = match definition.trim_start().starts_with('{') {
        true => Options::from_json(definition).map_err(Failure::new)?,
        false => Options::parse(definition, Some("qom-type")),
    };
    let missing = |name: &str| Failure::new(format!("Parameter '{name}' is missing"));
    let kind = options.take_text("qom-type").ok_or_else(|| missing("qom-type"))?;
    if kind != "secret" {
        return Err(Failure::new(format!("object type '{kind}' is not supported")));
    }
    options.take_text("id").ok_or_else(|| missing("id"))?;
    Ok(())
}
