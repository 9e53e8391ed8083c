//! The header's bytes, and what they say, validated.

use crate::crypt::cipher::{CipherSpec, KEY_BYTES_MAX, SECTOR_LEN, printable};
use crate::crypt::hash::{DIGEST_BYTES_MAX, Hash};
use crate::crypt::secret::Fingerprint;
use crate::error::{Error, Result};
use crate::limits::{LUKS_HEADER_BYTES_MAX, PBKDF2_ITERATIONS_MAX};

use super::af::STRIPES;

/// Bytes of the header without key material.
pub const HEADER_LEN: usize = 592;
/// Key slots of every header.
pub const SLOT_COUNT: usize = 8;
/// Where key material starts, and what its parts are rounded up to (QEMU's, and cryptsetup's).
pub(super) const KEY_MATERIAL_ALIGN: u64 = 4096;
pub(super) const DIGEST_LEN: usize = 20;
pub(super) const SALT_LEN: usize = 32;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;
/// Where the descriptions of slots start, and their length.
const SLOTS_AT: usize = 208;
const SLOT_LEN: usize = 48;
const NAME_LEN: usize = 32;
const UUID_LEN: usize = 40;

/// Where the parts of the header start.
mod at {
    pub const VERSION: usize = 6;
    pub const CIPHER_NAME: usize = 8;
    pub const CIPHER_MODE: usize = 40;
    pub const HASH: usize = 72;
    pub const PAYLOAD: usize = 104;
    pub const KEY_LEN: usize = 108;
    pub const DIGEST: usize = 112;
    pub const SALT: usize = 132;
    pub const ITERATIONS: usize = 164;
    pub const UUID: usize = 168;
}

/// A validated LUKS header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksHeader {
    /// All in front of the slots as it is on disk: names are kept as they were written.
    fixed: [u8; SLOTS_AT],
    cipher: CipherSpec,
    hash: Hash,
    slots: [KeySlot; SLOT_COUNT],
}

/// What the header says of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// Whether it has the master key.
    pub active: bool,
    /// Rounds of PBKDF2, at most [`PBKDF2_ITERATIONS_MAX`] where it is active.
    pub iterations: u32,
    /// The salt of PBKDF2.
    pub salt: [u8; SALT_LEN],
    /// The sector of the header where its key material starts.
    pub sector: u32,
}

impl KeySlot {
    /// Where its key material starts, in bytes from the start of the header.
    pub fn offset(&self) -> u64 {
        u64::from(self.sector) * SECTOR_LEN as u64
    }

    /// Stripes of its key material.
    pub fn stripes(&self) -> usize {
        STRIPES
    }
}

/// The parts of a new header.
pub(super) struct Parts<'a> {
    pub cipher: CipherSpec,
    pub hash: Hash,
    pub digest: &'a [u8; DIGEST_LEN],
    pub salt: &'a [u8; SALT_LEN],
    pub iterations: u32,
    pub uuid: &'a str,
}

impl LuksHeader {
    /// Whether a file that starts with `prefix` is LUKS of version 1.
    pub fn is_luks(prefix: &[u8]) -> bool {
        prefix.starts_with(&MAGIC) && prefix.get(at::VERSION..8) == Some(&VERSION.to_be_bytes())
    }

    /// A header with all slots inactive, where QEMU has them.
    pub(super) fn new(parts: &Parts<'_>) -> Self {
        let key_len = parts.cipher.key_len();
        let mut fixed = [0; SLOTS_AT];
        let mut put = |at: usize, bytes: &[u8]| fixed[at..at + bytes.len()].copy_from_slice(bytes);
        let sectors = material_sectors(key_len);
        let first = (KEY_MATERIAL_ALIGN / SECTOR_LEN as u64) as u32;
        put(0, &MAGIC);
        put(at::VERSION, &VERSION.to_be_bytes());
        put(at::CIPHER_NAME, b"aes");
        put(at::CIPHER_MODE, parts.cipher.mode_name().as_bytes());
        put(at::HASH, parts.hash.to_string().as_bytes());
        put(at::PAYLOAD, &(first + sectors * SLOT_COUNT as u32).to_be_bytes());
        put(at::KEY_LEN, &(key_len as u32).to_be_bytes());
        put(at::DIGEST, parts.digest);
        put(at::SALT, parts.salt);
        put(at::ITERATIONS, &parts.iterations.to_be_bytes());
        put(at::UUID, parts.uuid.as_bytes());
        let slot = |index: usize| KeySlot {
            active: false,
            iterations: 0,
            salt: [0; SALT_LEN],
            sector: first + sectors * index as u32,
        };
        let slots = std::array::from_fn(slot);
        Self { fixed, cipher: parts.cipher, hash: parts.hash, slots }
    }

    /// The header that `bytes` start with, of which there are `len` with all key material.
    ///
    /// # Errors
    /// What is wrong, unsupported, or beyond a limit, in QEMU's words and order as far as it looks.
    pub fn parse(bytes: &[u8], len: u64) -> Result<Self> {
        let Some(bytes) = bytes.get(..HEADER_LEN) else {
            return Err(Error::corrupt("the LUKS header is cut off"));
        };
        if !bytes.starts_with(&MAGIC) {
            return Err(Error::corrupt("Volume is not in LUKS format"));
        }
        let version = u16::from_be_bytes([bytes[at::VERSION], bytes[at::VERSION + 1]]);
        if version != VERSION {
            return Err(Error::unsupported(format!("LUKS version {version} is not supported")));
        }
        let name = name_at(bytes, at::CIPHER_NAME, "cipher name")?;
        let mode = name_at(bytes, at::CIPHER_MODE, "cipher mode")?;
        let hash_name = name_at(bytes, at::HASH, "hash spec")?;
        let key_len = word(bytes, at::KEY_LEN) as usize;
        if key_len > KEY_BYTES_MAX {
            let what = format!("LUKS keys of {key_len} bytes, of at most {KEY_BYTES_MAX}");
            return Err(Error::limit(what));
        }
        check_iterations("LUKS key", word(bytes, at::ITERATIONS))?;
        let mut slots = [None; SLOT_COUNT];
        for (index, slot) in slots.iter_mut().enumerate() {
            let at = SLOTS_AT + index * SLOT_LEN;
            *slot = Some(parse_slot(index, &bytes[at..at + SLOT_LEN])?);
        }
        let slots = slots.map(|slot| slot.expect("each has been parsed"));
        let hash = hash_name.parse().map_err(|()| {
            let name = printable(hash_name);
            Error::unsupported(format!("Hash algorithm '{name}' is not supported"))
        })?;
        let cipher = CipherSpec::parse(name, mode, key_len)?;
        let fixed = *bytes.first_chunk().expect("a header is longer than that");
        let header = Self { fixed, cipher, hash, slots };
        header.check_places(len)?;
        Ok(header)
    }

    /// Fails where key material is not behind the header, overlaps, or lies behind `len`.
    fn check_places(&self, len: u64) -> Result<()> {
        let payload = word(&self.fixed, at::PAYLOAD);
        let sectors = u64::from(material_sectors(self.cipher.key_len()));
        let end = |slot: &KeySlot| u64::from(slot.sector) + sectors;
        if u64::from(payload) * (SECTOR_LEN as u64) < KEY_MATERIAL_ALIGN {
            return Err(Error::corrupt("LUKS payload is overlapping with the header"));
        }
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.offset() < KEY_MATERIAL_ALIGN {
                let what = format!("Keyslot {index} is overlapping with the LUKS header");
                return Err(Error::corrupt(what));
            }
            if end(slot) > payload.into() {
                let what = format!("Keyslot {index} is overlapping with the encrypted payload");
                return Err(Error::corrupt(what));
            }
            for (other_index, other) in self.slots.iter().enumerate().skip(index + 1) {
                if end(slot) > other.sector.into() && end(other) > slot.sector.into() {
                    return Err(Error::corrupt(format!(
                        "Keyslots {index} and {other_index} are overlapping in the header"
                    )));
                }
            }
            let behind = slot.offset() + self.material_len() as u64;
            if behind > len.min(LUKS_HEADER_BYTES_MAX) {
                let what = format!("Keyslot {index} ends at {behind:#x}, behind the LUKS header");
                return Err(Error::corrupt(what));
            }
        }
        Ok(())
    }

    /// The header's bytes, without key material.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..SLOTS_AT].copy_from_slice(&self.fixed);
        let (places, _) = bytes[SLOTS_AT..].as_chunks_mut::<SLOT_LEN>();
        for (slot, place) in self.slots.iter().zip(places) {
            let state = if slot.active { ACTIVE } else { INACTIVE };
            place[..4].copy_from_slice(&state.to_be_bytes());
            place[4..8].copy_from_slice(&slot.iterations.to_be_bytes());
            place[8..40].copy_from_slice(&slot.salt);
            place[40..44].copy_from_slice(&slot.sector.to_be_bytes());
            place[44..].copy_from_slice(&(STRIPES as u32).to_be_bytes());
        }
        bytes
    }

    /// How the disk is encrypted.
    pub fn cipher(&self) -> CipherSpec {
        self.cipher
    }

    /// The hash of PBKDF2 and of the splitter.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// The key slots.
    pub fn slots(&self) -> &[KeySlot; SLOT_COUNT] {
        &self.slots
    }

    pub(super) fn slot_mut(&mut self, index: usize) -> &mut KeySlot {
        &mut self.slots[index]
    }

    /// Where the payload starts, or would start, in bytes: behind all key material.
    pub fn payload_offset(&self) -> u64 {
        u64::from(word(&self.fixed, at::PAYLOAD)) * SECTOR_LEN as u64
    }

    /// Rounds of PBKDF2 for the digest of the master key.
    pub fn master_key_iterations(&self) -> u32 {
        word(&self.fixed, at::ITERATIONS)
    }

    pub(super) fn master_key_salt(&self) -> &[u8] {
        &self.fixed[at::SALT..at::SALT + SALT_LEN]
    }

    pub(super) fn master_key_digest(&self) -> &[u8] {
        &self.fixed[at::DIGEST..at::DIGEST + DIGEST_LEN]
    }

    /// Its name among all headers, as text.
    pub fn uuid(&self) -> String {
        let bytes = &self.fixed[at::UUID..at::UUID + UUID_LEN];
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).escape_debug().to_string()
    }

    /// What tells a slot from all others that might give something else with the same passphrase.
    pub(super) fn slot_fingerprint(&self, slot: &KeySlot, material: &[u8]) -> Fingerprint {
        let mut fingerprint = [0; DIGEST_BYTES_MAX];
        let iterations = slot.iterations.to_be_bytes();
        let parts = [&self.fixed[..], &iterations, &slot.salt, material];
        Hash::Sha256.digest(&parts, &mut fingerprint);
        fingerprint
    }

    /// Bytes of key material of a slot.
    pub fn material_len(&self) -> usize {
        self.cipher.key_len() * STRIPES
    }
}

/// Sectors that a slot's key material takes.
fn material_sectors(key_len: usize) -> u32 {
    let sectors = (key_len * STRIPES).div_ceil(SECTOR_LEN);
    sectors.next_multiple_of(KEY_MATERIAL_ALIGN as usize / SECTOR_LEN) as u32
}

fn parse_slot(index: usize, bytes: &[u8]) -> Result<KeySlot> {
    let stripes = word(bytes, 44);
    if stripes as usize != STRIPES {
        let what = format!("Keyslot {index} is corrupted (stripes {stripes} != {STRIPES})");
        return Err(Error::corrupt(what));
    }
    let state = word(bytes, 0);
    if ![ACTIVE, INACTIVE].contains(&state) {
        let what = format!("Keyslot {index} state (active/disable) is corrupted");
        return Err(Error::corrupt(what));
    }
    let (active, iterations) = (state == ACTIVE, word(bytes, 4));
    if active {
        check_iterations(&format!("Keyslot {index}"), iterations)?;
    }
    let salt = *bytes[8..].first_chunk().expect("a slot is longer than that");
    Ok(KeySlot { active, iterations, salt, sector: word(bytes, 40) })
}

fn check_iterations(what: &str, count: u32) -> Result<()> {
    match count {
        0 => Err(Error::corrupt(format!("{what} iteration count is zero"))),
        1..=PBKDF2_ITERATIONS_MAX => Ok(()),
        _ => Err(Error::limit(format!(
            "{what} iteration count is {count}, of at most {PBKDF2_ITERATIONS_MAX}"
        ))),
    }
}

/// The text at `at`, which ends with a NUL; `what` it is, for an error.
fn name_at<'a>(bytes: &'a [u8], at: usize, what: &str) -> Result<&'a str> {
    let field = &bytes[at..at + NAME_LEN];
    let Some(len) = field.iter().position(|byte| *byte == 0) else {
        return Err(Error::corrupt(format!("LUKS header {what} is not NUL terminated")));
    };
    std::str::from_utf8(&field[..len])
        .map_err(|_| Error::corrupt(format!("LUKS header {what} is not text")))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*bytes[at..].first_chunk().expect("a header is longer than that"))
}
