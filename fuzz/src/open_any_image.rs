//! Uses any bytes as a program would use an image: no input may panic, hang, or ask for memory without bound.

use std::path::Path;

use qcow::disk::Buffer;
use qcow::disk::sim::{SimDisk, World};
use qcow::engine::check::{Repair, check};
use qcow::engine::info::ImageInfo;
use qcow::engine::{Format, Image, OpenOptions};
use qcow::gate::OneFile;

/// Space that a hostile image can make us use.
const CAPACITY: u64 = 64 << 20;
/// Stretches of the disk that are mapped; a hostile image can have billions.
const EXTENTS_MAX: usize = 256;
/// Bytes of one request.
const REQUEST: u64 = 6000;

/// Looks at `bytes`, reads, maps and checks them, then changes them, each as far as the image lets it.
pub fn run(bytes: &[u8]) {
    let world = World::new(bytes.len() as u64);
    let file = world.add_file(bytes);
    file.set_capacity(bytes.len() as u64 + CAPACITY);
    world.block_on(async {
        let path = Path::new("image");
        // Errors are what most inputs deserve; the point is that they are errors.
        let _ = ImageInfo::read(&file, path, None).await;
        let _ = check(&file, path, Repair::None, &mut |_| {}).await;
        for backing in [true, false] {
            if let Ok(image) = open(&file, false, backing).await {
                look(&image).await;
            }
        }
        assert!(file.to_vec() == bytes, "reading has changed the image");
        if let Ok(image) = open(&file, true, false).await {
            change(&image).await;
            let _ = image.close().await;
        }
        let _ = check(&file, path, Repair::Leaks, &mut |_| {}).await;
    });
}

async fn open(file: &SimDisk, writable: bool, backing: bool) -> qcow::Result<Image<SimDisk>> {
    let format = Some(Format::Qcow2);
    let options = OpenOptions { writable, backing, format, ..OpenOptions::default() };
    Image::open(&OneFile(file.clone()), Path::new("image"), &options).await
}

async fn look(image: &Image<SimDisk>) {
    let mut at = 0;
    for _ in 0..EXTENTS_MAX {
        let Ok(extent) = image.map(at, image.virtual_size() - at).await else { break };
        at += extent.len;
        if at >= image.virtual_size() {
            break;
        }
    }
    for at in places(image) {
        let _ = read(image, at).await;
    }
}

async fn change(image: &Image<SimDisk>) {
    for (i, at) in places(image).into_iter().enumerate() {
        let len = REQUEST.min(image.virtual_size() - at);
        let bytes = vec![i as u8 + 1; len as usize];
        let written = image.write(at, &Buffer::from_bytes(&bytes).payload()).await;
        if written.is_ok()
            && let Ok(read) = read(image, at).await
        {
            assert!(read == bytes, "what was written at {at:#x} does not read back");
        }
        let _ = image.write_zeroes(at + len / 2, len - len / 2, i % 2 == 0).await;
        let _ = image.discard(at, len).await;
        let _ = image.flush().await;
    }
}

async fn read(image: &Image<SimDisk>, at: u64) -> qcow::Result<Vec<u8>> {
    let buffer = Buffer::zeroed(REQUEST.min(image.virtual_size() - at) as usize);
    image.read(at, &buffer.payload()).await?;
    Ok(buffer.to_vec())
}

/// The disk's start, its end, and places between.
fn places(image: &Image<SimDisk>) -> Vec<u64> {
    let size = image.virtual_size();
    let cluster = image.cluster_size().unwrap_or(512);
    let places =
        [0, 1, cluster, cluster + 100, 3 * cluster, size / 2, size.saturating_sub(REQUEST)];
    places.into_iter().filter(|&at| at < size).collect()
}
