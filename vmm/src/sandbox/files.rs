//! Files, networks and other processes, given up with Landlock. A kernel without it leaves that to the filter of system calls,
//! which does not see what goes through an io_uring.

use std::path::Path;

use anyhow::Result;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};

/// Nothing can be opened from here on.
pub fn give_up() -> Result<()> {
    everything()?.restrict_self()?;
    Ok(())
}

/// Files can only be read and run from here on, and no others than `sockets` removed, or what lies in their folders.
pub fn give_up_all_but<'a>(sockets: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let mut rules = everything()?.add_rule(beneath(Path::new("/"), reading)?)?;
    for socket in sockets {
        let folder = match socket.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        rules = rules.add_rule(beneath(folder, AccessFs::RemoveFile.into())?)?;
    }
    rules.restrict_self()?;
    Ok(())
}

fn everything() -> Result<RulesetCreated> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::from_all(ABI::V6))?;
    Ok(rules.create()?)
}

fn beneath(folder: &Path, access: BitFlags<AccessFs>) -> Result<PathBeneath<PathFd>> {
    Ok(PathBeneath::new(PathFd::new(folder)?, access))
}
