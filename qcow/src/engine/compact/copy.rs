//! Copying clusters from one place of the file to another.

use super::moves::{Move, Moves};
use crate::addr::{HostCluster, HostOffset};
use crate::crypt::SectorCipher;
use crate::disk::{Buffer, Disk, Payload};
use crate::engine::check::parts::Target;
use crate::error::{Error, Result};
use crate::exec::try_join_all;
use crate::limits::SECTOR_BYTES;

/// Most bytes that one copy takes, unless clusters are larger.
const COPY_BYTES: u64 = 1 << 20;
/// Most copies at the same time.
const COPIES_MAX: usize = 16;
/// The least zeros that become a hole rather than a write, unless clusters are larger.
const HOLE_BYTES_MIN: u64 = 64 << 10;

/// What is copied.
#[derive(Clone, Copy)]
pub(super) enum Bytes<'c> {
    /// What may have been written since the last sync.
    Metadata,
    /// What has not: there the host is believed where it tells of a hole.
    Settled,
    /// What is encrypted by its place: holes too are something there.
    Encrypted(&'c SectorCipher),
}

/// Copies all of `moves`; tells `done` the bytes of each copy as it ends.
pub(super) async fn copy<D: Disk>(
    target: &Target<'_, D>,
    moves: &Moves,
    bytes: Bytes<'_>,
    done: &mut dyn FnMut(u64),
) -> Result<()> {
    let step = target.geometry.clusters_for(COPY_BYTES);
    let pieces = moves.iter().flat_map(|run| {
        (0..run.len).step_by(step as usize).map(move |at| Move {
            from: run.from + at,
            to: run.to + at,
            len: step.min(run.len - at),
        })
    });
    let done = std::cell::RefCell::new(done);
    let copies = pieces.map(|piece| {
        let done = &done;
        async move {
            match bytes {
                Bytes::Settled if is_hole(target, piece)? => put_zeros(target, piece).await?,
                Bytes::Settled | Bytes::Metadata => copy_piece(target, piece).await?,
                Bytes::Encrypted(cipher) => encrypt_piece(target, piece, cipher).await?,
            }
            done.borrow_mut()(target.geometry.bytes(piece.len));
            Ok(())
        }
    });
    try_join_all(COPIES_MAX, copies).await
}

fn is_hole<D: Disk>(target: &Target<'_, D>, piece: Move) -> Result<bool> {
    let geometry = target.geometry;
    let from = geometry.host_start(HostCluster::new(piece.from));
    let extent = target.disk.extent_at(from);
    let extent = extent.map_err(|e| Error::io(format!("find the data at {from}"), &e))?;
    Ok(!extent.data && extent.len >= geometry.bytes(piece.len))
}

async fn put_zeros<D: Disk>(target: &Target<'_, D>, piece: Move) -> Result<()> {
    let to = target.geometry.host_start(HostCluster::new(piece.to));
    let len = target.geometry.bytes(piece.len);
    put(target, to, &Payload::zeros(len), true).await
}

/// Where a piece starts, and where it is to start.
fn ends<D: Disk>(target: &Target<'_, D>, piece: Move) -> (HostOffset, HostOffset) {
    let start = |cluster| target.geometry.host_start(HostCluster::new(cluster));
    (start(piece.from), start(piece.to))
}

async fn read<D: Disk>(target: &Target<'_, D>, piece: Move) -> Result<Buffer> {
    let (from, _) = ends(target, piece);
    let buffer = Buffer::zeroed(target.geometry.bytes(piece.len) as usize);
    let read = target.disk.read(from, &buffer.payload()).await;
    read.map_err(|e| Error::io(format!("Could not read the clusters at {from}"), &e))?;
    Ok(buffer)
}

/// The number of a sector is that of its place in the file.
async fn encrypt_piece<D: Disk>(
    target: &Target<'_, D>,
    piece: Move,
    cipher: &SectorCipher,
) -> Result<()> {
    let (from, to) = ends(target, piece);
    let mut buffer = read(target, piece).await?;
    let bytes = buffer.make_mut();
    cipher.decrypt(from.get() / SECTOR_BYTES, bytes);
    cipher.encrypt(to.get() / SECTOR_BYTES, bytes);
    put(target, to, &buffer.payload(), false).await
}

async fn copy_piece<D: Disk>(target: &Target<'_, D>, piece: Move) -> Result<()> {
    let geometry = target.geometry;
    let (_, to) = ends(target, piece);
    let buffer = read(target, piece).await?.payload();
    let step = HOLE_BYTES_MIN.max(geometry.cluster_size());
    let mut at = 0;
    while at < buffer.len() {
        let is_zero = |at: u64| buffer.slice(at, step.min(buffer.len() - at)).is_zero();
        let zeros = is_zero(at);
        let mut end = at + step;
        while end < buffer.len() && is_zero(end) == zeros {
            end += step;
        }
        let end = end.min(buffer.len());
        put(target, to.plus(at), &buffer.slice(at, end - at), zeros).await?;
        at = end;
    }
    Ok(())
}

async fn put<D: Disk>(
    target: &Target<'_, D>,
    at: HostOffset,
    bytes: &Payload,
    zeros: bool,
) -> Result<()> {
    let written = match zeros {
        true => target.disk.unmap_zeroes(at, bytes.len()).await,
        false => target.disk.write(at, bytes).await,
    };
    written.map_err(|e| Error::io(format!("Could not write the clusters at {at}"), &e))
}
