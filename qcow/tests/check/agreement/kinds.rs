//! Sound images of many kinds, small, each with the files it needs beside it.

use std::path::Path;
use std::process::Command;

/// How an image is made: `qemu-img create` with options, then `qemu-io` commands and `qemu-img` commands, in order.
pub struct Kind {
    name: &'static str,
    /// Options of `qemu-img create -o`.
    options: &'static str,
    backing: bool,
    size: &'static str,
    steps: &'static [Step],
}

enum Step {
    Io(&'static [&'static str]),
    Img(&'static [&'static str]),
}

use Step::{Img, Io};

/// A sound image.
pub struct Sound {
    pub name: &'static str,
    pub image: Vec<u8>,
    /// Names and bytes of the files beside it.
    pub others: Vec<(&'static str, Vec<u8>)>,
}

impl Sound {
    pub fn data_is_elsewhere(&self) -> bool {
        self.others.iter().any(|&(name, _)| name == "data")
    }
}

const SNAPSHOT_1: Step = Img(&["snapshot", "-c", "one", "image"]);
const SNAPSHOT_2: Step = Img(&["snapshot", "-c", "two", "image"]);
/// For small clusters.
const SMALL: Step = Io(&[
    "write -P 1 0 30k",
    "write -P 2 100k 8k",
    "write -P 3 70k 5k",
    "write -P 4 300k 20k",
    "write -z 10k 6k",
    "write -z -u 100k 1k",
    "discard 310k 4k",
    "write -P 5 51k 2k",
]);
const SMALL_AGAIN: Step = Io(&["write -P 7 3k 9k", "write -P 8 200k 4k", "write -z 60k 10k"]);
/// For clusters of 16 KiB and more.
const LARGE: Step = Io(&[
    "write -P 1 0 200k",
    "write -P 2 1M 64k",
    "write -P 3 700k 5k",
    "write -z 100k 64k",
    "write -z -u 1M 8k",
    "discard 128k 32k",
    "write -P 5 512k 20k",
]);
const LARGE_AGAIN: Step = Io(&["write -P 7 30k 90k", "write -P 8 1500k 40k", "write -z 600k 100k"]);
const PACKED: Step = Io(&[
    "write -c -P 1 0 64k",
    "write -c -P 2 64k 64k",
    "write -P 3 128k 64k",
    "write -c -P 4 192k 64k",
    "write -c -P 5 1M 64k",
    "write -P 6 1M 4k",
]);
const BITMAPS: Step = Img(&["bitmap", "-f", "qcow2", "--add", "-g", "64k", "image", "first"]);
const BITMAPS_2: Step = Img(&["bitmap", "-f", "qcow2", "--add", "--disable", "image", "second"]);

/// All kinds.
pub const KINDS: &[Kind] = &[
    kind("plain", "", "2M", &[LARGE]),
    kind("empty", "cluster_size=4k", "2M", &[]),
    kind(
        "v2",
        "compat=0.10,cluster_size=4k",
        "1M",
        &[Io(&["write -P 1 0 30k", "write -P 2 300k 20k"])],
    ),
    kind(
        "v2, snapshots",
        "compat=0.10,cluster_size=1k",
        "512k",
        &[Io(&["write -P 1 0 30k"]), SNAPSHOT_1, Io(&["write -P 2 5k 9k"])],
    ),
    Kind {
        backing: true,
        ..kind(
            "v2, backing",
            "compat=0.10,cluster_size=2k",
            "512k",
            &[Io(&["write -P 1 0 30k", "write -P 2 300k 20k"])],
        )
    },
    Kind { backing: true, ..kind("backing", "cluster_size=4k", "512k", &[SMALL]) },
    kind("512", "cluster_size=512", "512k", &[SMALL]),
    kind(
        "512, snapshots",
        "cluster_size=512",
        "512k",
        &[SMALL, SNAPSHOT_1, SMALL_AGAIN, SNAPSHOT_2],
    ),
    kind("1k, 1 bit", "cluster_size=1k,refcount_bits=1", "512k", &[SMALL]),
    kind(
        "2k, 2 bits, snapshots",
        "cluster_size=2k,refcount_bits=2",
        "512k",
        &[SMALL, SNAPSHOT_1, SMALL_AGAIN],
    ),
    kind("4k, 4 bits", "cluster_size=4k,refcount_bits=4", "1M", &[SMALL]),
    kind("512, 8 bits", "cluster_size=512,refcount_bits=8", "512k", &[SMALL]),
    kind(
        "4k, 32 bits, snapshots",
        "cluster_size=4k,refcount_bits=32",
        "1M",
        &[SMALL, SNAPSHOT_1, SMALL_AGAIN, SNAPSHOT_2],
    ),
    kind(
        "512, 64 bits",
        "cluster_size=512,refcount_bits=64",
        "512k",
        &[SMALL, SNAPSHOT_1, SMALL_AGAIN],
    ),
    kind("64k, snapshots", "", "2M", &[LARGE, SNAPSHOT_1, LARGE_AGAIN, SNAPSHOT_2]),
    kind("256k", "cluster_size=256k", "4M", &[LARGE]),
    kind("compressed", "", "2M", &[PACKED]),
    kind("compressed, snapshots", "refcount_bits=8", "2M", &[PACKED, SNAPSHOT_1, LARGE_AGAIN]),
    kind("zstd", "compression_type=zstd", "2M", &[PACKED]),
    kind("extended", "extended_l2=on,cluster_size=16k", "2M", &[LARGE]),
    kind(
        "extended, snapshots",
        "extended_l2=on,cluster_size=32k",
        "2M",
        &[LARGE, SNAPSHOT_1, LARGE_AGAIN],
    ),
    kind("extended, compressed", "extended_l2=on", "2M", &[PACKED]),
    Kind {
        backing: true,
        ..kind("extended, backing", "extended_l2=on,cluster_size=16k", "512k", &[LARGE_TO_512K])
    },
    kind("data file", "data_file=data,cluster_size=4k", "1M", &[SMALL]),
    kind("raw data file", "data_file=data,data_file_raw=on", "2M", &[LARGE]),
    kind("data file, extended", "data_file=data,extended_l2=on,cluster_size=16k", "2M", &[LARGE]),
    kind("preallocated", "preallocation=metadata,cluster_size=8k", "1M", &[SMALL_AGAIN]),
    kind("bitmaps", "cluster_size=4k", "1M", &[BITMAPS, SMALL, BITMAPS_2]),
    kind(
        "bitmaps, snapshots",
        "cluster_size=16k",
        "2M",
        &[BITMAPS, LARGE, BITMAPS_2, SNAPSHOT_1, LARGE_AGAIN],
    ),
    kind("lazy", "lazy_refcounts=on,cluster_size=4k", "1M", &[SMALL]),
];

const LARGE_TO_512K: Step = Io(&[
    "write -P 1 0 100k",
    "write -P 3 300k 5k",
    "write -z 50k 30k",
    "discard 64k 16k",
    "write -P 5 400k 2k",
]);

const fn kind(
    name: &'static str,
    options: &'static str,
    size: &'static str,
    steps: &'static [Step],
) -> Kind {
    Kind { name, options, backing: false, size, steps }
}

impl Kind {
    /// Makes it in a directory below `directory`.
    pub fn make(&self, directory: &Path) -> Sound {
        let place = directory.join(self.name.replace([',', ' '], "-"));
        std::fs::create_dir(&place).unwrap();
        let mut create = vec!["create", "-q", "-f", "qcow2"];
        if !self.options.is_empty() {
            create.extend(["-o", self.options]);
        }
        if self.backing {
            std::fs::write(place.join("base"), [0xbb; 512 << 10]).unwrap();
            create.extend(["-b", "base", "-F", "raw"]);
        }
        create.extend(["image", self.size]);
        run(&place, "qemu-img", &create);
        for step in self.steps {
            match step {
                Img(arguments) => run(&place, "qemu-img", arguments),
                Io(commands) => {
                    let mut arguments: Vec<&str> =
                        commands.iter().flat_map(|c| ["-c", *c]).collect();
                    arguments.extend(["-f", "qcow2", "image"]);
                    run(&place, "qemu-io", &arguments);
                }
            }
        }
        let read = |name| std::fs::read(place.join(name)).ok().map(|bytes| (name, bytes));
        let others = ["base", "data"].into_iter().filter_map(read).collect();
        Sound { name: self.name, image: std::fs::read(place.join("image")).unwrap(), others }
    }
}

fn run(directory: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).current_dir(directory).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
}
