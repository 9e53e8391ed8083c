//! What happens when a change meets damage: the request fails, the image takes no more writes, and its header says so.
//!
//! Only what was about to be changed is judged here. A read that meets damage fails alone, and so does an I/O error:
//! neither says that a further write would make things worse.

use super::layer::Qcow2;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::feature::Incompatible;
use crate::format::header::Version;
use crate::sync::lock;

impl<D: Disk> Qcow2<D> {
    /// Carries out a step of a change. Where it finds the image corrupt, the image is condemned before the step fails.
    /// Not to be called by who holds `structure`.
    pub(super) async fn guarded<T>(&self, step: impl Future<Output = Result<T>>) -> Result<T> {
        match step.await {
            Err(e) if e.kind() == ErrorKind::Corrupt => Err(Box::pin(self.condemn(e)).await),
            result => result,
        }
    }

    /// Turns the image read-only for good; the error for the request that found out.
    async fn condemn(&self, found: Error) -> Error {
        let found = self.named(found);
        let found = {
            let mut meta = lock(&self.meta);
            if meta.check_writable().is_ok() {
                let path = self.path.display();
                tracing::error!("{path}: corrupt, and read-only from now on: {found}");
                let reason = found.context(
                    "the image is corrupt and takes no more writes (repair: 'qemu-img check -r all')",
                );
                meta.fail(reason.clone());
                reason
            } else {
                found
            }
        };
        if let Err(e) = self.mark_corrupt().await {
            tracing::warn!("the corrupt bit could not be set: {e}");
        }
        found
    }

    /// Sets the corrupt bit durably, unless that has been done.
    async fn mark_corrupt(&self) -> Result<()> {
        let _structure = self.structure.acquire().await;
        let mut header = lock(&self.header).clone();
        if header.version == Version::V2 || header.incompatible.contains(Incompatible::CORRUPT) {
            return Ok(());
        }
        header.incompatible = header.incompatible.with(Incompatible::CORRUPT);
        self.write_header(header).await?;
        self.barrier().await
    }
}
