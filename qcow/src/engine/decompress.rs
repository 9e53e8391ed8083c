//! Reading compressed clusters: each is unpacked once for as long as small reads keep coming back to it.

use super::layer::Qcow2;
use super::unpack::Task;
use crate::disk::{Buffer, Disk, Payload};
use crate::encrypted::Stored;
use crate::error::{Error, Result};
use crate::format::entry::CompressedExtent;
use crate::limits::DECODED_BYTES_MIN;
use crate::meta::decoded::Decoded;
use crate::sync::lock;

impl<D: Disk> Qcow2<D> {
    /// Fills `into` with the bytes from `skip` on of the cluster whose compressed bytes lie at `extent`. The caller is inside
    /// the drain.
    pub(super) async fn read_compressed(
        &self,
        extent: CompressedExtent,
        skip: u64,
        into: &Payload,
    ) -> Result<()> {
        let cluster_len = self.geometry.cluster_size() as usize;
        let skip = skip as usize;
        let end = skip + into.len() as usize;
        if skip == 0 && end == cluster_len {
            // Whoever reads whole clusters does not come back for a part of one.
            return self.unpack_into(extent, into).await;
        }
        let found = self.wait(|meta| meta.decoded.get(extent, end)).await;
        let bytes = match found {
            Decoded::Ready(bytes) => bytes,
            Decoded::Unpack { whole } => {
                let mut unpacking = Unpacking { image: self, extent, bytes: None };
                let len = if whole { cluster_len } else { end.max(DECODED_BYTES_MIN) };
                let unpacked = self.unpack(extent, len.min(cluster_len)).await?;
                unpacking.bytes = Some(unpacked.clone());
                unpacked
            }
        };
        into.copy_from_payload(&bytes.payload().slice(skip as u64, into.len()));
        Ok(())
    }

    /// Unpacks all of a cluster to `into`, which is as long.
    async fn unpack_into(&self, extent: CompressedExtent, into: &Payload) -> Result<()> {
        let unpacked = self.unpack(extent, into.len() as usize).await?;
        into.copy_from_payload(&unpacked.payload());
        Ok(())
    }

    /// Unpacks at least the first `len` bytes of a cluster: what there is.
    async fn unpack(&self, extent: CompressedExtent, len: usize) -> Result<Buffer> {
        let task = self.read_packed(extent, len).await?;
        let unpacked = match self.unpackers.for_clusters_of(task.cluster_len()) {
            Some(pool) => pool.unpack(task).await,
            None => task.run(),
        };
        unpacked.map_err(|e| self.unpack_error(extent, e))
    }

    /// Reads the compressed bytes of a cluster of which the first `len` bytes are needed.
    async fn read_packed(&self, extent: CompressedExtent, len: usize) -> Result<Task> {
        // The length is an upper bound of at most two clusters, whatever the image says.
        let packed = Buffer::scratch(extent.len as usize);
        // Whoever compresses into an encrypted image leaves such clusters clear.
        self.read_stored(extent.offset, &packed.payload()).await?;
        let cluster_len = self.geometry.cluster_size() as usize;
        Ok(Task::new(self.compression, packed, cluster_len, len))
    }

    fn unpack_error(&self, extent: CompressedExtent, error: Error) -> Error {
        self.named(error.context(format!("the compressed cluster at {}", extent.offset)))
    }
}

/// A cluster that is being unpacked; dropped early, it lets somebody else try.
struct Unpacking<'a, D: Disk> {
    image: &'a Qcow2<D>,
    extent: CompressedExtent,
    bytes: Option<Buffer>,
}

impl<D: Disk> Drop for Unpacking<'_, D> {
    fn drop(&mut self) {
        lock(&self.image.meta).decoded.finish(self.extent, self.bytes.take());
        self.image.changed.wake_all();
    }
}
