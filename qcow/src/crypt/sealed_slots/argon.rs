//! Argon2id (RFC 9106, version 0x13): from a passphrase to a key, slowly and in much memory.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroizing;

use crate::crypt::locked::{LockedBytes, scrubbing};
use crate::crypt::seal::key::KEY_LEN;
use crate::crypt::secret::Passphrase;
use crate::error::{Error, Result};
use crate::limits::{ARGON_LANES_MAX, ARGON_MEMORY_KIB_MAX, ARGON_PASSES_MAX};

/// Bytes of a salt.
pub(super) const SALT_LEN: usize = 32;
/// Least memory for each lane in KiB (RFC 9106, section 3.1).
const LANE_KIB_MIN: u32 = 8;

/// What one guess of a passphrase costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon {
    /// Memory in KiB: eight for each lane or more, at most [`ARGON_MEMORY_KIB_MAX`].
    pub memory_kib: u32,
    /// Passes over it: 1 to [`ARGON_PASSES_MAX`].
    pub passes: u32,
    /// Lanes: 1 to [`ARGON_LANES_MAX`].
    pub lanes: u32,
}

impl Argon {
    /// Fails where they make no sense or are beyond a limit.
    ///
    /// # Errors
    /// They are (`Limit`).
    pub fn check(&self) -> Result<()> {
        let Self { memory_kib, passes, lanes } = *self;
        // In this order, so that nothing overflows.
        let within = (1..=ARGON_LANES_MAX).contains(&lanes)
            && (1..=ARGON_PASSES_MAX).contains(&passes)
            && (LANE_KIB_MIN * lanes..=ARGON_MEMORY_KIB_MAX).contains(&memory_kib);
        within.then_some(()).ok_or_else(|| {
            Error::limit(format!(
                "a key slot with Argon2id in {memory_kib} KiB, {passes} passes and {lanes} lanes: at most \
                 {ARGON_MEMORY_KIB_MAX}, {ARGON_PASSES_MAX} and {ARGON_LANES_MAX}, with {LANE_KIB_MIN} KiB a lane"
            ))
        })
    }

    /// KiB that are filled, each pass anew.
    pub(super) fn work(&self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.passes)
    }

    /// The key that `passphrase` gives with `salt`. All memory that it took is wiped.
    ///
    /// # Errors
    /// As [`Self::check`]; or there is not that much memory.
    pub(super) fn key(
        &self,
        passphrase: &Passphrase,
        salt: &[u8; SALT_LEN],
    ) -> Result<LockedBytes> {
        self.check()?;
        let mut key = LockedBytes::zeroed(KEY_LEN);
        scrubbing(|| self.compute(passphrase.bytes(), salt, &mut key))?;
        Ok(key)
    }

    fn compute(&self, passphrase: &[u8], salt: &[u8], key: &mut [u8]) -> Result<()> {
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(key.len()));
        let params = params.expect("parameters within stricter limits");
        let mut memory = blocks(params.block_count())?;
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let computed = argon.hash_password_into_with_memory(passphrase, salt, key, &mut **memory);
        computed.expect("memory, passphrase, salt and key of lengths that it takes");
        Ok(())
    }
}

/// That many blocks, wiped when they are dropped.
fn blocks(count: usize) -> Result<Zeroizing<Vec<Block>>> {
    let mut memory = Zeroizing::new(Vec::new());
    memory.try_reserve_exact(count).map_err(|_| {
        let kib = count * Block::SIZE / 1024;
        Error::limit(format!("a key slot asks for {kib} KiB of memory, which there are not"))
    })?;
    memory.resize(count, Block::new());
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use argon2::{AssociatedData, ParamsBuilder};

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 9106, section 5.3, which has inputs that key slots have not.
    #[test]
    fn keys_are_those_of_the_rfc() {
        let mut params = ParamsBuilder::new();
        params.m_cost(32).t_cost(3).p_cost(4).data(AssociatedData::new(&[4; 12]).unwrap());
        let (secret, params) = ([3; 8], params.build().unwrap());
        let argon =
            Argon2::new_with_secret(&secret, Algorithm::Argon2id, Version::V0x13, params).unwrap();
        let (mut key, mut memory) = ([0; 32], blocks(32).unwrap());
        argon.hash_password_into_with_memory(&[1; 32], &[2; 16], &mut key, &mut **memory).unwrap();
        assert_eq!(hex(&key), "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659");
    }

    /// Argon2's reference implementation, `src/test.c`.
    #[test]
    fn keys_are_those_of_the_reference() {
        let cases = [
            (256, 1, "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"),
            (256, 2, "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037"),
        ];
        for (memory_kib, lanes, expected) in cases {
            let (argon, mut key) = (Argon { memory_kib, passes: 2, lanes }, [0; 32]);
            argon.compute(b"password", b"somesalt", &mut key).unwrap();
            assert_eq!(hex(&key), expected, "{argon:?}");
        }
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused() {
        let argon = |memory_kib, passes, lanes| Argon { memory_kib, passes, lanes };
        for within in [argon(8, 1, 1), argon(ARGON_MEMORY_KIB_MAX, ARGON_PASSES_MAX, 4)] {
            within.check().unwrap();
        }
        let beyond = [
            argon(7, 1, 1),
            argon(31, 1, 4),
            argon(8, 0, 1),
            argon(8, 1, 0),
            argon(ARGON_MEMORY_KIB_MAX + 1, 1, 1),
            argon(8, ARGON_PASSES_MAX + 1, 1),
            argon(1 << 10, 1, ARGON_LANES_MAX + 1),
            argon(u32::MAX, u32::MAX, u32::MAX),
        ];
        for argon in beyond {
            assert_eq!(argon.check().unwrap_err().kind(), crate::error::ErrorKind::Limit);
        }
    }
}
