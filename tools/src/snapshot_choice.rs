//! The argument of `-l` where it names an internal snapshot to read: a name or an id, or options.

use qcow::engine::SnapshotChoice;

use crate::failure::{Failure, Outcome};
use crate::program;
use crate::source::Options;

/// What `argument` names: `snapshot.id=ID,snapshot.name=NAME`, one of both, or else an id or a name as it is.
///
/// # Errors
/// In QEMU's words.
pub fn parse(argument: &str) -> Outcome<SnapshotChoice> {
    if !argument.starts_with("snapshot.") {
        return Ok(SnapshotChoice::IdOrName(argument.into()));
    }
    let mut options = Options::parse(argument, None);
    let [id, name] = ["snapshot.id", "snapshot.name"].map(|name| options.take_text(name));
    if let Some(unknown) = options.first_name() {
        let speaker = program::name();
        return Err(Failure::new(format!(
            "Invalid parameter '{unknown}'\n{speaker}: Failed in parsing snapshot param '{argument}'"
        )));
    }
    Ok(match (id, name) {
        (Some(id), Some(name)) => SnapshotChoice::IdAndName(id.into(), name.into()),
        (Some(id), None) => SnapshotChoice::Id(id.into()),
        (None, Some(name)) => SnapshotChoice::Name(name.into()),
        (None, None) => return Err(Failure::new("snapshot_id and name are both NULL")),
    })
}
