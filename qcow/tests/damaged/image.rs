//! A small image in memory, to be damaged field by field.

use std::path::Path;
use std::process::Command;

use qcow::ErrorKind;
use qcow::disk::Buffer;
use qcow::disk::sim::{SimDisk, World};
use qcow::engine::{CreateOptions, Format, Image, OpenOptions, create};
use qcow::gate::OneFile;

pub const CLUSTER: u64 = 1024;
pub const COPIED: u64 = 1 << 63;

/// The corrupt bit of the incompatible features.
const CORRUPT: u64 = 1 << 1;

pub async fn open(file: &SimDisk, writable: bool) -> qcow::Result<Image<SimDisk>> {
    let options = OpenOptions { writable, format: Some(Format::Qcow2), ..OpenOptions::default() };
    Image::open(&OneFile(file.clone()), Path::new("image"), &options).await
}

pub async fn write(image: &Image<SimDisk>, cluster: u64, byte: u8) -> qcow::Result<()> {
    let bytes = Buffer::from_bytes(&[byte; CLUSTER as usize]);
    image.write(cluster * CLUSTER, &bytes.payload()).await
}

/// A sound image whose first guest clusters are written, to be damaged.
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    pub fn sound() -> Self {
        let world = World::new(1);
        let file = world.add_file(&[]);
        world.block_on(async {
            let size = 128 * CLUSTER;
            let options = CreateOptions { size, cluster_bits: 10, ..CreateOptions::default() };
            create(&file, &options).await.expect("create");
            let image = open(&file, true).await.expect("open");
            for cluster in 0..4 {
                write(&image, cluster, 1 + cluster as u8).await.expect("write");
            }
            image.close().await.expect("close");
        });
        Self(file.to_vec())
    }

    /// Nothing differs from `expected` but the mark of an unclean shutdown, behind the fields of the header.
    pub fn assert_only_marked(&self, expected: &Self) {
        let fields = if self.0[7] == 2 { 72 } else { 104 };
        let (header, rest) = self.0.split_at(CLUSTER as usize);
        let (expected_header, expected_rest) = expected.0.split_at(CLUSTER as usize);
        assert!(header[..fields] == expected_header[..fields], "a field of the header differs");
        assert!(rest == expected_rest, "something has been written");
    }

    pub fn word(&self, at: u64) -> u64 {
        let at = at as usize;
        u64::from_be_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    pub fn set_word(&mut self, at: u64, word: u64) {
        let at = at as usize;
        self.0[at..at + 8].copy_from_slice(&word.to_be_bytes());
    }

    pub fn l1(&self) -> u64 {
        self.word(40)
    }

    pub fn l2(&self) -> u64 {
        self.word(self.l1()) & !COPIED
    }

    pub fn refcount_table(&self) -> u64 {
        self.word(48)
    }

    /// Opening it for writing fails, reading it changes nothing.
    pub fn assert_refused(self) {
        let world = World::new(1);
        let file = world.add_file(&self.0);
        let refused = world.block_on(open(&file, true));
        assert_eq!(refused.expect_err("must be refused").kind(), ErrorKind::Corrupt);
        assert!(file.to_vec() == self.0);
    }

    /// Where the count of `cluster` is; counts are 16 bits wide.
    fn count_at(&self, cluster: u64) -> usize {
        (self.word(self.refcount_table()) + cluster * 2) as usize
    }

    pub fn set_count(&mut self, cluster: u64, count: u16) {
        let at = self.count_at(cluster);
        self.0[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    pub fn count(&self, cluster: u64) -> u16 {
        let at = self.count_at(cluster);
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    pub fn cluster(&self, offset: u64) -> &[u8] {
        &self.0[offset as usize..(offset + CLUSTER) as usize]
    }

    pub fn is_marked_corrupt(&self) -> bool {
        self.word(72) & CORRUPT != 0
    }

    pub fn set_corrupt_bit(&mut self) {
        self.set_word(72, self.word(72) | CORRUPT);
    }

    /// These bytes after `qemu-img ARGUMENTS FILE` or `qemu-io ARGUMENTS FILE`, and what that said.
    pub fn through(&self, program: &str, args: &[&str]) -> (Self, String) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        std::fs::write(&path, &self.0).expect("write");
        let output = Command::new(program).args(args).arg(&path).output();
        let output = output.expect("qemu-utils is installed");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {stderr}");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        (Self(std::fs::read(&path).expect("read")), told)
    }
}
