//! What an image shows: its disk, its snapshots and its bitmaps.

use std::ffi::OsString;
use std::iter::successors;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use qcow::crypt::Passphrase;
use qcow::disk::Buffer;
use qcow::disk::sim::SimDisk;
use qcow::engine::check::{CheckSummary, Repair, check};
use qcow::engine::{Image, OpenOptions, SnapshotChoice};
use qcow::gate::OneFile;

/// What opens those that are encrypted. It remembers the keys that it opened.
pub static KEY: LazyLock<Arc<Passphrase>> =
    LazyLock::new(|| Arc::new(Passphrase::read(&b"key"[..]).unwrap()));

#[derive(Clone, PartialEq, Eq)]
pub struct Layers {
    disk: Vec<u8>,
    /// By their ids.
    snapshots: Vec<(OsString, Vec<u8>)>,
    /// By their names: the stretches of the disk that are marked.
    bitmaps: Vec<(OsString, Vec<(u64, u64)>)>,
}

pub async fn open(disk: &SimDisk, options: OpenOptions) -> qcow::Result<Image<SimDisk>> {
    let options = OpenOptions { keys: vec![Some(Arc::clone(&KEY))], ..options };
    Image::open(&OneFile(disk.clone()), Path::new("image"), &options).await
}

pub async fn open_to_write(disk: &SimDisk) -> qcow::Result<Image<SimDisk>> {
    open(disk, OpenOptions { writable: true, ..OpenOptions::default() }).await
}

pub async fn look(disk: &SimDisk) -> CheckSummary {
    check(disk, Path::new("image"), Repair::None, &mut |_| ()).await.unwrap()
}

impl Layers {
    pub async fn read(disk: &SimDisk) -> Self {
        Self::try_read(disk).await.unwrap()
    }

    pub async fn try_read(disk: &SimDisk) -> qcow::Result<Self> {
        let image = open(disk, OpenOptions::default()).await?;
        let mut snapshots = Vec::new();
        for snapshot in image.snapshots().await? {
            let choice = Some(SnapshotChoice::Id(snapshot.id.clone()));
            let options = OpenOptions { snapshot: choice, ..OpenOptions::default() };
            let shown = content(&open(disk, options).await?).await?;
            snapshots.push((snapshot.id, shown));
        }
        let mut bitmaps = Vec::new();
        for bitmap in image.bitmaps().await? {
            let bits = image.read_bitmap(&bitmap.name).await?;
            let next = |&(at, len): &(u64, u64)| bits.next_marked(at + len);
            bitmaps.push((bitmap.name, successors(bits.next_marked(0), next).collect()));
        }
        Ok(Self { disk: content(&image).await?, snapshots, bitmaps })
    }
}

async fn content(image: &Image<SimDisk>) -> qcow::Result<Vec<u8>> {
    let buffer = Buffer::from_bytes(&vec![0xee; image.virtual_size() as usize]);
    image.read(0, &buffer.payload()).await?;
    Ok(buffer.to_vec())
}

/// Writes all of the disk, and closes it.
pub async fn write_all(disk: &SimDisk) {
    let image = open_to_write(disk).await.unwrap();
    let data = Buffer::from_bytes(&vec![9; image.virtual_size() as usize]);
    let written = image.write(0, &data.payload()).await;
    // Narrow counts may not be able to tell of any more.
    let is_full = |e: &qcow::Error| e.kind() == qcow::error::ErrorKind::Limit;
    assert!(written.as_ref().err().is_none_or(is_full), "{written:?}");
    image.close().await.unwrap();
}
