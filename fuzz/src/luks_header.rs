//! Parses any bytes as a LUKS header with its key material, and unlocks it as far as that stays cheap: no input may panic or
//! ask for more memory or work than the limits allow.

use qcow::crypt::Passphrase;
use qcow::crypt::luks::{HEADER_LEN, LuksHeader, Unlock};
use qcow::limits::LUKS_HEADER_BYTES_MAX;

/// Rounds of PBKDF2 that are computed; what asks for more is only parsed.
const ITERATIONS_MAX: u32 = 2000;

/// Parses `bytes`, tells all it says, and tries a passphrase.
pub fn run(bytes: &[u8]) {
    let Ok(header) = LuksHeader::parse(bytes, bytes.len() as u64) else { return };
    // The name in a header ends at its first zero byte, and what lies behind that is kept.
    assert_eq!(header.encode()[..208], bytes[..208]);
    let again = LuksHeader::parse(&header.encode(), bytes.len() as u64).expect("what was encoded");
    assert_eq!(again, header);
    assert!(header.uuid().is_ascii() || !header.uuid().is_empty());
    let _ = (header.cipher().mode_name(), header.hash(), header.payload_offset());
    let cheap = |iterations: u32| iterations <= ITERATIONS_MAX;
    let slots = header.slots();
    if !cheap(header.master_key_iterations()) || !slots.iter().all(|s| cheap(s.iterations)) {
        return;
    }
    let passphrase = Passphrase::read(&b"fuzz"[..]).expect("a passphrase");
    let mut unlock = Unlock::any(&header, &passphrase);
    while let Ok(Some((slot, wanted))) = unlock.wanted() {
        assert!(wanted.start >= HEADER_LEN as u64 && wanted.end <= LUKS_HEADER_BYTES_MAX);
        assert!(slots[slot].active && wanted.end <= bytes.len() as u64);
        let material = &bytes[wanted.start as usize..wanted.end as usize];
        if let Some(key) = unlock.attempt(material) {
            let mut page = [0; 4096];
            key.cipher(&header).encrypt(u64::MAX - 8, &mut page);
            return;
        }
    }
}
