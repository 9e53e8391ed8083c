//! Reading parts of an image that is not open yet: header, tables, snapshots.

use super::options::Format;
use crate::addr::HostOffset;
use crate::crypt::luks::LuksHeader;
use crate::disk::{Buffer, Disk};
use crate::error::{Error, Result};
use crate::format::feature::Incompatible;
use crate::format::header::Header;
use crate::format::mark::MarkState;
use crate::format::snapshot::{SnapshotEntry, SnapshotTableReader};
use crate::limits::SECTOR_BYTES;
use crate::seeded_bugs::Bug;

/// First bytes of every qcow2 image.
const MAGIC: &[u8; 4] = b"QFI\xfb";

/// First bytes of a file that tell its format.
const PREFIX_LEN: u64 = 8;

/// Bytes of a snapshot table that are read at a time.
const TABLE_CHUNK: u64 = 64 << 10;

/// The format that the first bytes of a file show.
pub(super) async fn probe<D: Disk>(disk: &D) -> Result<Format> {
    let prefix = read_bytes(disk, HostOffset::new(0), PREFIX_LEN, "header").await?;
    Ok(match prefix {
        prefix if prefix.starts_with(MAGIC) => Format::Qcow2,
        prefix if LuksHeader::is_luks(&prefix) => Format::Luks,
        _ => Format::Raw,
    })
}

/// Reads and validates the header of a qcow2 image.
pub(super) async fn read_header<D: Disk>(disk: &D) -> Result<Header> {
    let (cluster0, file_len) = read_header_cluster(disk).await?;
    Header::parse(&cluster0, file_len)
}

/// The first cluster of a qcow2 image, and the length of the file.
pub(super) async fn read_header_cluster<D: Disk>(disk: &D) -> Result<(Vec<u8>, u64)> {
    let file_len = disk.len().map_err(|e| Error::io("find the length", &e))?;
    let prefix_len = file_len.min(SECTOR_BYTES);
    let prefix = read_bytes(disk, HostOffset::new(0), prefix_len, "header").await?;
    let cluster_bits = Header::cluster_bits_of(&prefix)?;
    let cluster0 = read_bytes(disk, HostOffset::new(0), 1 << cluster_bits, "header").await?;
    Ok((cluster0, file_len))
}

/// The internal snapshots of an image, and how many bytes their table takes.
pub(super) async fn read_snapshots<D: Disk>(
    disk: &D,
    header: &Header,
    file_len: u64,
) -> Result<(Vec<SnapshotEntry>, u64)> {
    if header.snapshot_count == 0 {
        return Ok((Vec::new(), 0));
    }
    let mut reader = SnapshotTableReader::new(header.snapshot_count, header.virtual_size())?;
    let mut at = header.snapshots_offset;
    while !reader.is_complete() && at.get() < file_len {
        let len = TABLE_CHUNK.min(file_len - at.get());
        reader.push(&read_bytes(disk, at, len, "snapshot table").await?)?;
        at = at.plus(len);
    }
    reader.finish()
}

/// The `count` big-endian words at `at`; `what` they are, for an error.
pub(super) async fn read_words<D: Disk>(
    disk: &D,
    at: HostOffset,
    count: u64,
    what: &str,
) -> Result<Vec<u64>> {
    // A table can have many megabytes: no copy more than the words.
    let mut buffer = read_buffer(disk, at, count * 8, what).await?;
    let (words, _) = buffer.make_mut().as_chunks();
    Ok(words.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

/// The `len` bytes at `at`; `what` they are, for an error.
pub(super) async fn read_bytes<D: Disk>(
    disk: &D,
    at: HostOffset,
    len: u64,
    what: &str,
) -> Result<Vec<u8>> {
    Ok(read_buffer(disk, at, len, what).await?.to_vec())
}

async fn read_buffer<D: Disk>(disk: &D, at: HostOffset, len: u64, what: &str) -> Result<Buffer> {
    let buffer = Buffer::zeroed(len as usize);
    let read = disk.read(at, &buffer.payload()).await;
    read.map_err(|e| Error::io(format!("Could not read {what}"), &e))?;
    Ok(buffer)
}

/// Makes sure that what is read from now on is what a power cut would leave. Whoever wrote to the file before - we or
/// others - may have been killed before a flush, or have met one that failed: after that the cache shows what the medium
/// never got.
pub(super) async fn see_medium<D: Disk>(disk: &D) -> Result<()> {
    let synced = disk.sync().await;
    forget_cache(disk, synced)
}

/// As [`see_medium`], but of an image that says it was closed nothing is read anew: who said so had made all of it durable.
pub(super) async fn see_medium_unless_closed<D: Disk>(disk: &D) -> Result<()> {
    let synced = disk.sync().await;
    if synced.is_ok()
        && let Ok(header) = read_header(disk).await
        && header.extensions.mark.is_some_and(|mark| mark.state() == MarkState::Clean)
        && !header.incompatible.contains(Incompatible::DIRTY)
    {
        return Ok(());
    }
    let seen = forget_cache(disk, synced);
    if seen.is_err() {
        forget_session(disk).await;
    }
    seen
}

/// Sees to it that no redo log is replayed on an image of which the host may have lost what was not durable: the log's
/// entries would show it. The error that told so is told once. What cannot be read or written now will hardly be the next
/// time.
pub(super) async fn forget_session<D: Disk>(disk: &D) {
    if Bug::SessionOutlivesLostSync.is_seeded() {
        return;
    }
    let Ok((cluster0, file_len)) = read_header_cluster(disk).await else { return };
    let Ok(header) = Header::parse(&cluster0, file_len) else { return };
    let Some(mut mark) = header.extensions.mark.filter(|mark| mark.session().is_some()) else {
        return;
    };
    mark.set_session(None);
    if let Ok(Some(at)) = Header::find_mark(&cluster0)
        && disk.write(at, &Buffer::from_bytes(mark.head()).payload()).await.is_ok()
    {
        // Even where this fails, the page cache has it for everybody but a power cut, which takes the log, too.
        let _ = disk.sync().await;
    }
}

fn forget_cache<D: Disk>(disk: &D, synced: std::io::Result<()>) -> Result<()> {
    let failed = |e: std::io::Error| Error::io("Could not read the file anew", &e);
    // Also where that failed, for whoever tries it next: to him the host reports no error any more.
    let len = disk.len().map_err(failed)?;
    disk.drop_cache(0..len).map_err(failed)?;
    synced.map_err(failed)
}
