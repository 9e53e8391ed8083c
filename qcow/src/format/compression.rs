//! The compression type of an image: one for all its compressed clusters (header field `compression_type`).

/// How the image's compressed clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CompressionType {
    /// Raw deflate without any header; on disk 0, and in version 2 always.
    #[default]
    Deflate,
    /// Zstandard frames; on disk 1.
    Zstd,
}

impl CompressionType {
    /// The type behind the on-disk value, if it is a known one.
    pub const fn from_disk(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Deflate),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The on-disk value.
    pub const fn to_disk(self) -> u8 {
        match self {
            Self::Deflate => 0,
            Self::Zstd => 1,
        }
    }

    /// The name that command lines and `info` use: `zlib` or `zstd`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deflate => "zlib",
            Self::Zstd => "zstd",
        }
    }
}
