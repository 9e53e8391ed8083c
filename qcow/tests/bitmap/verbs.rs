//! What the verbs promise, one at a time.

use std::ffi::OsStr;
use std::path::Path;

use qcow::ErrorKind;
use qcow::disk::Buffer;
use qcow::disk::uring::{UringDisk, block_on};
use qcow::engine::{Image, OpenOptions};

use crate::place::{
    Place, expect_clean, gate, list, open, qemu_dies, qemu_img, qemu_io, read, text, try_open,
};

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

async fn write(image: &Image<UringDisk>, at: u64, len: u64) {
    let payload = Buffer::from_bytes(&vec![7; len as usize]).payload();
    image.write(at, &payload).await.expect("write");
}

/// Drops the image as a killed process does.
fn die_after_a_write(path: &Path) {
    block_on(async {
        let image = open(path).await;
        write(&image, 0, 512).await;
        image.flush().await.expect("flush");
    });
}

#[test]
fn an_image_that_was_only_opened_is_left_alone() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=64k", MIB);
    qemu_img(&["bitmap", "--add", text(&path), "b"]);
    let before = std::fs::read(&path).expect("read");
    block_on(async {
        let image = open(&path).await;
        assert!(image.bitmaps().await.expect("list")[0].enabled);
        image.close().await.expect("close");
    });
    assert!(std::fs::read(&path).expect("read") == before);
}

#[test]
fn a_disabled_bitmap_stays_where_it_is() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=64k", MIB);
    qemu_img(&["bitmap", "--add", text(&path), "b"]);
    qemu_io(&path, &["write -q 64k 64k".to_owned()]);
    qemu_img(&["bitmap", "--disable", text(&path), "b"]);
    die_after_a_write(&path);
    assert!(list(&path)[0].usable, "nobody had anything to record in it");
    assert_eq!(read(&path, "b").expect("read").next_marked(0), Some((64 * KIB, 64 * KIB)));
}

#[test]
fn what_was_in_use_when_a_process_died_can_only_be_removed() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=64k", MIB);
    qemu_img(&["bitmap", "--add", text(&path), "b"]);
    die_after_a_write(&path);
    assert!(!list(&path)[0].usable);
    read(&path, "b").expect_err("it means nothing");
    block_on(async {
        let image = open(&path).await;
        for refused in [
            image.clear_bitmap(name("b")).await,
            image.enable_bitmap(name("b"), true).await,
            image.enable_bitmap(name("b"), false).await,
            image.resize(2 * MIB, false).await,
        ] {
            let error = refused.expect_err("inconsistent");
            assert!(
                error.message().ends_with("Bitmap 'b' is inconsistent and cannot be used"),
                "{error}"
            );
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
        write(&image, 64 * KIB, 512).await;
        image.add_bitmap(name("c"), None, true).await.expect("another one can be added");
        write(&image, 128 * KIB, 512).await;
        image.close().await.expect("close");
    });
    assert_eq!(list(&path).iter().map(|info| info.usable).collect::<Vec<_>>(), [false, true]);
    assert_eq!(read(&path, "c").expect("read").next_marked(0), Some((128 * KIB, 64 * KIB)));
    qemu_img(&["bitmap", "--clear", text(&path), "c"]);
    block_on(async {
        let image = open(&path).await;
        image.remove_bitmap(name("b")).await.expect("remove");
        image.remove_bitmap(name("c")).await.expect("remove");
        image.close().await.expect("close");
    });
    assert!(list(&path).is_empty());
    let repair = qemu_img(&["check", "-f", "qcow2", "-r", "leaks", text(&path)]);
    assert!(repair.status.success());
    expect_clean(&path);
}

#[test]
fn what_qemu_left_in_use_is_kept() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=4k", MIB);
    qemu_img(&["bitmap", "--add", text(&path), "b"]);
    qemu_dies(&path);
    block_on(async {
        let image = open(&path).await;
        write(&image, 0, 512).await;
        image.close().await.expect("close");
    });
    assert!(!list(&path)[0].usable);
    qemu_img(&["bitmap", "--remove", text(&path), "b"]);
    expect_clean(&path);
}

#[test]
fn a_verb_is_durable_without_a_close() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=64k", MIB);
    block_on(async {
        let image = open(&path).await;
        image.add_bitmap(name("early"), None, false).await.expect("add");
        write(&image, 0, 512).await;
        image.add_bitmap(name("late"), Some(512), false).await.expect("add");
        image.add_bitmap(name("used"), None, true).await.expect("add");
        write(&image, 0, 512).await;
        // A copy of what has been recorded so far outlives the process; what goes on being recorded does not.
        let bits = image.read_bitmap(name("used")).await.expect("read");
        image.merge_bitmap(name("late"), &bits).await.expect("merge");
        image.add_bitmap(name("gone"), None, true).await.expect("add");
        image.enable_bitmap(name("gone"), false).await.expect("disable");
        image.remove_bitmap(name("early")).await.expect("remove");
    });
    let found: Vec<_> = list(&path).into_iter().map(|i| (i.name, i.enabled, i.usable)).collect();
    let wanted = [("late", false, true), ("used", true, false), ("gone", false, true)];
    assert_eq!(found, wanted.map(|(n, enabled, usable)| (n.into(), enabled, usable)));
    assert_eq!(read(&path, "late").expect("read").next_marked(0), Some((0, 64 * KIB)));
    assert_eq!(read(&path, "gone").expect("read").next_marked(0), None);
}

#[test]
fn verbs_refuse_what_makes_no_sense() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=64k", MIB);
    let long = "n".repeat(1024);
    block_on(async {
        let image = open(&path).await;
        image.add_bitmap(name("b"), None, true).await.expect("add");
        let refusals = [
            (image.add_bitmap(name("b"), None, true).await, "Bitmap already exists: b"),
            (image.add_bitmap(name(""), None, true).await, "Bitmap name cannot be empty"),
            (image.add_bitmap(name("g"), Some(3072), true).await, "power of 2 and at least 512"),
            (image.add_bitmap(name("g"), Some(256), true).await, "power of 2 and at least 512"),
            (image.add_bitmap(name("g"), Some(0), true).await, "power of 2 and at least 512"),
            (image.add_bitmap(name("g"), Some(1 << 32), true).await, "power of 2 and at least 512"),
            (image.add_bitmap(name(&long), None, true).await, "Name length exceeds maximum"),
            (image.remove_bitmap(name("none")).await, "Dirty bitmap 'none' not found"),
            (image.clear_bitmap(name("none")).await, "Dirty bitmap 'none' not found"),
            (image.enable_bitmap(name("none"), true).await, "Dirty bitmap 'none' not found"),
            (image.resize(0, true).await, "cannot keep its bitmap"),
        ];
        for (refusal, words) in refusals {
            let error = refusal.expect_err(words);
            assert!(error.message().contains(words), "{error}");
        }
        let longest = "n".repeat(1023);
        image.add_bitmap(name(&longest), Some(1 << 31), true).await.expect("the longest name");
        image.close().await.expect("close");
    });
    let old = place.make("old", "compat=v2", MIB);
    block_on(async {
        let image = open(&old).await;
        let error = image.add_bitmap(name("b"), None, true).await.expect_err("version 2");
        assert!(error.message().contains("Cannot store dirty bitmaps in qcow2 v2 files"));
        let huge = open(&place.make("huge", "cluster_size=2M", 100 << 40)).await;
        let error = huge.add_bitmap(name("b"), Some(512), true).await.expect_err("too large");
        assert!(error.message().contains("Too much space will be occupied by the bitmap"));
        let options = OpenOptions::default();
        let reader = Image::open(&gate(), &place.file("image"), &options).await.expect("open");
        let error = reader.clear_bitmap(name("b")).await.expect_err("read-only");
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
    });
    expect_clean(&path);
}

#[test]
fn a_large_bitmap_costs_what_is_set_in_it() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=64k", 2 << 40);
    block_on(async {
        let image = open(&path).await;
        image.add_bitmap(name("fine"), Some(512), true).await.expect("512 MiB of bits");
        write(&image, 1 << 40, 4096).await;
        image.close().await.expect("close");
    });
    qemu_img(&["bitmap", "--add", "--disable", text(&path), "-g", "1M", "coarse"]);
    block_on(async {
        let image = open(&path).await;
        let bits = image.read_bitmap(name("fine")).await.expect("read");
        image.merge_bitmap(name("coarse"), &bits).await.expect("merge");
        image.close().await.expect("close");
    });
    assert_eq!(read(&path, "coarse").expect("read").next_marked(0), Some((1 << 40, MIB)));
    assert!(path.metadata().expect("a file").len() < 4 * MIB);
    expect_clean(&path);
}

/// Directories of many sectors, in headers of every layout that QEMU makes.
#[test]
fn many_bitmaps_come_and_go() {
    for options in ["cluster_size=512", "cluster_size=4k", "cluster_size=64k"] {
        let place = Place::new();
        let path = place.make("image", options, MIB);
        let names: Vec<String> = (0..40).map(|i| format!("bitmap {}", "x".repeat(i))).collect();
        block_on(async {
            let image = open(&path).await;
            for (index, bitmap) in names.iter().enumerate() {
                image.add_bitmap(name(bitmap), None, index % 3 > 0).await.expect("add");
            }
            write(&image, 5000, 3).await;
            image.close().await.expect("close");
        });
        expect_clean(&path);
        for (index, bitmap) in names.iter().enumerate() {
            let marked = read(&path, bitmap).expect("read").next_marked(0);
            assert_eq!(marked.is_some(), index % 3 > 0, "{bitmap}");
        }
        qemu_img(&["bitmap", "--clear", text(&path), &names[7]]);
        block_on(async {
            let image = open(&path).await;
            for bitmap in names.iter().rev() {
                image.remove_bitmap(name(bitmap)).await.expect("remove");
            }
            image.close().await.expect("close");
        });
        expect_clean(&path);
        assert!(list(&path).is_empty());
    }
}

#[test]
fn a_stale_extension_is_replaced() {
    let place = Place::new();
    let path = place.make("image", "cluster_size=64k", MIB);
    qemu_img(&["bitmap", "--add", text(&path), "old"]);
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[88..96].fill(0);
    std::fs::write(&path, bytes).expect("write");
    block_on(async {
        let image = try_open(&path).await.expect("open");
        assert!(image.bitmaps().await.expect("list").is_empty());
        image.add_bitmap(name("new"), None, true).await.expect("add");
        image.close().await.expect("close");
    });
    assert_eq!(list(&path).len(), 1);
    qemu_img(&["check", "-q", "-f", "qcow2", "-r", "leaks", text(&path)]);
    qemu_img(&["bitmap", "--clear", text(&path), "new"]);
    expect_clean(&path);
}
