//! Zeroing and discarding: whole clusters in the tree, the rest by writing zeros.

use std::ops::Range;

use super::{Freed, Sealed, cluster};
use crate::disk::{Disk, Payload};
use crate::engine::Image;
use crate::engine::options::Discard;
use crate::engine::zero::{Otherwise, ZERO_WRITE_LEN};
use crate::error::Result;
use crate::format::sealed::entry::Entry;
use crate::meta::sealed::tree::Found;

impl<D: Disk> Image<D> {
    /// Makes `len` bytes at `at` read as zeros; with `unmap` the host gets their space back, where discards are done at all.
    pub(in crate::engine) async fn zero_sealed(
        &self,
        sealed: &Sealed<D>,
        at: u64,
        len: u64,
        unmap: bool,
        otherwise: Otherwise,
    ) -> Result<()> {
        let whole = self.whole_clusters_in(sealed, at, len);
        if whole.is_empty() {
            return self.zero_bytes(sealed, at, len, otherwise).await;
        }
        let (start, end) = sealed.bytes_of(&whole);
        self.zero_bytes(sealed, at, start - at, otherwise).await?;
        let punches = unmap && self.inner.options.discard == Discard::Unmap;
        let space = if punches { Freed::Punched } else { Freed::Kept };
        sealed.clear(whole, sealed.void(), space).await?;
        self.zero_bytes(sealed, end, (at + len).saturating_sub(end), otherwise).await
    }

    /// Tells that nobody needs `len` bytes at `at` any more: whole clusters of them read as zeros from then on.
    pub(in crate::engine) async fn discard_sealed(
        &self,
        sealed: &Sealed<D>,
        at: u64,
        len: u64,
    ) -> Result<()> {
        let whole = self.whole_clusters_in(sealed, at, len);
        sealed.clear(whole, sealed.void(), Freed::Punched).await
    }

    /// Makes `len` bytes at `at` read as zeros whatever backing file the image gets.
    pub(in crate::engine) async fn write_lasting_zeroes_sealed(
        &self,
        sealed: &Sealed<D>,
        at: u64,
        len: u64,
    ) -> Result<()> {
        let whole = self.whole_clusters_in(sealed, at, len);
        let (start, end) = match whole.is_empty() {
            true => (at + len, at + len),
            false => sealed.bytes_of(&whole),
        };
        self.write_zero_bytes_sealed(sealed, at, start - at).await?;
        sealed.clear(whole, Entry::Zeros, Freed::Kept).await?;
        self.write_zero_bytes_sealed(sealed, end, (at + len).saturating_sub(end)).await
    }

    /// The clusters that lie among `len` bytes at `at` as a whole, as far as the disk reaches.
    fn whole_clusters_in(&self, sealed: &Sealed<D>, at: u64, len: u64) -> Range<u64> {
        let (end, bits) = (at + len, sealed.header.cluster_bits);
        let reaches_end = end >= self.virtual_size();
        let behind = if reaches_end { end.div_ceil(sealed.cluster_len()) } else { end >> bits };
        at.div_ceil(sealed.cluster_len())..behind.max(at.div_ceil(sealed.cluster_len()))
    }

    /// Writes zeros where the disk does not read as zeros already.
    async fn zero_bytes(
        &self,
        sealed: &Sealed<D>,
        at: u64,
        len: u64,
        otherwise: Otherwise,
    ) -> Result<()> {
        let mut done = 0;
        while done < len {
            let source = {
                let _inside = self.enter();
                self.resolve(0, at + done, (len - done).min(ZERO_WRITE_LEN)).await?
            };
            if !source.content.reads_as_zeros() {
                otherwise.check()?;
                self.write_sealed(sealed, at + done, &Payload::zeros(source.len)).await?;
            }
            done += source.len;
        }
        Ok(())
    }

    async fn write_zero_bytes_sealed(&self, sealed: &Sealed<D>, at: u64, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let zeros = Payload::zeros((len - done).min(ZERO_WRITE_LEN));
            self.write_sealed(sealed, at + done, &zeros).await?;
            done += zeros.len();
        }
        Ok(())
    }
}

impl<D: Disk> Sealed<D> {
    /// Says `void` of `clusters`.
    pub(super) async fn clear(
        &self,
        clusters: Range<u64>,
        void: Entry,
        space: Freed,
    ) -> Result<()> {
        self.health()?;
        let mut next = clusters.start;
        while next < clusters.end {
            let left = clusters.end - next;
            let count = match self.ask(|state| state.tree.find(cluster(next), left)).await? {
                Found::Void(entry, count) if entry == void => {
                    next += count;
                    continue;
                }
                Found::Void(_, count) => count,
                Found::Entries(entries) => entries.len() as u64,
            };
            let part = next..next + count;
            let _held = self.hold(part.clone()).await;
            let cleared = self.ask(|state| {
                let (count, old) = state.tree.clear(part.clone(), void)?;
                old.iter().for_each(|old| state.unlink(old, space));
                Ok(count)
            });
            next += cleared.await?;
            drop(_held);
            self.keep_house().await?;
        }
        Ok(())
    }
}
