//! Replacing the whole header of an image, its extensions and the name of its backing file included.
//!
//! Fields alone are changed by `write_header` and `commit_header`, in the one sector that holds them all.

use std::sync::atomic::Ordering;

use super::layer::Qcow2;
use super::load::read_bytes;
use crate::addr::HostOffset;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::exec::try_join_all;
use crate::format::header::{Header, HeaderStep};
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::regions::Kind;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

impl<D: Disk> Qcow2<D> {
    /// Makes `new` the header, durably: a crash leaves the old one or the new one. What else relies on fields of it (the
    /// cluster size, the refcount width, the tables' places) is up to the caller, who holds `structure`.
    ///
    /// Feature names and the close mark are left out where there is no room for them, which is logged.
    ///
    /// # Errors
    /// The header contradicts itself, or there is no room for it (`Limit`): nothing has been changed. Or the host failed;
    /// then which header the file has is not known, and the image takes no more writes.
    pub(super) async fn replace_header(&self, new: Header) -> Result<()> {
        let cluster0 = self.read_header_cluster().await?;
        let file_len = self.disk.len().map_err(|e| self.named(Error::io("find the length", &e)))?;
        let plan = new.plan_replacement(&cluster0, file_len).map_err(|e| self.named(e))?;
        if plan.header != new {
            let path = self.path.display();
            tracing::warn!("{path}: its header has no room for all that is there for information");
        }
        if let Err(e) = self.write_header_steps(&plan.steps).await {
            let lost = e.context("the header could not be replaced, the image is read-only now");
            let lost = self.named(lost);
            lock(&self.meta).fail(lost.clone());
            return Err(lost);
        }
        *lock(&self.header) = plan.header;
        if self.marked.load(Ordering::Acquire) {
            self.leave_untied_redo();
        }
        Ok(())
    }

    /// Writes the steps of a change of the header, each durable before the next.
    pub(super) async fn write_header_steps(&self, steps: &[HeaderStep]) -> Result<()> {
        for step in steps {
            let writes = step
                .writes
                .iter()
                .map(|(at, sector)| self.write_metadata(Kind::Header, *at, sector));
            try_join_all(IN_FLIGHT_MAX, writes).await?;
            if !Bug::NoBarrierBetweenHeaderSteps.is_seeded() {
                self.barrier().await?;
            }
        }
        Ok(())
    }

    /// The whole first cluster, as on disk.
    pub(super) async fn read_header_cluster(&self) -> Result<Vec<u8>> {
        let len = self.geometry.cluster_size();
        let read = read_bytes(&self.disk, HostOffset::new(0), len, "header").await;
        read.map_err(|e| self.named(e))
    }
}
