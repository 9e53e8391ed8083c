//! One script: an image, and turns of random requests by either program.

use std::path::{Path, PathBuf};

use qcow::disk::sim::Random;
use qcow::disk::uring::CacheMode;
use qcow::engine::{CreateOptions, Preallocation};
use qcow::format::compression::CompressionType;
use qcow::format::header::Version;

use crate::model::Model;
use crate::{encryption, ours, qemu};

const TURNS: u64 = 4;
const OPS_PER_TURN_MAX: u64 = 14;
/// Bytes that a disk has at most after a resize.
const SIZE_MAX: u64 = 16 << 20;

/// One request, in bytes.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Write {
        at: u64,
        len: u64,
        byte: u8,
    },
    /// Of whole clusters, none of which has a place in the file yet.
    Compressed {
        at: u64,
        len: u64,
        byte: u8,
    },
    Zero {
        at: u64,
        len: u64,
        unmap: bool,
    },
    Discard {
        at: u64,
        len: u64,
    },
    Flush,
    Resize {
        size: u64,
    },
}

impl Op {
    /// The request as `qemu-io` takes it.
    pub fn to_qemu_io(self) -> String {
        match self {
            Self::Write { at, len, byte } => format!("write -P {byte} {at} {len}"),
            Self::Compressed { at, len, byte } => format!("write -c -P {byte} {at} {len}"),
            Self::Zero { at, len, unmap: true } => format!("write -z -u {at} {len}"),
            Self::Zero { at, len, unmap: false } => format!("write -z {at} {len}"),
            Self::Discard { at, len } => format!("discard {at} {len}"),
            Self::Flush => "flush".to_owned(),
            Self::Resize { size } => format!("truncate {size}"),
        }
    }

    fn apply(self, model: &mut Model) {
        match self {
            Self::Write { at, len, byte } | Self::Compressed { at, len, byte } => {
                model.fill(at, len, byte);
            }
            Self::Zero { at, len, .. } => model.fill(at, len, 0),
            Self::Discard { at, len } => model.discard(at, len),
            Self::Flush => {}
            Self::Resize { size } => model.resize(size),
        }
    }
}

/// What lies below the image.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Base {
    None,
    Raw,
    Qcow2,
    Compressed(&'static str),
}

struct Script {
    random: Random,
    directory: tempfile::TempDir,
    size: u64,
    cluster: u64,
    version: &'static str,
    extended: bool,
    refcount_bits: u64,
    compression: &'static str,
    base: Base,
    /// The disk is encrypted, so nothing is compressed.
    encrypted: bool,
    /// The image itself starts out full of compressed clusters.
    starts_compressed: bool,
    cache: CacheMode,
    /// Which clusters surely have no place in the file.
    placeless: Vec<bool>,
    /// Whose turn it is.
    by_qemu: bool,
}

/// Runs the script of `seed`; panics where the programs differ.
pub fn run(seed: u64) {
    let mut script = Script::new(seed);
    println!("seed {seed}: {}", script.describe());
    let base = script.make_base();
    let image = script.file("image.qcow2");
    let mut model = Model::new(script.size, &base);
    if script.starts_compressed {
        let bytes = script.make_compressed_image(&image);
        model = Model::new(script.size, &bytes);
    } else {
        script.make_image(&image);
    }
    let mut snapshot: Option<Vec<u8>> = None;
    let first = script.random.below(2);
    for turn in 0..TURNS {
        if turn == 1 && script.can_snapshot() && script.random.below(2) == 0 {
            qemu::on_image(&["snapshot", "-c", "before"], &image);
            snapshot = Some(model.bytes().to_vec());
        }
        let by_qemu = (turn + first).is_multiple_of(2);
        script.by_qemu = by_qemu;
        let ops = script.make_ops(by_qemu);
        if by_qemu {
            qemu::io(&image, &ops);
        } else {
            ours::io(&image, &ops, script.cache);
        }
        ops.iter().for_each(|op| op.apply(&mut model));
        let who = if by_qemu { "after qemu-io" } else { "after us" };
        model.check(&format!("{who}, QEMU reads"), &qemu::read_all(&image));
        model.check(&format!("{who}, we read"), &ours::read_all(&image, script.cache));
        qemu::check(&image);
        ours::check(&image);
    }
    if let Some(bytes) = snapshot {
        qemu::on_image(&["snapshot", "-a", "before"], &image);
        let read = ours::read_all(&image, script.cache);
        Model::new(bytes.len() as u64, &bytes).check("the snapshot, we read", &read);
        qemu::check(&image);
    }
}

impl Script {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let extended = random.below(3) == 0;
        let cluster = if extended { 0x4000 << random.below(8) } else { 512 << random.below(13) };
        let v3 = extended || random.below(5) > 0;
        let bases = [
            Base::None,
            Base::None,
            Base::Raw,
            Base::Qcow2,
            Base::Compressed("zlib"),
            Base::Compressed("zstd"),
        ];
        // Small clusters make the refcount table grow; large ones need a few clusters at all.
        let size_max = (cluster * 24).clamp(3 << 20, 12 << 20);
        let sectors = 1 + random.below(size_max / 512);
        let base = bases[random.below(bases.len() as u64) as usize];
        let encrypted = random.below(4) == 0;
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            size: sectors * 512,
            cluster,
            version: if v3 { "v3" } else { "v2" },
            extended,
            refcount_bits: if v3 { 1 << random.below(7) } else { 16 },
            compression: if v3 && random.below(2) == 0 { "zstd" } else { "zlib" },
            base,
            encrypted,
            starts_compressed: base == Base::None && !encrypted && random.below(2) == 0,
            placeless: vec![true; (sectors * 512).div_ceil(cluster) as usize],
            cache: [CacheMode::PageCache, CacheMode::Direct][random.below(2) as usize],
            by_qemu: false,
            random,
        }
    }

    fn describe(&self) -> String {
        format!(
            "{} bytes, {} cluster_size={} refcount_bits={} {} {:?} {:?}{}{}{}",
            self.size,
            self.version,
            self.cluster,
            self.refcount_bits,
            self.compression,
            self.base,
            self.cache,
            if self.extended { ", extended L2" } else { "" },
            if self.starts_compressed { ", compressed" } else { "" },
            if self.encrypted { ", encrypted" } else { "" },
        )
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes the backing file, if any; its bytes.
    fn make_base(&mut self) -> Vec<u8> {
        if self.base == Base::None {
            return Vec::new();
        }
        // Shorter or longer than the image, and no multiple of its clusters.
        let len = (1 + self.random.below(self.size / 512 * 3 / 2)) * 512;
        let mut bytes = vec![0; len as usize];
        self.scribble(&mut bytes);
        let raw = self.file("base.raw");
        std::fs::write(&raw, &bytes).expect("write the base");
        let (raw, base) = (qemu::path(&raw), self.file("base.qcow2"));
        match self.base {
            Base::None | Base::Raw => {}
            Base::Qcow2 => {
                qemu::img(&["convert", "-f", "raw", "-O", "qcow2", raw, qemu::path(&base)]);
            }
            Base::Compressed(kind) => {
                let option = format!("compression_type={kind}");
                let args = [
                    "convert",
                    "-c",
                    "-o",
                    &option,
                    "-f",
                    "raw",
                    "-O",
                    "qcow2",
                    raw,
                    qemu::path(&base),
                ];
                qemu::img(&args);
            }
        }
        bytes
    }

    /// Makes an empty image, by either program.
    fn make_image(&mut self, image: &Path) {
        let base = match self.base {
            Base::None => None,
            Base::Raw => Some(("base.raw", "raw")),
            Base::Qcow2 | Base::Compressed(_) => Some(("base.qcow2", "qcow2")),
        };
        // QEMU takes a second for each key slot it makes; that we open those is tested elsewhere.
        if self.encrypted || self.random.below(2) == 0 {
            return self.make_image_ourselves(image, base);
        }
        let (options, size) = (self.create_options(), self.size.to_string());
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if let Some((name, format)) = base {
            args.extend(["-b", name, "-F", format]);
        }
        args.extend([qemu::path(image), &size]);
        qemu::img(&args);
    }

    fn make_image_ourselves(&mut self, image: &Path, base: Option<(&str, &str)>) {
        let whole = [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];
        let encryption = self.encrypted.then(|| encryption::choose(&mut self.random, image));
        let options = CreateOptions {
            size: self.size,
            encryption,
            version: if self.version == "v3" { Version::V3 } else { Version::V2 },
            cluster_bits: self.cluster.ilog2(),
            refcount_order: self.refcount_bits.ilog2(),
            extended_l2: self.extended,
            compression: match self.compression {
                "zstd" => CompressionType::Zstd,
                _ => CompressionType::Deflate,
            },
            // Only where there are subclusters does a backing file show through what is laid out in advance.
            preallocation: match self.random.below(6) {
                kind @ 0..3
                    if (base.is_none() || self.extended)
                        && (!self.encrypted || self.version == "v3") =>
                {
                    whole[kind as usize]
                }
                _ => Preallocation::Off,
            },
            backing: base.map(|(name, format)| (name.into(), Some(format.to_owned()))),
            ..CreateOptions::default()
        };
        println!(
            "made by us, preallocation {:?}, encryption {:?}",
            options.preallocation, options.encryption
        );
        if options.preallocation != Preallocation::Off {
            self.placeless.fill(false);
        }
        ours::make(image, &options);
    }

    /// Makes the image out of compressed clusters; its bytes.
    fn make_compressed_image(&mut self, image: &Path) -> Vec<u8> {
        self.placeless.fill(false);
        let mut bytes = vec![0; self.size as usize];
        self.scribble(&mut bytes);
        let raw = self.file("start.raw");
        std::fs::write(&raw, &bytes).expect("write the start");
        let options = self.create_options();
        let (raw, image) = (qemu::path(&raw), qemu::path(image));
        qemu::img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, raw, image]);
        bytes
    }

    fn create_options(&self) -> String {
        let (cluster, bits, version) = (self.cluster, self.refcount_bits, self.version);
        let mut options = format!("cluster_size={cluster},refcount_bits={bits},compat={version}");
        if self.version == "v3" {
            options += &format!(",compression_type={}", self.compression);
        }
        if self.extended {
            options += ",extended_l2=on";
        }
        options
    }

    /// Fills some stretches, each with a byte of its own.
    fn scribble(&mut self, bytes: &mut [u8]) {
        let len = bytes.len() as u64;
        for _ in 0..6 {
            let at = self.random.below(len);
            let end = (at + 1 + self.random.below(len / 2 + 1)).min(len);
            bytes[at as usize..end as usize].fill(0x80 | self.random.below(64) as u8);
        }
    }

    fn make_ops(&mut self, by_qemu: bool) -> Vec<Op> {
        let count = 1 + self.random.below(OPS_PER_TURN_MAX);
        let (mut packed, mut freed) = (false, false);
        let mut ops = Vec::new();
        for _ in 0..count {
            // QEMU 10.0 goes on packing compressed clusters into a cluster of the file that has become free, even where it
            // holds data by then.
            let op = self.make_op(!self.encrypted && (!by_qemu || !freed));
            match op {
                Op::Compressed { .. } => packed = true,
                _ => freed |= packed,
            }
            ops.push(op);
        }
        ops
    }

    fn make_op(&mut self, may_compress: bool) -> Op {
        let (at, len) = self.make_range();
        let byte = 1 + self.random.below(127) as u8;
        let kind = self.random.below(if self.extended { 13 } else { 12 });
        let op = match kind {
            0 | 1 => Op::Zero { at, len, unmap: kind == 0 },
            2 | 3 => Op::Discard { at: at & !511, len: (len | 511) + 1 }.clip(self.size),
            4 => Op::Flush,
            5..=7 => match self.placeless_range(at).filter(|_| may_compress) {
                Some((at, len)) => Op::Compressed { at, len, byte },
                None => Op::Write { at, len, byte },
            },
            12 => self.resize(),
            _ => Op::Write { at, len, byte },
        };
        self.note_places(op);
        op
    }

    /// A few clusters from about `at` on that have no place in the file.
    fn placeless_range(&mut self, at: u64) -> Option<(u64, u64)> {
        let first = at / self.cluster;
        let count_max = 1 + self.random.below(6) as usize;
        let free = self.placeless[first as usize..].iter().take(count_max);
        let count = free.take_while(|free| **free).count() as u64;
        let end = ((first + count) * self.cluster).min(self.size);
        (count > 0).then(|| (first * self.cluster, end - first * self.cluster))
    }

    /// Notes which clusters have a place in the file after `op`.
    fn note_places(&mut self, op: Op) {
        let (touched, free) = match op {
            // A discard makes a place free where the version can say so; of the last cluster nothing is sure.
            Op::Discard { at, len } if self.version == "v3" => {
                (at.div_ceil(self.cluster)..(at + len) / self.cluster, true)
            }
            Op::Flush | Op::Discard { .. } | Op::Resize { .. } => return,
            Op::Write { at, len, .. }
            | Op::Compressed { at, len, .. }
            | Op::Zero { at, len, .. } => {
                (at / self.cluster..(at + len).div_ceil(self.cluster), false)
            }
        };
        for cluster in touched {
            self.placeless[cluster as usize] = free;
        }
    }

    /// Makes the disk larger or smaller, by any number of sectors.
    fn resize(&mut self) -> Op {
        let sectors = 1 + self.random.below(self.size / 512 * 3 / 2);
        let size = sectors.min(SIZE_MAX / 512) * 512;
        // QEMU leaves what a shrinking cuts off of the last cluster, and shows it when the disk grows again.
        let keeps_rest = self.by_qemu && size < self.size;
        self.size =
            if keeps_rest { size.next_multiple_of(self.cluster).min(self.size) } else { size };
        self.placeless.resize(self.size.div_ceil(self.cluster) as usize, false);
        Op::Resize { size: self.size }
    }

    /// A snapshot adds one to every count, and compressed clusters that share a cluster of the file may fill a narrow one.
    fn can_snapshot(&self) -> bool {
        self.refcount_bits >= 16
    }

    /// Single bytes, sectors, clusters and long stretches; aligned and not.
    fn make_range(&mut self) -> (u64, u64) {
        let part = if self.extended { self.cluster / 32 } else { self.cluster };
        let unit = [1, 512, self.cluster, part][self.random.below(4) as usize];
        let at = self.random.below(self.size) / unit * unit;
        let len = (1 + self.random.below(8)) * unit;
        let len =
            if self.random.below(8) == 0 { 1 + self.random.below(self.size / 2 + 1) } else { len };
        (at, len.min(self.size - at))
    }
}

impl Op {
    fn clip(self, size: u64) -> Self {
        match self {
            Self::Discard { at, len } => Self::Discard { at, len: len.min(size - at) },
            other => other,
        }
    }
}
