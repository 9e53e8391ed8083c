//! Reading compressed clusters: each is unpacked once for as long as small reads keep coming back to it.

use std::cell::RefCell;
use std::sync::Arc;

use super::layer::Qcow2;
use crate::codec::Decompressor;
use crate::disk::{Buffer, Disk, Payload};
use crate::error::Result;
use crate::format::entry::CompressedExtent;
use crate::limits::DECODED_BYTES_MIN;
use crate::meta::decoded::Decoded;
use crate::sync::lock;

thread_local! {
    /// Contexts are large and slow to make: one set for each thread.
    static UNPACKER: RefCell<Unpacker> = RefCell::new(Unpacker::default());
}

/// What unpacking takes.
#[derive(Default)]
struct Unpacker {
    decompressor: Decompressor,
    /// Room for one cluster.
    cluster: Vec<u8>,
}

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
            return self.unpack(extent, cluster_len, |cluster| into.copy_from(0, cluster)).await;
        }
        let found = self.wait(|meta| meta.decoded.get(extent, end)).await;
        let bytes = match found {
            Decoded::Ready(bytes) => bytes,
            Decoded::Unpack { whole } => {
                let mut unpacking = Unpacking { image: self, extent, bytes: None };
                let len = if whole { cluster_len } else { end.max(DECODED_BYTES_MIN) };
                let unpacked =
                    self.unpack(extent, len.min(cluster_len), |bytes| Arc::from(bytes)).await?;
                unpacking.bytes = Some(Arc::clone(&unpacked));
                unpacked
            }
        };
        into.copy_from(0, &bytes[skip..end]);
        Ok(())
    }

    /// Unpacks at least the first `len` bytes of a cluster, and hands what there is to `take`.
    async fn unpack<T>(
        &self,
        extent: CompressedExtent,
        len: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T> {
        // The length is an upper bound of at most two clusters, whatever the image says.
        let mut packed = Buffer::zeroed(extent.len as usize);
        self.read_data(extent.offset, &packed.payload()).await?;
        let packed = packed.make_mut();
        UNPACKER.with_borrow_mut(|Unpacker { decompressor, cluster }| {
            cluster.resize(self.geometry.cluster_size() as usize, 0);
            let filled = decompressor.decompress_start(self.compression, packed, cluster, len);
            let filled = filled.map_err(|e| {
                self.named(e.context(format!("the compressed cluster at {}", extent.offset)))
            })?;
            Ok(take(&cluster[..filled]))
        })
    }
}

/// A cluster that is being unpacked; dropped early, it lets somebody else try.
struct Unpacking<'a, D: Disk> {
    image: &'a Qcow2<D>,
    extent: CompressedExtent,
    bytes: Option<Arc<[u8]>>,
}

impl<D: Disk> Drop for Unpacking<'_, D> {
    fn drop(&mut self) {
        lock(&self.image.meta).decoded.finish(self.extent, self.bytes.take());
        self.image.changed.wake_all();
    }
}
