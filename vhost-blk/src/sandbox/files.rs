//! Giving up files, and what else Landlock keeps from a thread.

use std::path::Path;
use std::sync::Once;

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest interface that is asked for; kernels with an older one give what they have.
const INTERFACE: ABI = ABI::V6;

/// The calling thread opens, makes, changes and removes no file by its name from here on, but for what it removes in
/// `removable` and below. What is open stays as it is.
pub fn give_up(removable: Option<&Path>) -> Result<(), RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(INTERFACE))?
        .handle_access(AccessNet::from_all(INTERFACE))?
        .scope(Scope::from_all(INTERFACE))?
        .create()?;
    // A directory that is not there holds nothing to remove.
    if let Some(Ok(directory)) = removable.map(PathFd::new) {
        rules = rules.add_rule(PathBeneath::new(directory, AccessFs::RemoveFile))?;
    }
    tell(&rules.restrict_self()?);
    Ok(())
}

fn tell(status: &RestrictionStatus) {
    static TOLD: Once = Once::new();
    if status.ruleset == RulesetStatus::NotEnforced {
        TOLD.call_once(|| {
            tracing::warn!("this kernel has no Landlock: files are kept out of reach by the filter of system calls alone");
        });
    }
}
