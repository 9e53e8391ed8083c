//! Published vectors, and a plain reference that goes one block at a time.

use aes::cipher::BlockCipherDecrypt;
use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let text: String = text.split_whitespace().collect();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn xts(aes: Aes) -> CipherSpec {
    CipherSpec::new(aes, Mode::Xts, Iv::Plain64).unwrap()
}

/// IEEE 1619-2007, Annex B: vectors 4 (XTS-AES-128) and 10 (XTS-AES-256), of whole sectors of 512 bytes: the plain text
/// counts up from 0 twice.
#[test]
fn xts_gives_the_sectors_of_ieee_1619() {
    let plain: Vec<u8> = (0..=255).chain(0..=255).collect();
    let key4 = hex("27182818284590452353602874713526 31415926535897932384626433832795");
    let key10 = hex("2718281828459045235360287471352662497757247093699959574966967627
         3141592653589793238462643383279502884197169399375105820974944592");
    let cases = [
        (
            xts(Aes::Aes128),
            key4,
            0,
            "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c",
            "eb4a427d1923ce3ff262735779a418f20a282df920147beabe421ee5319d0568",
        ),
        (
            xts(Aes::Aes256),
            key10,
            0xff,
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
            "773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151",
        ),
    ];
    for (spec, key, sector, start, end) in cases {
        let cipher = SectorCipher::new(spec, &key);
        let mut bytes = plain.clone();
        cipher.encrypt(sector, &mut bytes);
        assert_eq!((&bytes[..32], &bytes[480..]), (&hex(start)[..], &hex(end)[..]));
        cipher.decrypt(sector, &mut bytes);
        assert_eq!(bytes, plain);
    }
}

/// Plain AES, a block at a time.
enum OneBlock {
    A128(Aes128),
    A192(Aes192),
    A256(Aes256),
}

impl OneBlock {
    fn new(key: &[u8]) -> Self {
        match key.len() {
            16 => Self::A128(Aes128::new_from_slice(key).unwrap()),
            24 => Self::A192(Aes192::new_from_slice(key).unwrap()),
            _ => Self::A256(Aes256::new_from_slice(key).unwrap()),
        }
    }

    fn encrypt(&self, block: &mut [u8; 16]) {
        let block = (&mut *block).into();
        match self {
            Self::A128(aes) => aes.encrypt_block(block),
            Self::A192(aes) => aes.encrypt_block(block),
            Self::A256(aes) => aes.encrypt_block(block),
        }
    }

    fn decrypt(&self, block: &mut [u8; 16]) {
        let block = (&mut *block).into();
        match self {
            Self::A128(aes) => aes.decrypt_block(block),
            Self::A192(aes) => aes.decrypt_block(block),
            Self::A256(aes) => aes.decrypt_block(block),
        }
    }
}

fn xor(a: &mut [u8; 16], b: &[u8; 16]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
}

/// The standard's doubling, byte by byte.
fn double(tweak: &mut [u8; 16]) {
    let mut carry = 0;
    for byte in tweak.iter_mut() {
        let next = *byte >> 7;
        *byte = *byte << 1 | carry;
        carry = next;
    }
    if carry == 1 {
        tweak[0] ^= 0x87;
    }
}

/// One sector, as the definitions read.
fn reference(spec: CipherSpec, key: &[u8], sector: u64, bytes: &mut [u8], encrypt: bool) {
    let mut iv = [0; 16];
    match spec.iv() {
        Iv::Plain => iv[..4].copy_from_slice(&(sector as u32).to_le_bytes()),
        _ => iv[..8].copy_from_slice(&sector.to_le_bytes()),
    }
    if let Iv::Essiv(hash) = spec.iv() {
        let mut digest = [0; DIGEST_BYTES_MAX];
        hash.digest(&[key], &mut digest);
        OneBlock::new(&digest[..hash.digest_len()]).encrypt(&mut iv);
    }
    let (blocks, _) = bytes.as_chunks_mut::<16>();
    if spec.mode() == Mode::Xts {
        let (data, tweak) = key.split_at(key.len() / 2);
        let (data, mut current) = (OneBlock::new(data), iv);
        OneBlock::new(tweak).encrypt(&mut current);
        for block in blocks {
            xor(block, &current);
            match encrypt {
                true => data.encrypt(block),
                false => data.decrypt(block),
            }
            xor(block, &current);
            double(&mut current);
        }
        return;
    }
    let data = OneBlock::new(key);
    for block in blocks {
        if encrypt {
            xor(block, &iv);
            data.encrypt(block);
            iv = *block;
        } else {
            let before = std::mem::replace(&mut iv, *block);
            data.decrypt(block);
            xor(block, &before);
        }
    }
}

fn any_spec() -> impl Strategy<Value = CipherSpec> {
    let aes = prop_oneof![Just(Aes::Aes128), Just(Aes::Aes192), Just(Aes::Aes256)];
    let mode = prop_oneof![Just(Mode::Xts), Just(Mode::Cbc)];
    let iv = prop_oneof![Just(Iv::Plain), Just(Iv::Plain64), Just(Iv::Essiv(Hash::Sha256))];
    (aes, mode, iv).prop_map(|(aes, mode, iv)| CipherSpec::new(aes, mode, iv).unwrap())
}

proptest! {
    #[test]
    fn many_sectors_at_a_time_are_as_one_block_at_a_time(
        spec in any_spec(),
        key in prop::collection::vec(any::<u8>(), KEY_BYTES_MAX),
        sector in prop_oneof![0..40_u64, (1_u64 << 32) - 20..(1 << 32) + 20, 0..u64::MAX / 2],
        count in 1..40_usize,
        seed in any::<u8>(),
    ) {
        let key = &key[..spec.key_len()];
        let plain: Vec<u8> =
            (0..count * SECTOR_LEN).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect();
        let cipher = SectorCipher::new(spec, key);
        let mut bytes = plain.clone();
        cipher.encrypt(sector, &mut bytes);
        let mut expected = plain.clone();
        for (one, number) in expected.chunks_mut(SECTOR_LEN).zip(sector..) {
            reference(spec, key, number, one, true);
        }
        prop_assert_eq!(&bytes, &expected);
        cipher.decrypt(sector, &mut bytes);
        prop_assert_eq!(&bytes, &plain);
        let mut back = expected;
        for (one, number) in back.chunks_mut(SECTOR_LEN).zip(sector..) {
            reference(spec, key, number, one, false);
        }
        prop_assert_eq!(&back, &plain);
    }
}

#[test]
fn names_are_parsed_and_given_back() {
    let cases = [
        ("xts-plain64", 64, "aes-256", "xts-plain64"),
        ("xts-plain64", 32, "aes-128", "xts-plain64"),
        ("xts-plain", 48, "aes-192", "xts-plain"),
        ("cbc-essiv:sha256", 16, "aes-128", "cbc-essiv:sha256"),
        ("cbc-plain64:sha1", 32, "aes-256", "cbc-plain64"),
    ];
    for (mode, key_len, aes, written) in cases {
        let spec = CipherSpec::parse("aes", mode, key_len).unwrap();
        assert_eq!((spec.aes().to_string().as_str(), spec.key_len()), (aes, key_len));
        assert_eq!(spec.mode_name(), written);
    }
    let refused = [
        ("aes", "xts", 64, "Unexpected cipher mode string format 'xts'"),
        ("aes", "ctr-plain64", 32, "Cipher mode 'ctr' is not supported"),
        ("aes", "xts-plain64", 65, "Algorithm 'aes' with key size 32 bytes not supported"),
        ("aes", "xts-plain64", 16, "Algorithm 'aes' with key size 8 bytes not supported"),
        ("serpent", "cbc-plain64", 32, "Algorithm 'serpent' with key size 32 bytes not supported"),
        ("aes", "cbc-benbi", 32, "IV generator 'benbi' is not supported"),
        ("aes", "cbc-essiv", 32, "Missing IV generator hash specification"),
        ("aes", "cbc-essiv:md5", 32, "Hash algorithm 'md5' is not supported"),
        ("aes", "cbc-essiv:sha1", 32, "No AES cipher with key size 20 available"),
        (
            "\u{1b}[2J",
            "cbc-plain",
            32,
            "Algorithm '\\u{1b}[2J' with key size 32 bytes not supported",
        ),
    ];
    for (name, mode, key_len, message) in refused {
        let error = CipherSpec::parse(name, mode, key_len).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let cipher = SectorCipher::new(CipherSpec::DEFAULT, &[7; 64]);
    assert_eq!(format!("{cipher:?}"), "(secret)");
}
