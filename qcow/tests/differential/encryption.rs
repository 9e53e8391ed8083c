//! How the image of a script is encrypted: its key lies in a file beside it, and only if there is one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qcow::crypt::cipher::{Aes, CipherSpec, Iv, Mode};
use qcow::crypt::luks::{Cost, NewLuks};
use qcow::crypt::{Hash, Passphrase};
use qcow::disk::sim::Random;
use qcow::engine::NewEncryption;

/// The file with the key of `image`, if that is encrypted.
pub fn key_file(image: &Path) -> Option<PathBuf> {
    let file = image.with_extension("key");
    file.exists().then_some(file)
}

/// The key of `image`, if that is encrypted.
pub fn key(image: &Path) -> Option<Arc<Passphrase>> {
    let file = key_file(image)?;
    Some(Arc::new(Passphrase::from_file(&file).expect("the key")))
}

/// Some encryption for `image`, whose key is put beside it.
pub fn choose(random: &mut Random, image: &Path) -> NewEncryption {
    std::fs::write(image.with_extension("key"), "the key of a script\n").expect("write the key");
    let key = key(image).expect("it was just written");
    if random.below(8) == 0 {
        return NewEncryption::Aes(key);
    }
    let mut pick = |count| random.below(count) as usize;
    let mode = [Mode::Xts, Mode::Cbc][pick(2)];
    let aes = match mode {
        Mode::Xts => [Aes::Aes128, Aes::Aes192, Aes::Aes256][pick(3)],
        // With AES-192 in this mode QEMU ends with a broken assertion.
        Mode::Cbc => [Aes::Aes128, Aes::Aes256][pick(2)],
    };
    let iv = [Iv::Plain, Iv::Plain64, Iv::Essiv(Hash::Sha256)][pick(3)];
    let hashes = [Hash::Sha1, Hash::Sha224, Hash::Sha256, Hash::Sha384, Hash::Sha512];
    let cipher = CipherSpec::new(aes, mode, iv).expect("QEMU has it, too");
    NewEncryption::Luks(
        NewLuks { cipher, hash: hashes[pick(5)], cost: Cost::Iterations(1000) },
        key,
    )
}
