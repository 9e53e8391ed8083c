//! This engine, on real files.

use std::path::Path;

use qcow::disk::Buffer;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};

use qcow::engine::check::{Repair, check as check_image};
use qcow::engine::{CreateOptions, Discard, Format, Image, OpenOptions, create};
use qcow::gate::{BackingPolicy, Gate, HostGate};

use crate::encryption;
use crate::script::Op;

fn gate(cache: CacheMode) -> HostGate {
    HostGate { cache, shared: false, backing: BackingPolicy::Beside(Vec::new()) }
}

async fn open(image: &Path, writable: bool, cache: CacheMode) -> Image<UringDisk> {
    let options = OpenOptions {
        writable,
        format: Some(Format::Qcow2),
        discard: Discard::Unmap,
        keys: vec![encryption::key(image)],
        legacy_aes: true,
        ..OpenOptions::default()
    };
    Image::open(&gate(cache), image, &options).await.expect("open")
}

/// Makes an image.
pub fn make(image: &Path, options: &CreateOptions) {
    let disk = UringDisk::open(image, Access::Create, CacheMode::PageCache).expect("create");
    block_on(create(&disk, options)).expect("create");
}

/// Runs `ops` on `image`.
pub fn io(image: &Path, ops: &[Op], cache: CacheMode) {
    block_on(async {
        let image = open(image, true, cache).await;
        for op in ops {
            run_op(&image, op).await.unwrap_or_else(|e| panic!("{op:?}: {e}"));
        }
        image.close().await.expect("close");
    });
}

async fn run_op(image: &Image<UringDisk>, op: &Op) -> qcow::Result<()> {
    match *op {
        Op::Write { at, len, byte } => {
            image.write(at, &Buffer::from_bytes(&vec![byte; len as usize]).payload()).await
        }
        Op::Compressed { at, len, byte } => {
            let payload = Buffer::from_bytes(&vec![byte; len as usize]).payload();
            image.write_compressed(at, &payload).await
        }
        Op::Zero { at, len, unmap } => image.write_zeroes(at, len, unmap).await,
        Op::Discard { at, len } => image.discard(at, len).await,
        Op::Flush => image.flush().await,
        Op::Resize { size } => image.resize(size, true).await,
    }
}

/// The whole disk, as this engine reads it.
pub fn read_all(image: &Path, cache: CacheMode) -> Vec<u8> {
    block_on(async {
        let image = open(image, false, cache).await;
        let buffer = Buffer::zeroed(image.virtual_size() as usize);
        image.read(0, &buffer.payload()).await.expect("read");
        buffer.to_vec()
    })
}

/// Fails unless this engine finds the image clean.
pub fn check(image: &Path) {
    let mut findings = Vec::new();
    let summary = block_on(async {
        let disk = gate(CacheMode::PageCache).open_image(image, false).expect("open");
        check_image(&disk, image, Repair::None, &mut |f| findings.push(f.to_string())).await
    });
    let summary = summary.expect("check");
    assert!(summary.leaks == 0 && summary.corruptions == 0, "our check: {findings:#?}");
}
