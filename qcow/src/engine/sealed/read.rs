//! Reading: what lies in the file gets into the memory of whoever asked once it has opened.

use std::cell::RefCell;

use super::buffers::{PIECE_LEN, buffers_for, joined};
use super::{Sealed, cluster};
use crate::codec::Decompressor;
use crate::disk::{Buffer, Disk, Payload};
use crate::engine::read::Content;
use crate::error::{Error, Result};
use crate::exec::try_join_all;
use crate::format::sealed::entry::{Entry, Stored};
use crate::format::sealed::{BLOCK_LEN, start_of};
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::sealed::tree::Found;

thread_local! {
    /// Contexts are large and slow to make: one set for each thread.
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new());
}

/// Clusters that follow each other on the disk and in the file.
struct Part {
    /// The first one.
    first: u64,
    stored: Vec<Stored>,
}

impl Part {
    /// Whether `next`, the cluster behind it, can be read with it.
    fn goes_on_with(&self, next: &Stored) -> bool {
        let last = self.stored.last().expect("a part has a cluster");
        let len = |stored: &Stored| stored.blocks() * BLOCK_LEN;
        !last.compressed
            && !next.compressed
            && last.place.plus(last.blocks()) == next.place
            && self.stored.iter().map(len).sum::<u64>() + len(next) <= PIECE_LEN
    }
}

impl<D: Disk> Sealed<D> {
    /// What the bytes from `at` on are made of, for at most `len` and at least one byte; how many are alike.
    pub async fn resolve(&self, at: u64, len: u64) -> Result<(Content, u64)> {
        let clusters = self.clusters(at, len);
        let count = clusters.end - clusters.start;
        let found = self.ask(|state| state.tree.find(cluster(clusters.start), count)).await?;
        let (content, alike) = match found {
            Found::Void(entry, count) => (content_of(&entry), count),
            Found::Entries(entries) => {
                let content = content_of(&entries[0]);
                let alike = entries.iter().take_while(|entry| content_of(entry) == content);
                (content, alike.count() as u64)
            }
        };
        let end = (clusters.start + alike).saturating_mul(self.cluster_len());
        Ok((content, (end - at).min(len)))
    }

    /// Fills `into` with what the image itself has from `at` on; what lies nowhere reads as zeros. The caller is inside the
    /// drain.
    ///
    /// # Errors
    /// Something does not open, or the host failed.
    pub async fn read(&self, at: u64, into: &Payload) -> Result<()> {
        let mut parts = self.plan_read(at, into).await?;
        if parts.len() == 1 {
            return self.read_part(&parts.remove(0), at, into).await;
        }
        let reads = parts.iter().map(|part| self.read_part(part, at, into));
        Box::pin(try_join_all(IN_FLIGHT_MAX, reads)).await
    }

    /// Fills in zeros, and says what is to be read.
    async fn plan_read(&self, at: u64, into: &Payload) -> Result<Vec<Part>> {
        let clusters = self.clusters(at, into.len());
        let mut parts: Vec<Part> = Vec::new();
        let mut next = clusters.start;
        while next < clusters.end {
            let left = clusters.end - next;
            let entries = match self.ask(|state| state.tree.find(cluster(next), left)).await? {
                Found::Void(entry, count) => vec![entry; count as usize],
                Found::Entries(entries) => entries,
            };
            for entry in entries {
                match entry {
                    Entry::Stored(stored) => match parts.last_mut() {
                        Some(part)
                            if part.first + part.stored.len() as u64 == next
                                && part.goes_on_with(&stored) =>
                        {
                            part.stored.push(stored);
                        }
                        _ => parts.push(Part { first: next, stored: vec![stored] }),
                    },
                    _ => {
                        let (skip, offset, len) = self.overlap(next, at, into.len());
                        debug_assert!(skip < self.cluster_len());
                        into.zero(offset, len);
                    }
                }
                next += 1;
            }
        }
        Ok(parts)
    }

    /// What of cluster `index` the `len` bytes at `at` cover: from where on in the cluster, where that is among those bytes, and
    /// how many.
    pub(super) fn overlap(&self, index: u64, at: u64, len: u64) -> (u64, u64, u64) {
        let start = index * self.cluster_len();
        let from = start.max(at);
        let end = (start + self.cluster_len()).min(at + len);
        (from - start, from - at, end - from)
    }

    /// Reads a part, and fills in what of it lies among the bytes from `at` on that `into` is for.
    async fn read_part(&self, part: &Part, at: u64, into: &Payload) -> Result<()> {
        let len: u64 = part.stored.iter().map(|stored| u64::from(stored.len)).sum();
        let start = start_of(part.stored[0].place);
        let mut buffers = buffers_for(len);
        let all = joined(&buffers);
        let read = self.disk.read(start, &all).await;
        drop(all);
        read.map_err(|e| self.named(Error::io(format!("read at {start}"), &e)))?;
        // A cluster lies in one buffer, as all but compressed ones have the same length.
        let mut rest = buffers.iter_mut().map(Buffer::make_mut);
        let mut bytes: &mut [u8] = &mut [];
        for (index, stored) in (part.first..).zip(&part.stored) {
            if bytes.is_empty() {
                bytes = rest.next().expect("a buffer for each cluster");
            }
            let (cluster, behind) = bytes.split_at_mut(stored.len as usize);
            bytes = behind;
            if !self.open_stored(0, index, stored, cluster) {
                return Err(self.does_not_open(0, index, stored));
            }
            let (skip, offset, len) = self.overlap(index, at, into.len());
            if stored.compressed {
                self.unpack(cluster, skip, &into.slice(offset, len))?;
            } else {
                into.copy_from(offset, &cluster[skip as usize..(skip + len) as usize]);
            }
        }
        Ok(())
    }

    /// Fills `into` with the bytes from `skip` on of the cluster that `packed` is in compressed form.
    fn unpack(&self, packed: &[u8], skip: u64, into: &Payload) -> Result<()> {
        let mut plain = vec![0; self.cluster_len() as usize];
        let unpacked = DECOMPRESSOR.with_borrow_mut(|decompressor| {
            decompressor.decompress(self.header.compression, packed, &mut plain)
        });
        unpacked.map_err(|e| self.named(e))?;
        into.copy_from(0, &plain[skip as usize..(skip + into.len()) as usize]);
        Ok(())
    }
}

fn content_of(entry: &Entry) -> Content {
    match entry {
        Entry::Unallocated => Content::Nothing { host: None },
        Entry::Zeros => Content::Zeros { host: None },
        Entry::Stored(stored) => Content::Sealed { compressed: stored.compressed },
    }
}
