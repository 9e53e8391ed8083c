//! Encrypted images: what reaches the file, who may read it, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use qcow::crypt::luks::{Cost, NewLuks};
use qcow::crypt::{CipherSpec, Hash, Passphrase};
use qcow::disk::Buffer;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::engine::{
    CreateOptions, DataFileOptions, Image, NewEncryption, OpenOptions, Preallocation, Resize,
    create, create_with_data,
};
use qcow::format::header::{CryptMethod, Version};
use qcow::gate::{BackingPolicy, HostGate};
use qcow::{Error, ErrorKind, Result};

const SIZE: u64 = 8 << 20;
/// What no file may hold in clear.
const MARKER: &[u8; 16] = b"in clear? never!";

struct Bed {
    directory: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn create(&self, name: &str, options: &CreateOptions) -> Result<PathBuf> {
        let path = self.file(name);
        let disk = UringDisk::open(&path, Access::Create, CacheMode::PageCache).expect("a file");
        match &options.data_file {
            None => block_on(create(&disk, options))?,
            Some(data) => {
                let data = PathBuf::from(&data.name);
                let data = UringDisk::open(&data, Access::Create, CacheMode::PageCache)?;
                block_on(create_with_data(&disk, &data, options))?;
            }
        }
        Ok(path)
    }
}

fn key(text: &str) -> Arc<Passphrase> {
    Arc::new(Passphrase::read(text.as_bytes()).unwrap())
}

fn luks(text: &str) -> NewEncryption {
    let (cipher, hash, cost) = (CipherSpec::DEFAULT, Hash::Sha256, Cost::Iterations(1000));
    NewEncryption::Luks(NewLuks { cipher, hash, cost }, key(text))
}

fn encrypted(encryption: NewEncryption) -> CreateOptions {
    CreateOptions { size: SIZE, encryption: Some(encryption), ..CreateOptions::default() }
}

fn writing(text: &str) -> OpenOptions {
    OpenOptions { writable: true, keys: vec![Some(key(text))], ..OpenOptions::default() }
}

async fn open(path: &Path, options: &OpenOptions) -> Result<Image<UringDisk>> {
    let backing = BackingPolicy::Anywhere;
    let gate = HostGate { cache: CacheMode::PageCache, shared: false, backing };
    Image::open(&gate, path, options).await
}

async fn read(image: &Image<UringDisk>, at: u64, len: u64) -> Result<Vec<u8>> {
    let buffer = Buffer::zeroed(len as usize);
    image.read(at, &buffer.payload()).await?;
    Ok(buffer.to_vec())
}

/// Closes the image, and lets go of its file.
async fn close(image: Image<UringDisk>) {
    image.close().await.unwrap();
}

/// `len` bytes of nothing but markers.
fn markers(len: u64) -> Vec<u8> {
    MARKER.iter().copied().cycle().take(len as usize).collect()
}

async fn write(image: &Image<UringDisk>, at: u64, bytes: &[u8]) -> Result<()> {
    image.write(at, &Buffer::from_bytes(bytes).payload()).await
}

/// Fails where the file has a marker, wherever it begins.
fn assert_no_marker(path: &Path) {
    let bytes = std::fs::read(path).expect("the file");
    let found = bytes.windows(MARKER.len()).position(|window| window == MARKER);
    assert_eq!(found, None, "{} holds clear text", path.display());
}

fn expect_error<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, part: &str) {
    let error: Error = result.expect_err(part);
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn no_clear_text_reaches_the_file_on_any_way() {
    let bed = Bed::new();
    for version in [Version::V2, Version::V3] {
        let base = bed.create("base", &encrypted(luks("base"))).unwrap();
        let options = CreateOptions {
            version,
            backing: Some((base.clone().into_os_string(), Some("qcow2".to_owned()))),
            ..encrypted(luks("top"))
        };
        let top = bed.create("top", &options).unwrap();
        block_on(async {
            let image = open(&base, &writing("base")).await.unwrap();
            write(&image, 0, &markers(3 << 20)).await.unwrap();
            close(image).await;

            let options =
                OpenOptions { keys: vec![Some(key("top")), Some(key("base"))], ..writing("top") };
            let image = open(&top, &options).await.unwrap();
            let mut disk = markers(3 << 20);
            disk.resize(SIZE as usize, 0);
            // First writes that are smaller than a cluster, sector or not; overwrites; copies; zeros.
            for (at, len) in
                [(100, 50), (65_536, 512), (70_000, 5), (1 << 20, 4096), (1_048_700, 7)]
            {
                let bytes = vec![b'x'; len];
                write(&image, at, &bytes).await.unwrap();
                disk[at as usize..at as usize + len].copy_from_slice(&bytes);
            }
            image.copy_up(2 << 20, 300_000).await.unwrap();
            image.write_zeroes(200_000, 1000, false).await.unwrap();
            disk[200_000..201_000].fill(0);
            image.write_zeroes(5 << 20, 100, false).await.unwrap();
            write(&image, 6 << 20, &markers(100)).await.unwrap();
            disk[6 << 20..(6 << 20) + 100].copy_from_slice(&markers(100));
            image.create_snapshot("s".as_ref(), Duration::ZERO).await.unwrap();
            write(&image, (6 << 20) + 200, &markers(1000)).await.unwrap();
            disk[(6 << 20) + 200..(6 << 20) + 1200].copy_from_slice(&markers(1000));
            assert!(read(&image, 0, SIZE).await.unwrap() == disk, "{version:?}");
            assert_eq!(read(&image, 99, 52).await.unwrap(), disk[99..151]);
            close(image).await;
            let image = open(&top, &options).await.unwrap();
            assert!(read(&image, 0, SIZE).await.unwrap() == disk, "{version:?}, opened again");
            close(image).await;
        });
        assert_no_marker(&base);
        assert_no_marker(&top);
    }
}

#[test]
fn who_has_no_key_reads_and_writes_nothing() {
    let bed = Bed::new();
    let path = bed.create("image", &encrypted(luks("right"))).unwrap();
    block_on(async {
        let missing = "Parameter 'encrypt.key-secret' is required for cipher";
        let plain = OpenOptions { writable: true, ..OpenOptions::default() };
        expect_error(open(&path, &plain).await, ErrorKind::Denied, missing);
        let wrong = open(&path, &writing("wrong")).await;
        expect_error(wrong, ErrorKind::Denied, "Invalid password, cannot unlock any keyslot");

        let image = open(&path, &writing("right")).await.unwrap();
        assert_eq!(image.encryption(), CryptMethod::Luks);
        write(&image, 0, &markers(65_536)).await.unwrap();
        close(image).await;

        // What does without data works.
        let image = open(&path, &OpenOptions { without_keys: true, ..plain }).await.unwrap();
        let locked = "was opened without its key";
        expect_error(read(&image, 0, 512).await, ErrorKind::Denied, locked);
        expect_error(write(&image, 0, &[1; 512]).await, ErrorKind::Denied, locked);
        expect_error(write(&image, 1 << 20, &[1; 512]).await, ErrorKind::Denied, locked);
        let extent = image.map(0, SIZE).await.unwrap();
        assert_eq!(
            (extent.len, extent.data, extent.zero, extent.offset),
            (65_536, true, false, None)
        );
        assert_eq!(read(&image, 1 << 20, 512).await.unwrap(), [0; 512], "nothing is there");
        image.create_snapshot("s".as_ref(), Duration::ZERO).await.unwrap();
        assert!(image.luks_header().await.unwrap().slots()[0].active);
        close(image).await;

        let image = open(&path, &writing("right")).await.unwrap();
        assert_eq!(read(&image, 0, 65_536).await.unwrap(), markers(65_536));
        close(image).await;
    });
}

#[test]
fn compressed_clusters_are_refused() {
    let bed = Bed::new();
    let path = bed.create("image", &encrypted(luks("k"))).unwrap();
    block_on(async {
        let image = open(&path, &writing("k")).await.unwrap();
        let cluster = Buffer::from_bytes(&markers(65_536)).payload();
        let refused = image.write_compressed(0, &cluster).await;
        let message = "Compression and encryption not supported at the same time";
        expect_error(refused, ErrorKind::Unsupported, message);
        close(image).await;
    });
    assert_no_marker(&path);
}

#[test]
fn what_is_laid_out_in_advance_reads_as_zeros() {
    let bed = Bed::new();
    let modes = [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];
    for (mode, extended_l2) in modes.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
        let options = CreateOptions { preallocation: mode, extended_l2, ..encrypted(luks("k")) };
        let path = bed.create("image", &options).unwrap();
        block_on(async {
            let image = open(&path, &writing("k")).await.unwrap();
            assert!(read(&image, 0, SIZE).await.unwrap() == vec![0; SIZE as usize], "{mode:?}");
            write(&image, 1000, &markers(100)).await.unwrap();
            let how = Resize { shrink: false, preallocation: mode };
            image.resize_as(2 * SIZE, &how).await.unwrap();
            let mut disk = vec![0; 2 * SIZE as usize];
            disk[1000..1100].copy_from_slice(&markers(100));
            assert!(read(&image, 0, 2 * SIZE).await.unwrap() == disk, "{mode:?}");
            let extent = image.map(SIZE, SIZE).await.unwrap();
            assert!(extent.zero && extent.present, "{mode:?}: a place, and zeros: {extent:?}");
            write(&image, SIZE + 5, &markers(100)).await.unwrap();
            disk[SIZE as usize + 5..SIZE as usize + 105].copy_from_slice(&markers(100));
            assert!(read(&image, 0, 2 * SIZE).await.unwrap() == disk, "{mode:?}");
            close(image).await;
        });
        assert_no_marker(&path);
    }
    let old = CreateOptions {
        version: Version::V2,
        preallocation: Preallocation::Metadata,
        ..encrypted(luks("k"))
    };
    expect_error(bed.create("old", &old), ErrorKind::Invalid, "compatibility level 1.1");
}

#[test]
fn data_in_a_file_of_its_own_is_encrypted_there() {
    let bed = Bed::new();
    let data = bed.file("data");
    let file = |raw| Some(DataFileOptions { name: data.clone().into_os_string(), raw });
    let raw = CreateOptions { data_file: file(true), ..encrypted(luks("k")) };
    expect_error(bed.create("image", &raw), ErrorKind::Invalid, "no raw data file");
    let options = CreateOptions { data_file: file(false), ..encrypted(luks("k")) };
    let path = bed.create("image", &options).unwrap();
    block_on(async {
        let image = open(&path, &writing("k")).await.unwrap();
        write(&image, 70_000, &markers(100_000)).await.unwrap();
        let mut disk = vec![0; SIZE as usize];
        disk[70_000..170_000].copy_from_slice(&markers(100_000));
        image.discard(65_536, 65_536).await.unwrap();
        disk[65_536..131_072].fill(0);
        write(&image, 100_000, &markers(7)).await.unwrap();
        disk[100_000..100_007].copy_from_slice(&markers(7));
        assert!(read(&image, 0, SIZE).await.unwrap() == disk);
        close(image).await;
    });
    assert_no_marker(&data);
}

#[test]
fn the_legacy_format_is_opened_only_on_request() {
    let bed = Bed::new();
    let password = "longer than sixteen bytes";
    let path = bed.create("image", &encrypted(NewEncryption::Aes(key(password)))).unwrap();
    block_on(async {
        let refused = open(&path, &writing(password)).await;
        expect_error(refused, ErrorKind::Unsupported, "no longer supported");
        let options = OpenOptions { legacy_aes: true, ..writing(password) };
        let image = open(&path, &options).await.unwrap();
        write(&image, 1, &markers(200_000)).await.unwrap();
        close(image).await;
        // Only so many bytes of it count, as in QEMU.
        let options = OpenOptions { legacy_aes: true, ..writing("longer than sixt") };
        let image = open(&path, &options).await.unwrap();
        assert!(read(&image, 1, 200_000).await.unwrap() == markers(200_000));
        close(image).await;
    });
    assert_no_marker(&path);
}

#[test]
fn passphrases_come_and_go_while_the_image_is_open() {
    let bed = Bed::new();
    let path = bed.create("image", &encrypted(luks("one"))).unwrap();
    let (one, two, cheap) = (key("one"), key("two"), Cost::Iterations(1000));
    block_on(async {
        let image = open(&path, &writing("one")).await.unwrap();
        write(&image, 0, &markers(512)).await.unwrap();
        image.add_key(7, &one, &two, cheap).await.unwrap();
        assert_eq!(image.slots_of(&two).await.unwrap(), [7]);
        let wrong = image.add_key(3, &key("three"), &two, cheap).await;
        expect_error(wrong, ErrorKind::Denied, "Invalid password");
        image.erase_key(0).await.unwrap();
        assert_eq!(image.slots_of(&one).await.unwrap(), [0; 0]);
        write(&image, 512, &markers(512)).await.unwrap();
        close(image).await;

        expect_error(open(&path, &writing("one")).await, ErrorKind::Denied, "Invalid password");
        let image = open(&path, &writing("two")).await.unwrap();
        assert_eq!(read(&image, 0, 1024).await.unwrap(), markers(1024));
        close(image).await;
    });
}

/// Whatever byte of the LUKS header or of what points to it is changed: the image opens with its content, or not at all.
#[test]
fn no_changed_byte_of_a_header_shows_wrong_content() {
    let bed = Bed::new();
    let path = bed.create("image", &encrypted(luks("k"))).unwrap();
    block_on(async {
        let image = open(&path, &writing("k")).await.unwrap();
        write(&image, 0, &markers(4096)).await.unwrap();
        close(image).await;
    });
    let whole = std::fs::read(&path).unwrap();
    let luks = whole.windows(6).position(|window| window == b"LUKS\xba\xbe").expect("a header");
    // Rounds of PBKDF2 in their upper bytes take long to be tried; the unit tests of the header see to them.
    let slow = |at: usize| [164, 165, 212, 213].contains(&at);
    let (mut opened, mut refused) = (0, 0);
    for at in (0..592).filter(|at| !slow(*at)).step_by(3).map(|at| luks + at).chain(112..200) {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        std::fs::write(&path, &changed).unwrap();
        block_on(async {
            let options = OpenOptions { writable: false, ..writing("k") };
            let Ok(image) = open(&path, &options).await else {
                refused += 1;
                return;
            };
            assert_eq!(read(&image, 0, 4096).await.unwrap(), markers(4096), "byte {at:#x}");
            opened += 1;
        });
    }
    assert!(opened > 50 && refused > 50, "{opened} opened, {refused} refused");
}
