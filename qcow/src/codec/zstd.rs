//! Zstandard frames.

use std::fmt;

use zstd_safe::{CCtx, CParameter, DCtx};

use crate::error::{Error, ErrorKind, Result};

/// A reusable zstd decoder.
#[derive(Default)]
pub(super) struct ZstdDecoder {
    context: Option<DCtx<'static>>,
}

impl ZstdDecoder {
    /// Fills `dst` from the frames at the start of `src`. What follows in `src` once `dst` is full does not matter;
    /// the last frame, unlike a deflate stream, must end just there.
    ///
    /// Each frame is decoded in one call, straight into `dst`: then the decoder allocates no window, however large a
    /// one the frame demands.
    pub(super) fn decompress(&mut self, src: &[u8], dst: &mut [u8]) -> Result<()> {
        let context = self.context()?;
        let (mut src, mut filled) = (src, 0);
        while filled < dst.len() {
            if src.is_empty() {
                return Err(Error::corrupt(format!(
                    "the zstd data ends after {filled} of {} bytes",
                    dst.len()
                )));
            }
            let frame_len = zstd_safe::find_frame_compressed_size(src).map_err(invalid)?;
            let (frame, rest) = src
                .split_at_checked(frame_len)
                .ok_or_else(|| Error::corrupt("invalid zstd data: a frame is cut off"))?;
            filled += context.decompress(&mut dst[filled..], frame).map_err(invalid)?;
            src = rest;
        }
        Ok(())
    }

    fn context(&mut self) -> Result<&mut DCtx<'static>> {
        if self.context.is_none() {
            self.context = DCtx::try_create();
        }
        self.context
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Limit, "no memory for a zstd decoder"))
    }
}

impl fmt::Debug for ZstdDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZstdDecoder").finish_non_exhaustive()
    }
}

/// A reusable zstd encoder.
#[derive(Default)]
pub(super) struct ZstdEncoder {
    context: Option<CCtx<'static>>,
}

impl ZstdEncoder {
    /// Bytes that the result of compressing `len` bytes may take.
    pub(super) fn bound(len: usize) -> usize {
        zstd_safe::compress_bound(len)
    }

    /// Compresses `src` to one frame at the start of `dst`, which has room for [`Self::bound`] bytes; the frame's length.
    pub(super) fn compress(&mut self, level: i32, src: &[u8], dst: &mut [u8]) -> Result<usize> {
        if self.context.is_none() {
            self.context = CCtx::try_create();
        }
        let context = self
            .context
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Limit, "no memory for a zstd encoder"))?;
        let set = context.set_parameter(CParameter::CompressionLevel(level));
        set.and_then(|_| context.compress2(dst, src)).map_err(|code| {
            let reason = zstd_safe::get_error_name(code);
            Error::new(ErrorKind::Limit, format!("zstd failed: {reason}"))
        })
    }
}

impl fmt::Debug for ZstdEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZstdEncoder").finish_non_exhaustive()
    }
}

fn invalid(code: usize) -> Error {
    Error::corrupt(format!("invalid zstd data: {}", zstd_safe::get_error_name(code)))
}
