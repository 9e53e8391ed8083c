//! Buffers full of a pattern, and looking whether a buffer still is.

use qcow::disk::{Buffer, Payload};

/// What a write without a pattern writes.
pub const DEFAULT: u8 = 0xcd;
/// Bytes that are filled or looked at in one go.
const STEP: u64 = 64 << 10;

/// `len` bytes of `byte`.
pub fn filled(len: u64, byte: u8) -> Payload {
    let step = vec![byte; STEP.min(len) as usize];
    repeated(len, &step)
}

/// `len` bytes of `bytes` over and over; `bytes` is not empty unless `len` is 0.
pub fn repeated(len: u64, bytes: &[u8]) -> Payload {
    let payload = Buffer::zeroed(len as usize).payload();
    let mut at = 0;
    while at < len {
        let piece = (bytes.len() as u64).min(len - at);
        payload.copy_from(at, &bytes[..piece as usize]);
        at += piece;
    }
    payload
}

/// Whether all `len` bytes of `payload` from `offset` on are `byte`.
pub fn is_filled(payload: &Payload, offset: u64, len: u64, byte: u8) -> bool {
    let mut step = vec![0; STEP.min(len) as usize];
    let mut at = 0;
    while at < len {
        let piece = &mut step[..STEP.min(len - at) as usize];
        payload.copy_to(offset + at, piece);
        if piece.iter().any(|&other| other != byte) {
            return false;
        }
        at += piece.len() as u64;
    }
    true
}
