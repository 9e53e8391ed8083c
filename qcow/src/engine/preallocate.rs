//! Giving guest clusters their place in the file before anybody writes to them. They read as zeros.

use super::Image;
use super::layer::Qcow2;
use super::options::Preallocation;
use super::write::Hold;
use super::zero::Change;
use crate::addr::{GuestOffset, HostOffset};
use crate::disk::{Disk, Payload};
use crate::error::{Error, Result};
use crate::meta::plan::{Held, WriteStep};
use crate::meta::span::Span;
use crate::sync::lock;

/// Zeros that one write carries.
const ZERO_WRITE_LEN: u64 = 4 << 20;

impl<D: Disk> Image<D> {
    /// Maps the clusters from `start`, which is the first byte of one, to `end`, all of which read as zeros and which nobody
    /// else changes. The next flush makes that durable. Of an encrypted disk they become zero clusters that have a place:
    /// what is in the file there decrypts to anything.
    pub(super) async fn preallocate(
        &self,
        qcow2: &Qcow2<D>,
        start: u64,
        end: u64,
        how: Preallocation,
    ) -> Result<()> {
        let mut at = start;
        while at < end {
            at += qcow2.guarded(self.preallocate_some(qcow2, at, end - at, how)).await?;
            if lock(&qcow2.meta).wants_flush() {
                qcow2.write_back().await?;
            }
        }
        match qcow2.is_encrypted() && end > start {
            true => {
                let first = qcow2.geometry.guest_cluster(GuestOffset::new(start));
                let count = qcow2.geometry.clusters_for(end - start);
                let span = Span::of_clusters(qcow2.geometry, first, count);
                self.change_span(qcow2, span, Change::Zero).await
            }
            false => Ok(()),
        }
    }

    /// Maps the first clusters of a stretch; how many bytes of it are done.
    async fn preallocate_some(
        &self,
        qcow2: &Qcow2<D>,
        at: u64,
        len: u64,
        how: Preallocation,
    ) -> Result<u64> {
        let _inside = self.enter();
        let (geometry, at) = (qcow2.geometry, GuestOffset::new(at));
        match qcow2.ask(|meta| meta.plan_write(geometry, at, len)).await? {
            WriteStep::InPlace { len, .. } => Ok(len),
            WriteStep::Table(l1) => qcow2.make_table(l1).await.map(|()| 0),
            WriteStep::Busy(span) => {
                qcow2.wait_until_free(span).await;
                Ok(0)
            }
            WriteStep::Allocate(held) => {
                let mut hold = Hold { image: qcow2, held };
                qcow2.place(&mut hold.held, how).await?;
                Ok(hold.held.span.end_offset(geometry).distance_from(at))
            }
        }
    }
}

impl<D: Disk> Qcow2<D> {
    /// Maps the first of the held clusters to clusters that read as zeros; only these are held from then on.
    async fn place(&self, held: &mut Held, how: Preallocation) -> Result<()> {
        let claimed = match held.reserved {
            Some(_) => None,
            None => Some(self.claim(held.count).await?),
        };
        let mut is_fresh = false;
        let host = match &claimed {
            Some(claimed) => {
                let run = claimed.run();
                lock(&self.meta).shrink_hold(self.geometry, held, run.count);
                is_fresh = run.fresh;
                Some(run.first)
            }
            None => held.reserved,
        };
        let Some(host) = host else {
            unreachable!("either there is space in reserve or it was claimed")
        };
        let start = self.geometry.subcluster_start(held.span.first);
        let at = self
            .geometry
            .host_start(host)
            .plus(start.distance_from(self.geometry.guest_start(held.first)));
        let len = held.span.end_offset(self.geometry).distance_from(start);
        self.provide(at, len, is_fresh, how)
            .await
            .map_err(|e| self.named(Error::io("Could not preallocate data", &e)))?;
        let linked = lock(&self.meta).link_held(self.geometry, held, host, held.span);
        linked.map_err(|e| self.named(e))?;
        if let Some(claimed) = claimed {
            claimed.keep();
        }
        self.make_up_for_redo().await
    }

    /// Makes clusters of the file read as zeros, and takes the space for them that `how` asks for.
    pub(super) async fn provide(
        &self,
        at: HostOffset,
        len: u64,
        is_fresh: bool,
        how: Preallocation,
    ) -> std::io::Result<()> {
        match how {
            Preallocation::Full => {
                let mut done = 0;
                while done < len {
                    let zeros = Payload::zeros(ZERO_WRITE_LEN.min(len - done));
                    self.data_disk().write(at.plus(done), &zeros).await?;
                    done += zeros.len();
                }
                return Ok(());
            }
            _ if !is_fresh => self.data_disk().write_zeroes(at, len).await?,
            _ => {}
        }
        match how {
            Preallocation::Falloc => self.data_disk().allocate(at, len).await,
            _ => Ok(()),
        }
    }
}
