//! Copying the persistent bitmaps of the source to the target.

use qcow::disk::uring::block_on;
use qcow::engine::bitmap::BitmapInfo;

use super::args::Job;
use super::sources::{Source, Sources};
use crate::bitmap;
use crate::failure::{self, Failure, Outcome};
use crate::image::HostImage;

/// Which bitmaps are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bitmaps {
    /// None.
    Leave,
    /// All; one that is broken fails the command.
    All,
    /// Those that are not broken.
    Sound,
}

/// Fails where the bitmaps of `sources` cannot be copied.
pub fn check(job: &Job, sources: &Sources) -> Outcome {
    if job.bitmaps == Bitmaps::Leave {
        return Ok(());
    }
    let [source] = &sources.list[..] else {
        return Err(Failure::new("Copying bitmaps only possible with single source"));
    };
    if !source.image.keeps_bitmaps() {
        return Err(Failure::new("Source lacks bitmap support"));
    }
    let bitmaps = block_on(source.image.bitmaps())?;
    // QEMU holds them in the opposite order.
    let broken = bitmaps.iter().rev().find(|bitmap| !bitmap.usable);
    match broken {
        Some(bitmap) if job.bitmaps == Bitmaps::All => Err(Failure::new(format!(
            "Cannot copy inconsistent bitmap '{}'\n\
             Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
            bitmap.name.display()
        ))),
        _ => Ok(()),
    }
}

/// Fails where `target` cannot take bitmaps that are to be copied.
pub fn check_target(job: &Job, target: &HostImage) -> Outcome {
    if job.bitmaps == Bitmaps::Leave || target.keeps_bitmaps() {
        return Ok(());
    }
    let format = target.format();
    Err(Failure::new(format!("Format driver '{format}' does not support bitmaps")))
}

/// Copies the bitmaps, now that the target holds the disk.
pub fn copy(job: &Job, sources: &Sources, target: &HostImage) -> Outcome {
    let [Source { image: source, .. }] = &sources.list[..] else { return Ok(()) };
    if job.bitmaps == Bitmaps::Leave {
        return Ok(());
    }
    let bitmaps = block_on(source.bitmaps())?;
    for broken in bitmaps.iter().rev().filter(|bitmap| !bitmap.usable) {
        let name = broken.name.display();
        failure::tell(&format!("warning: Skipping inconsistent bitmap '{name}'"));
    }
    let there = block_on(target.bitmaps())?;
    let mut sound: Vec<_> = bitmaps.iter().filter(|bitmap| bitmap.usable).collect();
    let is_there = |bitmap: &&BitmapInfo| there.iter().any(|other| other.name == bitmap.name);
    if let Some(clash) = sound.iter().copied().rev().find(is_there) {
        // Which will fail, before any other has been copied.
        sound = vec![clash];
    }
    for bitmap in sound {
        let name = &bitmap.name;
        let failed = |verb: &str, error: &qcow::Error| {
            let reason = bitmap::reason(target, error);
            Failure::new(format!("Failed to {verb} bitmap {}: {reason}", name.display()))
        };
        let added = target.add_bitmap(name, Some(bitmap.granularity), bitmap.enabled);
        block_on(added).map_err(|e| failed("create", &e))?;
        let merged = block_on(async {
            let bits = source.read_bitmap(name).await?;
            target.merge_bitmap(name, &bits).await
        });
        if let Err(error) = merged {
            // Best effort: the failure that is told is the first one.
            let _ = block_on(target.remove_bitmap(name));
            return Err(failed("populate", &error));
        }
    }
    Ok(())
}
