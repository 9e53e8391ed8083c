//! Encrypted sectors on their way between a file and the memory of whoever asked, a page at a time.

use super::cipher::{PAGE_LEN, SECTOR_LEN, SectorCipher};
use crate::disk::{Buffer, Payload};

const SECTOR: u64 = SECTOR_LEN as u64;

/// Whether `len` bytes at `at` are whole sectors.
pub fn is_whole(at: u64, len: u64) -> bool {
    at.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR)
}

/// The whole sectors that `len` bytes at `at` touch: how far in front of `at` they start, and their length.
pub fn around(at: u64, len: u64) -> (u64, u64) {
    let skip = at % SECTOR;
    (skip, (skip + len).next_multiple_of(SECTOR))
}

/// Decrypts `bytes`, whole sectors of which the first has the number `sector`, and copies them into `into`, which is as long.
pub fn decrypt_into(cipher: &SectorCipher, sector: u64, bytes: &mut [u8], into: &Payload) {
    for (page, at) in bytes.chunks_mut(PAGE_LEN).zip((0..).step_by(PAGE_LEN)) {
        cipher.decrypt(sector + at / SECTOR, page);
        into.copy_from(at, page);
    }
}

/// A copy of `payload`, whole sectors of which the first has the number `sector`, encrypted. Each byte is read once.
pub fn encrypted_copy(cipher: &SectorCipher, sector: u64, payload: &Payload) -> Payload {
    let mut buffer = Buffer::scratch(payload.len() as usize);
    let bytes = buffer.make_mut();
    let mut at = 0;
    while at < payload.len() {
        let len = (payload.len() - at).min(PAGE_LEN as u64);
        let page = &mut bytes[at as usize..(at + len) as usize];
        payload.copy_to(at, page);
        cipher.encrypt(sector + at / SECTOR, page);
        at += len;
    }
    buffer.payload()
}
