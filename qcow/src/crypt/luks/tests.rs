//! Headers of our own and QEMU's, and what others might make of them.

use super::*;
use crate::crypt::cipher::{Aes, CipherSpec, Iv, Mode, SECTOR_LEN};
use crate::crypt::hash::Hash;
use crate::crypt::locked::LockedBytes;
use crate::crypt::secret::Passphrase;
use crate::error::{ErrorKind, Result};
use crate::limits::{LUKS_HEADER_BYTES_MAX, PBKDF2_ITERATIONS_MAX, REMEMBERED_SLOTS_MAX};

const CHEAP: Cost = Cost::Iterations(1000);

fn passphrase(text: &str) -> Passphrase {
    Passphrase::read(text.as_bytes()).unwrap()
}

/// A LUKS header with all its key material, as a file has it.
struct Volume(Vec<u8>);

impl Volume {
    fn new(new: &NewLuks, text: &str) -> (Self, MasterKey) {
        let (change, key) = create(new, &passphrase(text));
        let mut volume = Self(vec![0; change.header.payload_offset() as usize]);
        volume.apply(&change);
        (volume, key)
    }

    fn apply(&mut self, change: &SlotChange) {
        self.0[..HEADER_LEN].copy_from_slice(&change.header.encode());
        let at = change.material_at as usize;
        self.0[at..at + change.material.len()].copy_from_slice(&change.material);
    }

    fn header(&self) -> Result<LuksHeader> {
        LuksHeader::parse(&self.0, self.0.len() as u64)
    }

    /// The slot that a passphrase opens, and the key.
    fn unlock(&self, text: &str) -> Result<Option<(usize, MasterKey)>> {
        let (header, passphrase) = (self.header()?, passphrase(text));
        let mut unlock = Unlock::any(&header, &passphrase);
        while let Some((slot, bytes)) = unlock.wanted()? {
            let bytes = &self.0[bytes.start as usize..bytes.end as usize];
            if let Some(key) = unlock.attempt(bytes) {
                return Ok(Some((slot, key)));
            }
        }
        Ok(None)
    }
}

fn cheap(cipher: CipherSpec, hash: Hash) -> NewLuks {
    NewLuks { cipher, hash, cost: CHEAP }
}

#[test]
fn keys_are_split_and_merged_with_each_hash() {
    for hash in [Hash::Sha1, Hash::Sha224, Hash::Sha256, Hash::Sha384, Hash::Sha512] {
        for len in [16, 24, 32, 48, 64] {
            let key = LockedBytes::random(len);
            let mut stripes = af::split(hash, &key);
            assert_eq!(*af::merge(hash, &stripes), *key, "{hash} {len}");
            stripes[len * 1234] ^= 1;
            assert_ne!(*af::merge(hash, &stripes), *key, "{hash} {len}: each bit counts");
        }
    }
}

#[test]
fn passphrases_come_and_go() {
    let aes192 = CipherSpec::new(Aes::Aes192, Mode::Cbc, Iv::Plain).unwrap();
    for cipher in [CipherSpec::DEFAULT, aes192] {
        let (mut volume, key) = Volume::new(&cheap(cipher, Hash::Sha512), "one");
        let opened = |volume: &Volume, text| volume.unlock(text).unwrap().map(|(slot, _)| slot);
        assert_eq!([opened(&volume, "one"), opened(&volume, "two")], [Some(0), None]);

        let slot = volume.header().unwrap().free_slot().unwrap();
        assert_eq!(slot, 1);
        volume.apply(&volume.header().unwrap().with_key(slot, &key, &passphrase("two"), CHEAP));
        assert_eq!(opened(&volume, "one"), Some(0));
        let (slot, same) = volume.unlock("two").unwrap().unwrap();
        assert_eq!((slot, same.bytes()), (1, key.bytes()));
        assert_eq!(volume.header().unwrap().active_count(), 2);

        volume.apply(&volume.header().unwrap().without_key(0));
        assert_eq!([opened(&volume, "one"), opened(&volume, "two")], [None, Some(1)]);
        assert_eq!(volume.header().unwrap().free_slot(), Some(0));
    }
}

/// What a slot has given once is given again without a computation.
#[test]
fn a_passphrase_remembers_the_keys_it_opened() {
    let one = passphrase("one");
    let (change, key) = create(&cheap(CipherSpec::DEFAULT, Hash::Sha256), &one);
    let mut volume = Volume(vec![0; change.header.payload_offset() as usize]);
    volume.apply(&change);
    let attempt = |volume: &Volume, passphrase: &Passphrase| {
        let header = volume.header().unwrap();
        let mut unlock = Unlock::any(&header, passphrase);
        let (_, wanted) = unlock.wanted().unwrap().unwrap();
        unlock.attempt(&volume.0[wanted.start as usize..wanted.end as usize])
    };
    let (header, slot) = (change.header.clone(), change.header.slots()[0]);
    let recalled = |passphrase: &Passphrase, material: &[u8]| {
        passphrase.recall(&header.slot_fingerprint(&slot, material))
    };
    assert_eq!(**recalled(&one, &change.material).unwrap().unwrap(), *key.bytes(), "once made");

    let other = passphrase("other");
    assert!(recalled(&other, &change.material).is_none());
    assert!(attempt(&volume, &other).is_none());
    assert!(recalled(&other, &change.material).unwrap().is_none(), "it is not this slot's");

    let again = passphrase("one");
    assert_eq!(attempt(&volume, &again).unwrap().bytes(), key.bytes());
    assert_eq!(**recalled(&again, &change.material).unwrap().unwrap(), *key.bytes());
    assert_eq!(attempt(&volume, &again).unwrap().bytes(), key.bytes());

    // Whatever a result depends on is another slot.
    for at in [112, 132, 164 + 3, 212 + 3, 216, change.material_at as usize] {
        let mut changed = Volume(volume.0.clone());
        changed.0[at] ^= 1;
        assert!(attempt(&changed, &again).is_none(), "byte {at}");
    }
}

#[test]
fn a_passphrase_forgets_the_oldest() {
    let passphrase = passphrase("one");
    for number in 0..=REMEMBERED_SLOTS_MAX {
        passphrase.remember([number as u8; 64], None);
    }
    assert!(passphrase.recall(&[0; 64]).is_none());
    assert!(passphrase.recall(&[1; 64]).is_some());
}

/// QEMU has made the volume, and takes ours.
#[test]
fn qemu_opens_what_is_made_here_and_the_other_way_round() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("key"), "a passphrase\n").unwrap();
    let text = "a passphrase\n";
    let secret = format!("secret,id=key,file={}", file("key"));
    let qemu = |program: &str, arguments: &[&str]| {
        let run = std::process::Command::new(program).args(arguments).output().unwrap();
        let told = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success(), "{program} {arguments:?}: {told}");
        String::from_utf8(run.stdout).unwrap()
    };
    let mut cases =
        vec![("aes-192", "xts", "plain", "sha1"), ("aes-128", "cbc", "plain", "sha512")];
    for aes in ["aes-128", "aes-256"] {
        cases.push((aes, "xts", "plain64", "sha256"));
        cases.push((aes, "cbc", "essiv", "sha1"));
    }
    for (aes, mode, iv, hash) in cases {
        let name = format!("{aes} {mode} {iv} {hash}");
        let path = file("qemu.luks");
        let options = format!(
            "key-secret=key,iter-time=10,cipher-alg={aes},cipher-mode={mode},ivgen-alg={iv},hash-alg={hash}"
        );
        qemu(
            "qemu-img",
            &["create", "-q", "--object", &secret, "-f", "luks", "-o", &options, &path, "64k"],
        );
        let image = format!("driver=luks,key-secret=key,file.filename={path}");
        let io = ["--object", &secret, "--image-opts", &image, "-c", "write -P 0x5a 8k 4k"];
        qemu("qemu-io", &io);
        let theirs = Volume(std::fs::read(&path).unwrap());
        let header = LuksHeader::parse(&theirs.0, theirs.0.len() as u64).unwrap();
        let (slot, key) = theirs.unlock(text).unwrap().unwrap_or_else(|| panic!("{name}"));
        assert_eq!((slot, header.uuid().len()), (0, 36), "{name}");
        assert_eq!(header.encode(), theirs.0[..HEADER_LEN], "{name}");
        let at = header.payload_offset() as usize + 8192;
        let mut bytes = theirs.0[at..at + 4096].to_vec();
        key.cipher(&header).decrypt(8192 / SECTOR_LEN as u64, &mut bytes);
        assert!(bytes.iter().all(|byte| *byte == 0x5a), "{name}");

        let new = cheap(header.cipher(), header.hash());
        let (mut ours, key) = Volume::new(&new, text);
        assert_eq!(new.payload_offset(), header.payload_offset(), "{name}");
        let mut bytes = vec![0xa5; 4096];
        key.cipher(&ours.header().unwrap()).encrypt(0, &mut bytes);
        ours.0.extend_from_slice(&bytes);
        let path = file("ours.luks");
        std::fs::write(&path, &ours.0).unwrap();
        let image = format!("driver=luks,key-secret=key,file.filename={path}");
        let io = ["--object", &secret, "--image-opts", &image, "-r", "-c", "read -P 0xa5 0 4k"];
        let told = qemu("qemu-io", &io);
        assert!(!told.contains("Pattern verification failed"), "{name}: {told}");
    }
}

/// Whatever byte of the header is changed, the key is not found or it is the right one, and no sum of work is too large.
#[test]
fn no_changed_byte_of_a_header_gives_a_wrong_key() {
    let (volume, key) = Volume::new(&cheap(CipherSpec::DEFAULT, Hash::Sha256), "one");
    let (mut opened, mut refused) = (0, 0);
    for at in 0..HEADER_LEN {
        let mut changed = Volume(volume.0.clone());
        changed.0[at] ^= 1 << (at % 8);
        // Rounds of the slot and of the digest are tried as far as they stay cheap; that others are bounded, is seen below.
        if let Ok(header) = changed.header() {
            let rounds = header.slots()[0].iterations.max(header.master_key_iterations());
            if rounds > 100_000 {
                continue;
            }
        }
        match changed.unlock("one") {
            Ok(Some((_, found))) => {
                assert_eq!(found.bytes(), key.bytes(), "byte {at}");
                opened += 1;
            }
            Ok(None) | Err(_) => refused += 1,
        }
    }
    // The name of the volume and what inactive slots say changes nothing.
    assert!(opened > 250 && refused > 150, "{opened} {refused}");
}

#[test]
fn hostile_headers_are_refused_before_anything_is_computed() {
    let (volume, _) = Volume::new(&cheap(CipherSpec::DEFAULT, Hash::Sha256), "one");
    let word = |at: usize, value: u32| (at, value.to_be_bytes().to_vec());
    let cases = [
        ((0, b"LUKX".to_vec()), "Volume is not in LUKS format"),
        ((6, vec![0, 2]), "LUKS version 2 is not supported"),
        ((8, vec![b'a'; 32]), "LUKS header cipher name is not NUL terminated"),
        ((8, b"twofish\0".to_vec()), "Algorithm 'twofish' with key size 32 bytes not supported"),
        ((40, vec![0xff; 4]), "LUKS header cipher mode is not text"),
        ((72, b"md5\0".to_vec()), "Hash algorithm 'md5' is not supported"),
        (word(104, 7), "LUKS payload is overlapping with the header"),
        (word(108, u32::MAX), "LUKS keys of 4294967295 bytes, of at most 64"),
        (word(108, 0), "Algorithm 'aes' with key size 0 bytes not supported"),
        (word(164, 0), "LUKS key iteration count is zero"),
        (word(164, u32::MAX), "LUKS key iteration count is 4294967295, of at most 67108864"),
        (word(208, 1), "Keyslot 0 state (active/disable) is corrupted"),
        (word(212, 0), "Keyslot 0 iteration count is zero"),
        (
            word(212, PBKDF2_ITERATIONS_MAX + 1),
            "Keyslot 0 iteration count is 67108865, of at most 67108864",
        ),
        (word(248, 1), "Keyslot 0 is overlapping with the LUKS header"),
        (word(248, u32::MAX), "Keyslot 0 is overlapping with the encrypted payload"),
        (word(248, 600), "Keyslots 0 and 1 are overlapping in the header"),
        (word(252, 1 << 31), "Keyslot 0 is corrupted (stripes 2147483648 != 4000)"),
    ];
    for ((at, bytes), message) in cases {
        let mut changed = Volume(volume.0.clone());
        changed.0[at..at + bytes.len()].copy_from_slice(&bytes);
        assert_eq!(changed.header().unwrap_err().to_string(), message);
    }
    let cut = LuksHeader::parse(&volume.0, volume.0.len() as u64 - 8192).unwrap_err();
    assert!(cut.to_string().contains("behind the LUKS header"), "{cut}");
    assert!(LuksHeader::parse(&volume.0[..HEADER_LEN - 1], 1 << 20).is_err());
    // Key material far away: the payload would have to be farther away still.
    let mut far = volume.0.clone();
    far[104..108].copy_from_slice(&u32::MAX.to_be_bytes());
    far[248..252].copy_from_slice(&((LUKS_HEADER_BYTES_MAX / 512) as u32).to_be_bytes());
    assert!(LuksHeader::parse(&far, u64::MAX).is_err());
}

#[test]
fn slots_that_ask_for_too_much_together_are_not_tried() {
    let (mut volume, key) = Volume::new(&cheap(CipherSpec::DEFAULT, Hash::Sha256), "one");
    let header = volume.header().unwrap();
    volume.apply(&header.with_key(1, &key, &passphrase("one"), CHEAP));
    // Two slots of the most rounds that one may have, with two blocks of SHA-256 each, take all there is.
    for slot in [0, 1] {
        let at = 208 + 48 * slot + 4;
        volume.0[at..at + 4].copy_from_slice(&PBKDF2_ITERATIONS_MAX.to_be_bytes());
    }
    let header = volume.header().unwrap();
    let passphrase = passphrase("one");
    let mut unlock = Unlock::any(&header, &passphrase);
    assert!(unlock.wanted().is_ok());
    let refused = unlock.wanted().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Limit);
    assert!(refused.to_string().starts_with("the key slots ask for more than"));
}
