//! Secrets that the command line defines (`--object secret,...`), by their names.
//!
//! A secret is read once, when it is defined: it may come through a pipe. What stands in the command line itself (`data=`) is
//! no secret any more - every process of the machine can read it there - so a definition with it is taken, as scripts of
//! `qemu-img` have it, and whoever uses it is refused.

use std::sync::{Arc, Mutex};

use qcow::crypt::Passphrase;
use qcow::sync::lock;

/// A passphrase, or why there is none.
type Held = Result<Arc<Passphrase>, String>;

static SECRETS: Mutex<Vec<(String, Held)>> = Mutex::new(Vec::new());

/// Defines the secret `id`, over what was called so before.
pub fn define(id: &str, held: Result<Passphrase, String>) {
    let mut secrets = lock(&SECRETS);
    secrets.retain(|(known, _)| known != id);
    secrets.push((id.to_owned(), held.map(Arc::new)));
}

/// The secret `id`.
///
/// # Errors
/// In QEMU's words where it has some: there is none, or it cannot be used.
pub fn find(id: &str) -> Held {
    let secrets = lock(&SECRETS);
    let found = secrets.iter().find(|(known, _)| known == id);
    found.map_or_else(|| Err(format!("No secret with id '{id}'")), |(_, held)| held.clone())
}
