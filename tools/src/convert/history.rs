//! `--snapshots`: the internal snapshots of the source come along, with their disks, ids, names, dates and VM states.
//!
//! The target lives through what the source has: it becomes what the disk was at the first snapshot, a snapshot of it is
//! taken, it becomes what the disk was at the second one, and so on. What lies at the same place of the source's file in two
//! of its states is the same, and is left alone.

use qcow::disk::Buffer;
use qcow::disk::uring::block_on;
use qcow::engine::{Format, Preallocation, Resize, SnapshotChoice};
use qcow::format::snapshot::SnapshotEntry;

use super::args::Job;
use super::sources::{self, Sources};
use super::{reading, writing};
use crate::failure::{Failure, Outcome};
use crate::image::{HostImage, Opening};

/// Bytes of VM state that are copied at a time.
const CHUNK_LEN: u64 = 2 << 20;

/// The states of the source's disk before the one that it has now.
#[derive(Debug)]
pub struct History {
    snapshots: Vec<SnapshotEntry>,
}

impl History {
    /// What the source has lived through; nothing unless `job` asks for it.
    ///
    /// # Errors
    /// The source's snapshots cannot be told apart, or the target cannot have them.
    pub fn read(job: &Job, sources: &Sources) -> Outcome<Self> {
        if !job.snapshots {
            return Ok(Self { snapshots: Vec::new() });
        }
        let [source] = &sources.list[..] else {
            return Err(Failure::new("--snapshots: only one source can come with its snapshots"));
        };
        let refused = [
            (!job.create, "does not go with -n"),
            (job.snapshot.is_some(), "does not go with -l"),
            (job.backing.is_some(), "does not go with -B"),
            (job.compression.is_some(), "does not go with -c"),
            (job.granularity == 0, "does not go with -S 0"),
            (source.image.format() != Format::Qcow2, "only a qcow2 source has snapshots"),
            (job.target_format.as_deref() != Some("qcow2"), "the target has to be qcow2"),
        ];
        if let Some((_, why)) = refused.into_iter().find(|(broken, _)| *broken) {
            return Err(Failure::new(format!("--snapshots: {why}")));
        }
        let snapshots = block_on(source.image.snapshots())?;
        for (index, snapshot) in snapshots.iter().enumerate() {
            if choice(snapshot).find(&snapshots) != Some(index) {
                let (id, name) = (snapshot.id.display(), snapshot.name.display());
                let what = format!("--snapshots: there are two with id '{id}' and name '{name}'");
                return Err(Failure::new(what));
            }
        }
        Ok(Self { snapshots })
    }

    /// Shows `visit` all states of the source, from the first snapshot to what it is `now`.
    pub fn for_each_state(
        &self,
        job: &Job,
        now: &Sources,
        mut visit: impl FnMut(&State<'_>) -> Outcome,
    ) -> Outcome {
        let mut before: Option<Sources> = None;
        for snapshot in &self.snapshots {
            let then = Sources::at(job, &choice(snapshot))?;
            let snapshot = Some(snapshot);
            visit(&State { snapshot, then: &then, before: before.as_ref() })?;
            before = Some(then);
        }
        visit(&State { snapshot: None, then: now, before: before.as_ref() })
    }

    /// Lets `target` become what the source was at each snapshot, keeps it so, and in the end lets it become what the source
    /// is now. `copy` writes what a state of the source has; where the target shows an earlier one, only the changes since.
    pub fn live_through(
        &self,
        job: &Job,
        now: &Sources,
        target: &HostImage,
        mut copy: impl FnMut(&Sources, Option<&HostImage>) -> Outcome,
    ) -> Outcome {
        self.for_each_state(job, now, |state| {
            take_length(target, state)?;
            copy(state.then, state.shown())?;
            let Some(snapshot) = state.snapshot else { return Ok(()) };
            if snapshot.vm_state_size > 0 {
                copy_vm_state(job, snapshot, target)?;
            }
            block_on(target.create_snapshot_like(snapshot))?;
            Ok(())
        })
    }
}

/// A state of the source.
#[derive(Debug)]
pub struct State<'a> {
    /// The snapshot that keeps it; none of what the source is now.
    snapshot: Option<&'a SnapshotEntry>,
    /// The disk.
    pub then: &'a Sources,
    /// The disk of the state before.
    before: Option<&'a Sources>,
}

impl State<'_> {
    /// The disk that the target shows when this state is copied, if there was one.
    pub fn shown(&self) -> Option<&HostImage> {
        self.before.and_then(|before| before.list.first()).map(|source| &source.image)
    }
}

/// Gives `target`, which shows the state before, the length of `state`.
fn take_length(target: &HostImage, state: &State<'_>) -> Outcome {
    let Some(before) = state.before else {
        // One that is there may be longer than what is copied to it.
        return match state.snapshot {
            Some(_) => set_size(target, state.then.total),
            None => Ok(()),
        };
    };
    // Not in one go: what lay behind the disk, a VM state, must not become part of it.
    set_size(target, before.total.min(state.then.total))?;
    set_size(target, state.then.total)
}

fn set_size(target: &HostImage, size: u64) -> Outcome {
    if target.virtual_size() == size {
        return Ok(());
    }
    let how = Resize { shrink: true, preallocation: Preallocation::Off };
    Ok(block_on(target.resize_as(size, &how))?)
}

/// Writes the VM state of `snapshot` behind the disk.
fn copy_vm_state(job: &Job, snapshot: &SnapshotEntry, target: &HostImage) -> Outcome {
    let choice = choice(snapshot);
    let opening = Opening {
        snapshot: Some(&choice),
        vm_state: true,
        // Whatever lies below has nothing to do with it, however long it is.
        backing: false,
        ..sources::opening(job)
    };
    let Some(name) = job.sources.first() else { return Ok(()) };
    let source = opening.open(name)?;
    let start = |image: &HostImage| image.vm_state_start(snapshot.disk_size);
    let (Some(from), Some(to)) = (start(&source), start(target)) else { return Ok(()) };
    let end = to.checked_add(snapshot.vm_state_size);
    set_size(target, end.ok_or_else(|| Failure::new("a VM state is too large"))?)?;
    let buffer = Buffer::zeroed(CHUNK_LEN as usize).payload();
    block_on(async {
        let mut done = 0;
        while done < snapshot.vm_state_size {
            let bytes = buffer.slice(0, CHUNK_LEN.min(snapshot.vm_state_size - done));
            let read = source.read(from + done, &bytes).await;
            read.map_err(|e| reading(to + done, &e))?;
            if !bytes.is_zero() {
                let written = target.write(to + done, &bytes).await;
                written.map_err(|e| writing(to + done, &e))?;
            }
            done += bytes.len();
        }
        Ok(())
    })
}

/// What names `snapshot`.
fn choice(snapshot: &SnapshotEntry) -> SnapshotChoice {
    SnapshotChoice::IdAndName(snapshot.id.clone(), snapshot.name.clone())
}
