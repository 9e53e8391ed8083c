//! Reads tables, several at a time, and spares itself the holes of the file.

use std::ops::Range;

use super::target::Target;
use crate::addr::HostOffset;
use crate::disk::Disk;
use crate::engine::load::read_bytes;
use crate::error::{Error, Result};
use crate::exec::join_all;

/// Most bytes read at the same time.
const BATCH_BYTES: u64 = 8 << 20;
/// Most reads at the same time.
const BATCH_READS: usize = 32;
/// Most bytes that one read of a long table takes.
const PIECE_BYTES: u64 = 1 << 20;

/// Reads tables in the order of their places in the file.
pub(in crate::engine) struct TableReader<'t, 'd, D> {
    target: &'t Target<'d, D>,
    /// The stretch of the file that was asked about last, and whether it is data.
    known: (Range<u64>, bool),
}

impl<'t, 'd, D: Disk> TableReader<'t, 'd, D> {
    pub(in crate::engine) fn new(target: &'t Target<'d, D>) -> Self {
        Self { target, known: (0..0, false) }
    }

    /// How many tables of `len` bytes to read at a time.
    pub(in crate::engine) fn batch_for(len: u64) -> usize {
        ((BATCH_BYTES / len) as usize).clamp(1, BATCH_READS)
    }

    /// The bytes of a table of `len` bytes at each of `offsets`; `None` where it reads as zeros throughout, because it
    /// lies in a hole or behind the end of the file.
    pub(in crate::engine) async fn read(
        &mut self,
        offsets: &[u64],
        len: u64,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let mut reads = Vec::with_capacity(offsets.len());
        for &at in offsets {
            let stored = self.has_data(at, len)?;
            let disk = self.target.disk;
            reads.push(async move {
                match stored {
                    true => read_bytes(disk, HostOffset::new(at), len, "a table").await.map(Some),
                    false => Ok(None),
                }
            });
        }
        join_all(reads).await.into_iter().collect()
    }

    /// Cuts the byte range of a long table into pieces for [`Self::read_piece`].
    pub(in crate::engine) fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let end = range.end;
        let starts = range.step_by(PIECE_BYTES as usize);
        starts.map(move |start| start..end.min(start.saturating_add(PIECE_BYTES)))
    }

    /// The bytes of one piece; `None` as for [`Self::read`].
    pub(in crate::engine) async fn read_piece(
        &mut self,
        piece: &Range<u64>,
    ) -> Result<Option<Vec<u8>>> {
        let mut bytes = self.read(&[piece.start], piece.end - piece.start).await?;
        Ok(bytes.pop().flatten())
    }

    /// Whether any of the `len` bytes at `at` is stored.
    fn has_data(&mut self, at: u64, len: u64) -> Result<bool> {
        let end = at.saturating_add(len).min(self.target.file_len);
        if !self.target.skip_holes {
            return Ok(at < end);
        }
        let mut at = at;
        while at < end {
            if !self.known.0.contains(&at) {
                self.known = self.look_up(at)?;
            }
            if self.known.1 {
                return Ok(true);
            }
            at = self.known.0.end;
        }
        Ok(false)
    }

    fn look_up(&self, at: u64) -> Result<(Range<u64>, bool)> {
        let extent = self.target.disk.extent_at(HostOffset::new(at));
        let extent = extent.map_err(|e| Error::io(format!("find the data at {at:#x}"), &e))?;
        // A file that shrinks meanwhile leaves nothing to skip.
        let (len, data) = if extent.len == 0 { (1, true) } else { (extent.len, extent.data) };
        Ok((at..at.saturating_add(len), data))
    }
}
