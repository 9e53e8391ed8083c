//! Changing the size of the disk: what the new size shows, or hides, is made right first, and the root has both.

use std::sync::atomic::Ordering;

use super::flush::Change;
use super::parts::write;
use super::{Freed, Sealed};
use crate::addr::HostOffset;
use crate::disk::{Disk, Payload};
use crate::engine::Image;
use crate::engine::zero::Otherwise;
use crate::error::{Error, Result};
use crate::format::sealed::check_disk_size;
use crate::format::sealed::entry::Entry;
use crate::format::sealed::header::SealedHeader;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// Makes the disk `size` bytes large, whole sectors; it had `old`.
    pub(in crate::engine) async fn resize_sealed(
        &self,
        sealed: &Sealed<D>,
        old: u64,
        size: u64,
    ) -> Result<()> {
        if size > old && sealed.has_backing() && self.layer_count() == 1 {
            let what = "a disk whose backing file is not open cannot grow: it may show through";
            return Err(sealed.named(Error::unsupported(what)));
        }
        check_disk_size(size).map_err(|e| sealed.named(e))?;
        let len = sealed.cluster_len();
        lock(&sealed.state).tree.reach_for(size.div_ceil(len));
        if size > old {
            if sealed.has_backing() {
                let behind = old.next_multiple_of(len).min(size);
                let zeros = Payload::zeros(behind - old);
                self.write_sealed(sealed, old, &zeros).await?;
                sealed
                    .clear(old.div_ceil(len)..size.div_ceil(len), Entry::Zeros, Freed::Kept)
                    .await?;
            }
        } else {
            let behind = size.next_multiple_of(len).min(old);
            self.zero_sealed(sealed, size, behind - size, false, Otherwise::Write).await?;
            let left = size.div_ceil(len)..old.div_ceil(len);
            sealed.clear(left, sealed.void(), Freed::Punched).await?;
        }
        sealed.set_size(size).await
    }
}

impl<D: Disk> Sealed<D> {
    /// Says the new size, durably.
    async fn set_size(&self, size: u64) -> Result<()> {
        let change = Change {
            before: Box::new(|state| state.tree.set_size(size)),
            details: Box::new(|_, _| ()),
            keeps_root: false,
        };
        if let Err(e) = self.write_root(Some(change)).await {
            return Err(self.fail(e.context("the size could not be changed")));
        }
        self.size.store(size, Ordering::Release);
        self.store_size().await
    }

    /// Tells other programs the size, which the root has already.
    pub(super) async fn store_size(&self) -> Result<()> {
        let header = SealedHeader { size: self.size(), ..self.header };
        let stored = async {
            write(&self.disk, HostOffset::new(0), &header.encode()).await?;
            self.barrier().await
        };
        stored.await.map_err(|e| self.named(e))
    }

    /// Takes away all that the image has of the disk; snapshots keep what they hold. No other request may be in flight.
    pub async fn make_empty(&self) -> Result<()> {
        let size = self.size();
        self.clear(0..size.div_ceil(self.cluster_len()), Entry::Unallocated, Freed::Punched)
            .await?;
        self.flush().await
    }

    /// Makes the image name another backing file, or none. All that completed before is durable then.
    pub async fn set_backing(
        &self,
        backing: Option<(std::ffi::OsString, Option<String>)>,
    ) -> Result<()> {
        self.flush().await?;
        let names_backing = backing.is_some();
        let change = Change {
            before: Box::new(|_| ()),
            details: Box::new(|details, _| details.backing = backing),
            keeps_root: false,
        };
        self.write_root(Some(change)).await?;
        self.names_backing.store(names_backing, Ordering::Release);
        Ok(())
    }

    /// The backing file that the image names, and its format.
    pub fn backing(&self) -> Option<(std::ffi::OsString, Option<String>)> {
        lock(&self.state).details.backing.clone()
    }
}
