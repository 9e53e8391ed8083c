//! What a root names beside its tree: some bytes in a row of blocks.

use super::{Sealed, write_blocks};
use crate::disk::{Buffer, Disk};
use crate::error::{Error, Result};
use crate::format::sealed::entry::{Entry, Stored};
use crate::format::sealed::{Generation, blocks_for};
use crate::limits::SEALED_BLOB_BYTES_MAX;

impl<D: Disk> Sealed<D> {
    /// Writes `bytes` to claimed blocks `first` and following, which they fill; what leads to them.
    pub(super) async fn write_blob(
        &self,
        level: u8,
        bytes: &[u8],
        first: crate::addr::HostBlock,
        born: Generation,
    ) -> Result<Entry> {
        let mut sealed = bytes.to_vec();
        let seal = self.seal(level, 0, &mut sealed);
        sealed.resize((blocks_for(bytes.len() as u64) * super::BLOCK_LEN) as usize, 0);
        write_blocks(&self.disk, first, &Buffer::from_bytes(&sealed), &self.path).await?;
        let len = bytes.len() as u32;
        Ok(Entry::Stored(Stored { place: first, len, compressed: false, born, seal }))
    }

    /// The bytes of a blob.
    ///
    /// # Errors
    /// It does not open, is too large, or cannot be read.
    pub(super) async fn read_blob(&self, level: u8, stored: &Stored) -> Result<Vec<u8>> {
        if u64::from(stored.len) > SEALED_BLOB_BYTES_MAX {
            return Err(self.named(Error::limit(format!("{} bytes of details", stored.len))));
        }
        Ok(self.read_stored(level, 0, stored).await?.to_vec())
    }
}
