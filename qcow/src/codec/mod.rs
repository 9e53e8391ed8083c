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
        self.decompress_start(compression, src, dst, dst.len()).map(drop)
    }

    /// As [`Self::decompress`], but only the first `len` bytes are asked for; how many of `dst` are filled, at least those.
    ///
    /// # Errors
    /// `src` is not valid or does not hold as many bytes, as far as that has been seen.
    pub fn decompress_start(
        &mut self,
        compression: CompressionType,
        src: &[u8],
        dst: &mut [u8],
        len: usize,
    ) -> Result<usize> {
        match compression {
            CompressionType::Deflate => self.deflate.decompress(src, &mut dst[..len]).map(|()| len),
            // A cluster is most often one block, which comes out as a whole.
            CompressionType::Zstd => self.zstd.decompress(src, dst).map(|()| dst.len()),
        }
    }
}

/// How hard to compress: more takes longer and gives less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(i32);

impl Level {
    /// The level called `level`: 1 to 9 of deflate, 1 to 22 of zstd.
    pub fn new(compression: CompressionType, level: i32) -> Option<Self> {
        let levels = match compression {
            CompressionType::Deflate => 1..=9,
            CompressionType::Zstd => 1..=zstd_safe::max_c_level(),
        };
        levels.contains(&level).then_some(Self(level))
    }

    /// What QEMU uses.
    pub const fn default_of(compression: CompressionType) -> Self {
        match compression {
            CompressionType::Deflate => Self(6),
            CompressionType::Zstd => Self(3),
        }
    }
}

/// Compresses clusters. Keeps its contexts from one cluster to the next; each thread has its own.
#[derive(Debug, Default)]
pub struct Compressor {
    deflate: deflate::Deflater,
    zstd: zstd::ZstdEncoder,
}

impl Compressor {
    /// A compressor for both types, which allocates nothing until it is used.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `src`, exactly one cluster, to `out` in compressed form; false, and nothing appended, where that takes no
    /// fewer bytes.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn compress(
        &mut self,
        compression: CompressionType,
        level: Level,
        src: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<bool> {
        let start = out.len();
        let room = match compression {
            CompressionType::Deflate => src.len() - 1,
            CompressionType::Zstd => zstd::ZstdEncoder::bound(src.len()),
        };
        out.resize(start + room, 0);
        let dst = &mut out[start..];
        let len = match compression {
            CompressionType::Deflate => self.deflate.compress(level.0 as u32, src, dst),
            CompressionType::Zstd => self.zstd.compress(level.0, src, dst).map(Some),
        };
        let fits = len.as_ref().ok().copied().flatten().filter(|&len| len < src.len());
        out.truncate(start + fits.unwrap_or(0));
        len.map(|_| fits.is_some())
    }
}

#[cfg(test)]
mod tests;
