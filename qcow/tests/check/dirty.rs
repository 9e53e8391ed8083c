//! Images whose writer died with lazy refcounts: opened for writing they are repaired first, opened for reading they are
//! left alone.

use std::path::{Path, PathBuf};

use qcow::ErrorKind;
use qcow::disk::Buffer;
use qcow::disk::uring::{CacheMode, UringDisk, block_on};
use qcow::engine::{Format, Image, OpenOptions};
use qcow::gate::{BackingPolicy, HostGate};
use tempfile::TempDir;

use crate::qemu::{self, dying_qemu_io, qemu_img, qemu_io};
use crate::{COMPATIBLE_AT, INCOMPATIBLE_AT};

const SIZE: usize = 4 << 20;

/// An image that a dying QEMU left dirty.
struct Dirty {
    directory: TempDir,
    snapshot: Option<Vec<u8>>,
    /// What the disk reads as.
    content: Vec<u8>,
}

impl Dirty {
    fn make(options: &str, with_snapshot: bool) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("image");
        let file = path.to_str().unwrap();
        let options = format!("lazy_refcounts=on,{options}");
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, file, "4M"]);
        qemu_io(&path, &["write -P 1 0 300k", "write -P 2 2M 70k"]);
        let snapshot = with_snapshot.then(|| {
            qemu_img(&["snapshot", "-c", "before", file]);
            raw_content(&path, &["-l", "snapshot.name=before"])
        });
        // The flush has tables and data on disk, the counts stay behind.
        dying_qemu_io(&path, &["write -P 3 100k 900k", "write -P 4 2M 10k", "flush"]);
        let image = std::fs::read(&path).unwrap();
        assert_eq!((image[INCOMPATIBLE_AT] & 1, image[COMPATIBLE_AT] & 1), (1, 1));
        assert_eq!(qemu::check(&path, &[]).exit, 2, "the counts are behind");
        let mut content = vec![0; SIZE];
        for (at, len, byte) in [(0, 300, 1), (2048, 70, 2), (100, 900, 3), (2048, 10, 4)] {
            content[at << 10..(at + len) << 10].fill(byte);
        }
        Self { directory, snapshot, content }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }
}

/// The whole disk as QEMU reads it, which leaves a dirty image alone.
fn raw_content(path: &Path, options: &[&str]) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let mut arguments = vec!["convert", "-f", "qcow2", "-O", "raw"];
    arguments.extend(options);
    arguments.extend([path.to_str().unwrap(), raw.to_str().unwrap()]);
    qemu_img(&arguments);
    std::fs::read(raw).unwrap()
}

async fn open(path: &Path, writable: bool) -> qcow::Result<Image<UringDisk>> {
    let backing = BackingPolicy::Beside(Vec::new());
    let gate = HostGate { cache: CacheMode::PageCache, shared: false, backing };
    let options = OpenOptions { writable, format: Some(Format::Qcow2), ..OpenOptions::default() };
    Image::open(&gate, path, &options).await
}

async fn read_all(image: &Image<UringDisk>) -> Vec<u8> {
    let buffer = Buffer::zeroed(image.virtual_size() as usize);
    image.read(0, &buffer.payload()).await.unwrap();
    buffer.to_vec()
}

const KINDS: [(&str, bool); 8] = [
    ("cluster_size=64k", false),
    ("cluster_size=64k", true),
    ("cluster_size=4k,refcount_bits=64", true),
    ("cluster_size=4k,refcount_bits=1", false),
    ("cluster_size=512", false),
    ("cluster_size=512", true),
    ("cluster_size=512,refcount_bits=64", true),
    ("cluster_size=512,refcount_bits=1", false),
];

#[test]
fn a_dirty_image_is_repaired_before_it_is_written_to() {
    for (options, with_snapshot) in KINDS {
        println!("{options}, snapshot: {with_snapshot}");
        let mut dirty = Dirty::make(options, with_snapshot);
        let path = dirty.path();
        block_on(async {
            let image = open(&path, true).await.unwrap();
            assert!(read_all(&image).await == dirty.content, "content after the repair");
            for (at, len, byte) in [(50 << 10, 500 << 10, 5), (3 << 20, 200 << 10, 6)] {
                image
                    .write(at as u64, &Buffer::from_bytes(&vec![byte; len]).payload())
                    .await
                    .unwrap();
                dirty.content[at..at + len].fill(byte);
            }
            image.close().await.unwrap();
        });
        let verdict = qemu::check(&path, &[]);
        assert_eq!(verdict.exit, 0, "{verdict:?}");
        let image = dirty.bytes();
        assert_eq!((image[INCOMPATIBLE_AT], image[COMPATIBLE_AT]), (0, 1));
        assert!(raw_content(&path, &[]) == dirty.content, "content in the end");
        if let Some(snapshot) = dirty.snapshot {
            let now = raw_content(&path, &["-l", "snapshot.name=before"]);
            assert!(now == snapshot, "the snapshot's content");
        }
    }
}

#[test]
fn a_dirty_image_is_read_without_a_change() {
    for (options, with_snapshot) in KINDS {
        let dirty = Dirty::make(options, with_snapshot);
        let before = dirty.bytes();
        block_on(async {
            let image = open(&dirty.path(), false).await.unwrap();
            assert!(read_all(&image).await == dirty.content, "{options}");
            image.close().await.unwrap();
        });
        assert!(dirty.bytes() == before, "{options}: it was changed");
    }
}

#[test]
fn a_dirty_backing_file_is_read_without_a_change() {
    let mut dirty = Dirty::make("cluster_size=64k", false);
    let before = dirty.bytes();
    let overlay = dirty.directory.path().join("overlay");
    let file = overlay.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "image", file]);
    block_on(async {
        let image = open(&overlay, true).await.unwrap();
        image.write(1000, &Buffer::from_bytes(&[9; 1000]).payload()).await.unwrap();
        dirty.content[1000..2000].fill(9);
        assert!(read_all(&image).await == dirty.content);
        image.close().await.unwrap();
    });
    assert!(dirty.bytes() == before, "it was changed");
    assert_eq!(qemu::check(&overlay, &[]).exit, 0);
}

#[test]
fn a_dirty_image_with_more_wrong_than_counts_is_left_alone() {
    let dirty = Dirty::make("cluster_size=64k", false);
    let (path, mut image) = (dirty.path(), dirty.bytes());
    let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let l2 = (word(word(40) as usize) & !(1 << 63)) as usize;
    // An L2 entry that points into the middle of a cluster.
    image[l2 + 6] |= 2;
    std::fs::write(&path, &image).unwrap();
    let error = block_on(open(&path, true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let text = error.to_string();
    assert!(text.starts_with(path.to_str().unwrap()), "{text}");
    assert!(text.contains("qemu-img check -r all"), "{text}");
    assert!(dirty.bytes() == image, "it was changed");
}
