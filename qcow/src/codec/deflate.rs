//! Raw deflate, without the header and checksum of zlib or gzip.

use flate2::{Decompress, FlushDecompress};

use crate::error::{Error, Result};

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
