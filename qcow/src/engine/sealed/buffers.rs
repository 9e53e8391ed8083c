//! Memory of our own that sealed clusters go through.

use crate::disk::{Buffer, Payload};

/// Bytes that are read or written at a time, in buffers of our own.
pub(super) const PIECE_LEN: u64 = 1 << 20;
/// Bytes of such a buffer: as many as one has that is kept for the next one.
const BUFFER_LEN: u64 = 64 << 10;

/// Buffers for so many bytes, of a size that is kept for the next ones.
pub(super) fn buffers_for(len: u64) -> Vec<Buffer> {
    let starts = (0..len).step_by(BUFFER_LEN as usize);
    starts.map(|start| Buffer::scratch((len - start).min(BUFFER_LEN) as usize)).collect()
}

/// The bytes of `buffers`, one behind the other.
pub(super) fn joined(buffers: &[Buffer]) -> Payload {
    match buffers {
        [buffer] => buffer.payload(),
        _ => Payload::concat(buffers.iter().map(Buffer::payload).collect()),
    }
}
