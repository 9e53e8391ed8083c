//! What goes to new places besides the bytes of a write: what the disk held around them.

use std::ops::Range;

use super::Image;
use crate::disk::{Buffer, Disk, Payload};
use crate::error::Result;
use crate::seeded_bugs::Bug;

/// Bytes of a write over which what lies before and behind it is read in one go: copying so much costs less than a second
/// read.
const BRIDGED_BYTES_MAX: u64 = 16 << 10;

/// What lies around the bytes of a write, in clusters that nobody else can change now.
#[derive(Debug)]
pub(super) struct Around {
    /// Bytes of the disk up to the write.
    pub head: Range<u64>,
    /// Bytes of the disk from the end of the write on.
    pub tail: Range<u64>,
    /// Whether any image of the chain may have something there: else it is zeros.
    pub has_old: bool,
    /// Whether what is not written to the new places reads as zeros.
    pub fresh: bool,
    /// Whether what reads as zeros there decrypts to something else.
    pub encrypted: bool,
}

impl<D: Disk> Image<D> {
    /// `data` with what lies around it, as far as that has to be written; where it begins on the disk.
    pub(super) async fn surround(&self, around: Around, data: Payload) -> Result<(u64, Payload)> {
        let Around { head, tail, has_old, fresh, encrypted } = around;
        let fresh = fresh && (!encrypted || Bug::FreshTakenForEncryptedZeros.is_seeded());
        let mut has_bytes = [false; 2];
        if has_old {
            has_bytes = [self.has_bytes(&head).await?, self.has_bytes(&tail).await?];
        }
        if has_bytes == [true; 2] && data.len() <= BRIDGED_BYTES_MAX {
            let all = self.read_old(head.start..tail.end).await?;
            all.slice(head.end - head.start, data.len()).copy_from_payload(&data);
            return Ok((head.start, all));
        }
        let first = if has_bytes[0] || !fresh { head.start } else { head.end };
        let head = self.old_bytes(head, has_bytes[0], fresh).await?;
        let tail = self.old_bytes(tail, has_bytes[1], fresh).await?;
        if head.is_none() && tail.is_none() {
            return Ok((first, data));
        }
        Ok((first, Payload::concat([head, Some(data), tail].into_iter().flatten().collect())))
    }

    /// What is to be written for what the disk holds in `bytes`.
    async fn old_bytes(
        &self,
        bytes: Range<u64>,
        has_bytes: bool,
        fresh: bool,
    ) -> Result<Option<Payload>> {
        match bytes.end - bytes.start {
            0 => Ok(None),
            _ if has_bytes => self.read_old(bytes).await.map(Some),
            _ if fresh => Ok(None),
            len => Ok(Some(Payload::zeros(len))),
        }
    }

    /// Whether the disk has anything but zeros in `bytes`, as far as the tables tell.
    async fn has_bytes(&self, bytes: &Range<u64>) -> Result<bool> {
        if Bug::CopyOnWriteForgets.is_seeded() {
            return Ok(false);
        }
        // Past the end of the disk there is nothing to keep; zeros, so that a larger disk would read zeros.
        let end = bytes.end.min(self.virtual_size());
        let mut at = bytes.start;
        while at < end {
            let source = self.resolve(0, at, end - at).await?;
            if !source.content.reads_as_zeros() {
                return Ok(true);
            }
            at += source.len;
        }
        Ok(false)
    }

    async fn read_old(&self, bytes: Range<u64>) -> Result<Payload> {
        let len = bytes.end - bytes.start;
        let inside = self.virtual_size().saturating_sub(bytes.start).min(len);
        let all = Buffer::scratch(len as usize).payload();
        self.read_from(0, bytes.start, &all.slice(0, inside)).await?;
        all.zero(inside, len - inside);
        Ok(all)
    }
}
