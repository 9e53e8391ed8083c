//! What an image has to be before its clusters move, and what its header has to say then.

use super::layout::Layout;
use crate::crypt::{Passphrase, SectorCipher};
use crate::disk::Disk;
use crate::encrypted::key_missing;
use crate::engine::check::parts::{Survey, clear_unknown_statements, sync, write};
use crate::engine::check::{CheckSummary, Crew, Repair, check_by};
use crate::engine::dirty::repair_dirty;
use crate::engine::encryption::luks_volume;
use crate::engine::load::{read_header, read_header_cluster, see_medium};
use crate::error::{Error, Result};
use crate::format::feature::Incompatible;
use crate::format::header::CryptMethod;
use crate::format::header::Header;
use crate::format::mark::{MARK_TYPE, Mark, MarkState};
use std::path::Path;

/// Surveys the image in `disk`, the file at `path`, as it can be compacted. What a crash has left behind is cleared away.
///
/// # Errors
/// Something is wrong with the image (`Corrupt`).
pub(super) async fn survey<'d, D: Disk>(
    crew: Crew,
    disk: &'d D,
    path: &Path,
) -> Result<Survey<'d, D>> {
    if !disk.is_writable() {
        return Err(Error::read_only("cannot be compacted: it is open read-only"));
    }
    see_medium(disk).await?;
    clear_after_crash(disk, path).await?;
    let (found, summary) = Survey::before_change(disk, crew).await?;
    if let Some(survey) = found.filter(|_| summary.is_clean()) {
        return Ok(survey);
    }
    if has_more_than_leaks(summary) {
        return Err(not_clean());
    }
    check_by(crew, disk, path, Repair::Leaks, &mut |_| ()).await?;
    let (found, summary) = Survey::before_change(disk, crew).await?;
    found.filter(|_| summary.is_clean()).ok_or_else(not_clean)
}

fn has_more_than_leaks(summary: CheckSummary) -> bool {
    summary.corruptions + summary.check_errors > 0 || summary.aborted.is_some()
}

fn not_clean() -> Error {
    Error::corrupt("the image is not clean, nothing was moved: see 'qcow check'")
}

/// The cipher with which data that moves is encrypted anew, where it has to be: by its place in the file.
///
/// # Errors
/// The key is missing or wrong, or the LUKS header is damaged.
pub(super) async fn cipher<D: Disk>(
    disk: &D,
    key: Option<&Passphrase>,
) -> Result<Option<SectorCipher>> {
    let header = read_header(disk).await?;
    if header.crypt_method != CryptMethod::Luks || header.has_external_data() {
        return Ok(None);
    }
    let key = key.ok_or_else(|| key_missing("encrypt.key-secret"))?;
    let volume = luks_volume(disk, &header).await?;
    let (_, master) = volume.unlock(key).await?;
    Ok(Some(master.cipher(&volume.header)))
}

async fn clear_after_crash<D: Disk>(disk: &D, path: &Path) -> Result<()> {
    let header = read_header(disk).await?;
    let mark = header.extensions.mark.as_ref().map(Mark::state);
    let is_dirty = header.incompatible.contains(Incompatible::DIRTY);
    if header.incompatible.contains(Incompatible::CORRUPT) {
        return Err(Error::corrupt("Image is corrupt; cannot be opened read/write"));
    }
    if is_dirty || mark == Some(MarkState::Unsettled) {
        repair_dirty(disk, path).await?;
    }
    Ok(())
}

impl<D: Disk> Layout<'_, D> {
    /// Makes the header say that the image is being changed, durably.
    pub(super) async fn announce(&mut self) -> Result<()> {
        clear_unknown_statements(&mut self.target).await?;
        self.mark_unsettled().await
    }

    /// What a crash leaves is leaked clusters; where a snapshot shared them, their COPIED flags are to follow their counts.
    async fn mark_unsettled(&mut self) -> Result<()> {
        let (cluster0, _) = read_header_cluster(self.target.disk).await?;
        if let Some(mut mark) = self.target.header.extensions.mark.clone() {
            mark.set(MarkState::Unsettled);
            // No redo log of an earlier session goes with what is about to move.
            mark.set_session(None);
            if let Some(at) = Header::find_mark(&cluster0)? {
                write(&self.target, at, mark.head(), "close mark").await?;
            }
            self.target.header.extensions.mark = Some(mark);
            return sync(&self.target).await;
        }
        let mark = Mark::new(MarkState::Unsettled);
        // Where there is no room for it, what a crash leaks is found by a check.
        let steps = Header::plan_append(&cluster0, MARK_TYPE, mark.as_bytes())?;
        for step in steps.iter().flatten() {
            for (at, sector) in &step.writes {
                write(&self.target, *at, sector, "header").await?;
            }
            sync(&self.target).await?;
        }
        if steps.is_some() {
            self.target.header.extensions.mark = Some(mark);
        }
        Ok(())
    }
}
