//! The argument of `-l` where it names an internal snapshot to read: a name or an id, or options.

use qcow::engine::SnapshotChoice;

use crate::failure::{Failure, Outcome};
use crate::keyval::{Kind, OptionSpec, OptionValues};
use crate::program;

const ID: &str = "snapshot.id";
const NAME: &str = "snapshot.name";

const OPTIONS: &[OptionSpec] = &[
    OptionSpec { name: ID, kind: Kind::Text, help: "snapshot id" },
    OptionSpec { name: NAME, kind: Kind::Text, help: "snapshot name" },
];

/// What `argument` names: `snapshot.id=ID,snapshot.name=NAME`, one of both, or else an id or a name as it is.
///
/// # Errors
/// In QEMU's words.
pub fn parse(argument: &str) -> Outcome<SnapshotChoice> {
    if !argument.starts_with("snapshot.") {
        return Ok(SnapshotChoice::IdOrName(argument.into()));
    }
    let not_parsed = |failure: Failure| {
        let speaker = program::name();
        let what = format!("Failed in parsing snapshot param '{argument}'");
        Failure::new(format!("{failure}\n{speaker}: {what}"))
    };
    let values = OptionValues::parse(&[argument.to_owned()], &[OPTIONS]).map_err(not_parsed)?;
    let text = |name| values.text(name).map(Into::into);
    Ok(match (text(ID), text(NAME)) {
        (Some(id), Some(name)) => SnapshotChoice::IdAndName(id, name),
        (Some(id), None) => SnapshotChoice::Id(id),
        (None, Some(name)) => SnapshotChoice::Name(name),
        (None, None) => return Err(Failure::new("snapshot_id and name are both NULL")),
    })
}
