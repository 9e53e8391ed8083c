//! Hashes by name, and PBKDF2 with them.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::Zeroize;

use super::locked::scrubbing;

/// Bytes of the longest digest.
pub const DIGEST_BYTES_MAX: usize = 64;

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// All of them, by name.
const NAMES: [(Hash, &str); 5] = [
    (Hash::Sha1, "sha1"),
    (Hash::Sha224, "sha224"),
    (Hash::Sha256, "sha256"),
    (Hash::Sha384, "sha384"),
    (Hash::Sha512, "sha512"),
];

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(hash, _)| hash == self).map(|(_, name)| *name);
        f.write_str(name.unwrap_or_default())
    }
}

impl FromStr for Hash {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let found = NAMES.iter().find(|(_, known)| *known == name);
        found.map(|(hash, _)| *hash).ok_or(())
    }
}

impl Hash {
    /// Bytes of a digest.
    pub fn digest_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Puts the digest of `parts`, one behind the other, into the start of `out`.
    pub fn digest(self, parts: &[&[u8]], out: &mut [u8; DIGEST_BYTES_MAX]) {
        match self {
            Self::Sha1 => digest::<Sha1>(parts, out),
            Self::Sha224 => digest::<Sha224>(parts, out),
            Self::Sha256 => digest::<Sha256>(parts, out),
            Self::Sha384 => digest::<Sha384>(parts, out),
            Self::Sha512 => digest::<Sha512>(parts, out),
        }
    }

    /// How many times PBKDF2 computes an HMAC for `len` bytes of key.
    pub fn pbkdf2_work(self, iterations: u32, len: usize) -> u64 {
        u64::from(iterations) * len.div_ceil(self.digest_len()) as u64
    }

    /// Fills `out` with a key made of `password` (PBKDF2 with this hash's HMAC).
    pub fn pbkdf2(self, password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
        // Wiped once: doing so after each of the many rounds would make every guess of an attacker the cheaper one.
        scrubbing(|| match self {
            Self::Sha1 => pbkdf2::<Hmac<Sha1>>(password, salt, iterations, out),
            Self::Sha224 => pbkdf2::<Hmac<Sha224>>(password, salt, iterations, out),
            Self::Sha256 => pbkdf2::<Hmac<Sha256>>(password, salt, iterations, out),
            Self::Sha384 => pbkdf2::<Hmac<Sha384>>(password, salt, iterations, out),
            Self::Sha512 => pbkdf2::<Hmac<Sha512>>(password, salt, iterations, out),
        });
    }
}

fn digest<D: Digest>(parts: &[&[u8]], out: &mut [u8; DIGEST_BYTES_MAX]) {
    let mut state = D::new();
    parts.iter().for_each(|part| state.update(part));
    let mut digest = state.finalize();
    out[..digest.len()].copy_from_slice(&digest);
    digest.zeroize();
}

/// RFC 8018, section 5.2.
fn pbkdf2<M: Mac + KeyInit + Clone>(password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
    let keyed = <M as KeyInit>::new_from_slice(password).expect("HMAC takes keys of any length");
    for (number, block) in (1_u32..).zip(out.chunks_mut(M::output_size())) {
        let first = keyed.clone().chain_update(salt).chain_update(number.to_be_bytes());
        let mut last = first.finalize().into_bytes();
        let mut sum = last.clone();
        for _ in 1..iterations {
            last = keyed.clone().chain_update(&last).finalize().into_bytes();
            sum.iter_mut().zip(&last).for_each(|(sum, last)| *sum ^= last);
        }
        block.copy_from_slice(&sum[..block.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    /// RFC 6070, and the same inputs with SHA-256 and SHA-512 as they are widely published.
    #[test]
    fn pbkdf2_gives_published_keys() {
        let long = ("passwordPASSWORDpassword", "saltSALTsaltSALTsaltSALTsaltSALTsalt");
        let cases = [
            (Hash::Sha1, ("password", "salt"), 1, "0c60c80f961f0e71f3a9b524af6012062fe037a6"),
            (Hash::Sha1, ("password", "salt"), 2, "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957"),
            (Hash::Sha1, ("password", "salt"), 4096, "4b007901b765489abead49d926f721d065a429c1"),
            (Hash::Sha1, long, 4096, "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038"),
            (Hash::Sha1, ("pass\0word", "sa\0lt"), 4096, "56fa6aa75548099dcc37d7f03425e0c3"),
            (
                Hash::Sha256,
                ("password", "salt"),
                4096,
                "c5e478d59288c841aa530db6845c4c8d962893a001ce4e11a4963873aa98134a",
            ),
            (
                Hash::Sha256,
                long,
                4096,
                "348c89dbcbd32b2f32d814b8116e84cf2b17347ebc1800181c4e2a1fb8dd53e1c635518c7dac47e9",
            ),
            (
                Hash::Sha512,
                ("password", "salt"),
                1,
                "867f70cf1ade02cff3752599a3a53dc4af34c7a669815ae5d513554e1c8cf252\
                 c02d470a285a0501bad999bfe943c08f050235d7d68b1da55e63f73b60a57fce",
            ),
        ];
        for (hash, (password, salt), iterations, key) in cases {
            let key = hex(key);
            let mut made = vec![0; key.len()];
            hash.pbkdf2(password.as_bytes(), salt.as_bytes(), iterations, &mut made);
            assert_eq!(made, key, "{hash} {password:?} {iterations}");
        }
    }

    #[test]
    fn digests_are_the_published_ones_and_as_long_as_they_say() {
        let mut out = [0; DIGEST_BYTES_MAX];
        Hash::Sha1.digest(&[b"a", b"bc"], &mut out);
        assert_eq!(out[..20], hex("a9993e364706816aba3e25717850c26c9cd0d89d"));
        Hash::Sha224.digest(&[b"abc"], &mut out);
        assert_eq!(out[..28], hex("23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"));
        Hash::Sha256.digest(&[b"ab", b"", b"c"], &mut out);
        assert_eq!(
            out[..32],
            hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        );
        for (hash, name) in NAMES {
            assert_eq!((name.parse(), hash.to_string().as_str()), (Ok(hash), name));
            assert!(hash.digest_len() <= DIGEST_BYTES_MAX);
        }
        assert!("md5".parse::<Hash>().is_err());
    }
}
