//! Raw deflate, without the header and checksum of zlib or gzip.

use std::fmt;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::error::{Error, Result};

/// log2 of the window that compressed clusters may reach back, as QEMU writes them: a reader may rely on it.
const WINDOW_BITS: u8 = 12;

/// A reusable deflate decoder.
#[derive(Debug, Default)]
pub(super) struct Inflater {
    state: Option<Decompress>,
}

impl Inflater {
    /// Fills `dst` from `src`. What follows in `src` once `dst` is full does not matter, nor does a stream that would
    /// go on: the stored length of a compressed cluster is only an upper bound.
    pub(super) fn decompress(&mut self, src: &[u8], dst: &mut [u8]) -> Result<()> {
        let state = self.state.get_or_insert_with(|| Decompress::new(false));
        state.reset(false);
        // One call over the whole output: streams may reach back further than the 4 KiB window of QEMU's encoder.
        state
            .decompress(src, dst, FlushDecompress::Finish)
            .map_err(|error| Error::corrupt(format!("invalid deflate data: {error}")))?;
        let produced = state.total_out();
        if produced != dst.len() as u64 {
            return Err(Error::corrupt(format!(
                "the deflate data ends after {produced} of {} bytes",
                dst.len()
            )));
        }
        Ok(())
    }
}

/// A reusable deflate encoder.
#[derive(Default)]
pub(super) struct Deflater {
    state: Option<(u32, Compress)>,
}

impl Deflater {
    /// Compresses `src` into the start of `dst`: how many bytes that takes, or `None` where they do not fit.
    pub(super) fn compress(
        &mut self,
        level: u32,
        src: &[u8],
        dst: &mut [u8],
    ) -> Result<Option<usize>> {
        if self.state.as_ref().is_none_or(|(of, _)| *of != level) {
            let encoder =
                Compress::new_with_window_bits(Compression::new(level), false, WINDOW_BITS);
            self.state = Some((level, encoder));
        }
        let Some((_, state)) = &mut self.state else { return Ok(None) };
        state.reset();
        let status = state.compress(src, dst, FlushCompress::Finish);
        match status.map_err(|error| Error::invalid(format!("deflate failed: {error}")))? {
            Status::StreamEnd => Ok(Some(state.total_out() as usize)),
            Status::Ok | Status::BufError => {
                // A reset does not take back what is waiting for room: a later stream would run over (zlib-rs 0.6.8).
                self.state = None;
                Ok(None)
            }
        }
    }
}

impl fmt::Debug for Deflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deflater").finish_non_exhaustive()
    }
}
