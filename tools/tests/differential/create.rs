//! New images: what QEMU says about ours is what it says about its own.

use std::path::Path;
use std::process::Command;

use crate::tool::{Pair, Tool};

/// Options and sizes; every combination that QEMU accepts.
const OPTIONS: [&str; 17] = [
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=64k",
    "cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=64",
    "cluster_size=512,refcount_bits=64",
    "compat=v2",
    "compat=0.10,cluster_size=1M",
    "lazy_refcounts=on",
    "lazy_refcounts",
    "compression_type=zstd",
    "preallocation=off",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full,cluster_size=4k",
    "preallocation=metadata,refcount_bits=1,cluster_size=512",
];
const SIZES: [&str; 4] = ["0", "1000", "1M", "100M"];

#[test]
fn images_with_any_option_are_described_alike_and_clean() {
    for options in OPTIONS {
        for size in SIZES {
            if size == "100M" && options.contains("full") {
                continue;
            }
            let pair = Pair::new();
            pair.same_img(&format!("create -f qcow2 -o {options} x.qcow2 {size}"));
            for tool in [Tool::Ours, Tool::Theirs] {
                let theirs = tool.img(pair.theirs(), "info --output=json x.qcow2").json();
                let ours = tool.img(pair.ours(), "info --output=json x.qcow2").json();
                for key in ["virtual-size", "cluster-size", "format-specific", "format"] {
                    assert_eq!(ours[key], theirs[key], "{key} of {options} {size}");
                }
            }
            pair.same_clean_image("x.qcow2");
        }
    }
}

#[test]
fn new_images_have_the_same_bytes() {
    // What is laid out in advance may lie elsewhere.
    let plain = OPTIONS.iter().filter(|options| !options.contains("preallocation"));
    for options in plain.chain(&["extended_l2=on", "backing_file=base,backing_fmt=raw"]) {
        for size in SIZES {
            let pair = Pair::prepared("img create -q -f raw base 1M");
            pair.same_img(&format!("create -f qcow2 -o {options} x.qcow2 {size}"));
            let [ours, theirs] = [pair.ours(), pair.theirs()]
                .map(|directory| std::fs::read(directory.join("x.qcow2")).expect("an image"));
            assert!(ours == theirs, "{options} {size}");
        }
    }
}

#[test]
fn extended_entries_are_refused_where_qemu_refuses_them() {
    let pair = Pair::prepared("img create -q -f qcow2 a.qcow2 3M");
    for options in [
        "extended_l2=on,cluster_size=8k",
        "extended_l2=on,cluster_size=512",
        "extended_l2=on,compat=v2",
        "extended_l2=maybe",
        "backing_file=a.qcow2,backing_fmt=qcow2,preallocation=metadata",
        "backing_file=a.qcow2,backing_fmt=qcow2,preallocation=full,extended_l2=off",
    ] {
        pair.same_img(&format!("create -f qcow2 -o {options} x.qcow2 1M"));
    }
}

#[test]
fn overlays_take_size_and_names_as_given() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 a.qcow2 3M
         img create -q -f raw a.raw 2M
         img create -q -f qcow2 a,b.qcow2 1M",
    );
    for line in [
        "create -f qcow2 -b a.qcow2 -F qcow2 x.qcow2",
        "create -f qcow2 -b a.raw -F raw x.qcow2",
        "create -f qcow2 -b a.raw -F raw x.qcow2 5M",
        "create -f qcow2 -b a,b.qcow2 -F qcow2 x.qcow2",
        "create -f qcow2 -o backing_file=a,,b.qcow2,backing_fmt=qcow2 x.qcow2",
        "create -f qcow2 -b a.qcow2 -F raw x.qcow2",
        "create -q -f qcow2 -b a.qcow2 -F qcow2 x.qcow2",
        "create -f qcow2 -u -b missing -F qcow2 y.qcow2 1M",
        "create -f qcow2 -o size=2M x.qcow2",
        "create -f qcow2 -o compat=v3 -o cluster_size=0x1000 x.qcow2 1.5M",
    ] {
        pair.same_img(line);
        let name = if line.contains("y.qcow2") { "y.qcow2" } else { "x.qcow2" };
        pair.same_json(&format!("info --output=json {name}"));
    }
}

#[test]
fn raw_images_have_the_same_bytes() {
    for options in ["", "-o preallocation=off", "-o preallocation=falloc", "-o preallocation=full"]
    {
        for size in ["0", "1000", "1M"] {
            let pair = Pair::new();
            pair.same_img(&format!("create -f raw {options} x.raw {size}"));
            let [ours, theirs] =
                [pair.ours(), pair.theirs()].map(|d| std::fs::read(d.join("x.raw")));
            assert!(ours.unwrap() == theirs.unwrap(), "{options} {size}");
        }
    }
}

#[test]
fn devices_keep_their_length() {
    let pair = Pair::new();
    let file = pair.ours().join("device");
    std::fs::write(&file, vec![0xff; 5 << 20]).unwrap();
    let Some(device) = LoopDevice::attach(&file) else { return };
    for arguments in [
        "10M",
        "5M",
        "4M",
        "4M -o preallocation=full",
        "4M -o preallocation=falloc",
        "10M -o preallocation=off",
    ] {
        let line = format!("create -f raw {} {arguments}", device.0);
        // One after the other, each on a device that is full of data.
        let [ours, theirs] = [Tool::Ours, Tool::Theirs].map(|tool| {
            std::fs::write(&device.0, vec![0xff; 5 << 20]).unwrap();
            (tool.img(pair.ours(), &line), std::fs::read(&device.0).unwrap())
        });
        assert_eq!(ours.0, theirs.0, "{line}");
        assert!(ours.1 == theirs.1, "the content after {line}");
    }
}

/// A loop device, by its path; detached in the end.
struct LoopDevice(String);

impl LoopDevice {
    /// `None`, and a line that says so, where this host has none to spare.
    fn attach(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["-f", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).expect("a path");
                Some(Self(path.trim().to_owned()))
            }
            other => {
                eprintln!("skipped: losetup has no loop device: {other:?}");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // The test has its result; a device that stays attached is the host's to tell.
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let pair = Pair::new();
    for option in ["nocow=on", "extent_size_hint=4k"] {
        let line = format!("create -f qcow2 -o {option} x.qcow2 1M");
        let said = Tool::Ours.img(pair.ours(), &line);
        let name = option.split('=').next().unwrap();
        assert_eq!(said.code, Some(1));
        assert_eq!(
            said.stderr,
            format!("qemu-img: x.qcow2: option '{name}' is not supported yet\n")
        );
        assert!(!pair.ours().join("x.qcow2").exists());
    }
}
