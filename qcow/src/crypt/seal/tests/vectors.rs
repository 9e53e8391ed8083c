//! Published vectors of AES-256-GCM and XAES-256-GCM.

use super::super::gcm;
use super::super::xaes::Xaes;
use super::shake::Shake128;

fn hex(text: &str) -> Vec<u8> {
    let text: String = text.split_whitespace().collect();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("a vector of that length")
}

/// McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B: test cases 13 to 16.
#[test]
fn gcm_gives_what_its_authors_published() {
    let key = "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308";
    let plain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
        1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255";
    let sealed = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
        8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad";
    let nonce = "cafebabefacedbaddecaf888";
    let associated = "feedfacedeadbeeffeedfacedeadbeefabaddad2";
    let zero = |count: usize| "00".repeat(count);
    let cases = [
        (&*zero(32), &*zero(12), 0, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
        (
            &zero(32),
            &zero(12),
            16,
            &zero(16),
            "",
            "cea7403d4d606b6e074ec5d3baf39d18",
            "d0d1c8a799996bf0265b98b5d48ab919",
        ),
        (key, nonce, 64, plain, "", sealed, "b094dac5d93471bdec1a502270e3cc6c"),
        (key, nonce, 60, plain, associated, sealed, "76fc6ece0f4e1768cddf8853bb2d551b"),
    ];
    for (key, nonce, len, plain, associated, sealed, tag) in cases {
        let (key, nonce, tag) = (array(&hex(key)), array(&hex(nonce)), array(&hex(tag)));
        let associated = hex(associated);
        let mut bytes = hex(plain)[..len].to_vec();
        assert_eq!(gcm::seal(&key, &nonce, &associated, &mut bytes), tag);
        assert_eq!(bytes, hex(sealed)[..len]);
        assert!(gcm::open(&key, &nonce, &associated, &mut bytes, &tag));
        assert_eq!(bytes, hex(plain)[..len]);
    }
}

/// C2SP, "The XAES-256-GCM extended-nonce AEAD", test vectors: without and with an overflow of the doubling.
#[test]
fn xaes_gives_what_its_specification_has() {
    let cases = [
        (1, "", "ce546ef63c9cc60765923609", "b33a9a1974e96e52daf2fcf7075e2271"),
        (
            3,
            "c2sp.org/XAES-256-GCM",
            "986ec1832593df5443a17943",
            "7fd083bf3fdb41abd740a21f71eb769d",
        ),
    ];
    for (key, associated, sealed, tag) in cases {
        let xaes = Xaes::new(&[key; 32]);
        let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
        let mut bytes = *b"XAES-256-GCM";
        let made = xaes.seal(nonce, associated.as_bytes(), &mut bytes);
        assert_eq!((&bytes[..], &made[..]), (&hex(sealed)[..], &hex(tag)[..]));
        assert!(xaes.open(nonce, associated.as_bytes(), &mut bytes, &made));
        assert_eq!(&bytes, b"XAES-256-GCM");
    }
}

/// The same, accumulated randomized tests: 10,000 messages of up to 255 bytes.
#[test]
fn xaes_gives_what_its_specification_accumulates() {
    let (mut random, mut hash) = (Shake128::default(), Shake128::default());
    let mut read = |len: usize| {
        let mut bytes = vec![0; len];
        random.read(&mut bytes);
        bytes
    };
    for _ in 0..10_000 {
        let (key, nonce) = (array(&read(32)), array(&read(24)));
        let len = read(1)[0];
        let plain = read(len.into());
        let len = read(1)[0];
        let associated = read(len.into());
        let xaes = Xaes::new(&key);
        let mut bytes = plain.clone();
        let tag = xaes.seal(&nonce, &associated, &mut bytes);
        hash.add(&bytes);
        hash.add(&tag);
        assert!(xaes.open(&nonce, &associated, &mut bytes, &tag));
        assert_eq!(bytes, plain);
    }
    let mut digest = [0; 32];
    hash.read(&mut digest);
    let published = "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939";
    assert_eq!(digest[..], hex(published));
}
