//! The master key of a LUKS header, put together step by step as LUKS describes it: to look for where it must not be.

use qcow::crypt::{CipherSpec, Hash, SectorCipher};

const STRIPES: usize = 4000;
const DIGEST_LEN: usize = 20;

/// The key that `passphrase` opens in slot 0 of the header which `file` has somewhere: of AES-256 in XTS, with SHA-256.
pub fn master_key(file: &[u8], passphrase: &[u8]) -> Vec<u8> {
    let start = file.windows(8).position(|window| window == b"LUKS\xba\xbe\0\x01");
    let volume = &file[start.expect("a LUKS header")..];
    let word = |at: usize| u32::from_be_bytes(*volume[at..].first_chunk().expect("a header"));
    let cipher = CipherSpec::DEFAULT;
    let len = cipher.key_len();
    assert_eq!(word(108) as usize, len);

    let mut slot_key = vec![0; len];
    Hash::Sha256.pbkdf2(passphrase, &volume[216..248], word(212), &mut slot_key);
    let at = word(248) as usize * 512;
    let mut stripes = volume[at..at + len * STRIPES].to_vec();
    SectorCipher::new(cipher, &slot_key).decrypt(0, &mut stripes);
    let mut key = vec![0; len];
    for (number, stripe) in stripes.chunks(len).enumerate() {
        key.iter_mut().zip(stripe).for_each(|(byte, with)| *byte ^= with);
        if number + 1 < STRIPES {
            diffuse(&mut key);
        }
    }

    let mut digest = [0; DIGEST_LEN];
    Hash::Sha256.pbkdf2(&key, &volume[132..164], word(164), &mut digest);
    assert_eq!(digest, volume[112..132], "the master key");
    key
}

fn diffuse(key: &mut [u8]) {
    let mut digest = [0; 64];
    for (number, part) in (0_u32..).zip(key.chunks_mut(Hash::Sha256.digest_len())) {
        Hash::Sha256.digest(&[&number.to_be_bytes(), part], &mut digest);
        part.copy_from_slice(&digest[..part.len()]);
    }
}
