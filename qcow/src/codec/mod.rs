//! Codecs: one cluster in, one cluster out.

mod deflate;
mod zstd;

use crate::error::Result;
use crate::format::compression::CompressionType;

/// Decompresses clusters. Keeps its contexts from one cluster to the next; each thread has its own.
#[derive(Debug, Default)]
pub struct Decompressor {
    deflate: deflate::Inflater,
    zstd: zstd::ZstdDecoder,
}

impl Decompressor {
    /// A decompressor for both types, which allocates nothing until it is used.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fills `dst`, exactly one cluster, from `src`: the compressed bytes and whatever follows them up to the end of
    /// their last sector.
    ///
    /// # Errors
    /// `src` is not valid or does not hold a whole cluster; `dst` then holds anything.
    pub fn decompress(
        &mut self,
        compression: CompressionType,
        src: &[u8],
        dst: &mut [u8],
    ) -> Result<()> {
        match compression {
            CompressionType::Deflate => self.deflate.decompress(src, dst),
            CompressionType::Zstd => self.zstd.decompress(src, dst),
        }
    }
}

#[cfg(test)]
mod tests;
