//! `convert`: the same disks, clean images, and nothing left behind by failures.

use std::os::unix::fs::MetadataExt;

use crate::tool::{Pair, Tool, damage, put};

const SETUP: &str = "
    img create -q -f raw a.raw 10M
    io -f raw a.raw: write -P 7 100k 3M; write -P 8 9M 512; write -P 0 200k 300k
    img create -q -f qcow2 -o cluster_size=4k base.qcow2 9M
    io base.qcow2: write -P 1 1M 4M; write -c 6M 4k
    img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 12M
    io top.qcow2: write -P 2 2M 1M; write -z 3M 1M; write -P 3 11M 100k; discard 4M 64k
    img create -q -f qcow2 empty.qcow2 1T
";

#[test]
fn any_image_becomes_any_other() {
    let pair = Pair::prepared(SETUP);
    for source in ["a.raw", "base.qcow2", "top.qcow2"] {
        for options in [
            "-O raw",
            "-O raw -S 0",
            "-O raw -S 64k",
            "-O raw -o preallocation=full",
            "-O qcow2",
            "-O qcow2 -W -m 16",
            "-O qcow2 -m 1 -S 512",
            "-O qcow2 -S 0",
            "-O qcow2 -t none -T none",
            "-O qcow2 -t writethrough",
            "-O qcow2 -o cluster_size=512",
            "-O qcow2 -o cluster_size=2M,refcount_bits=1",
            "-O qcow2 -o compat=v2,preallocation=metadata",
            "-O qcow2 -o preallocation=full",
        ] {
            let said = pair.same_img(&format!("convert {options} {source} out"));
            assert_eq!(said.code, Some(0), "{options} {source}: {said:?}");
            match options.contains("qcow2") {
                true => pair.same_clean_image("out"),
                false => pair.same_disk("out"),
            }
        }
    }
}

#[test]
fn zeros_are_left_out_unless_asked_for() {
    let pair = Pair::prepared(SETUP);
    let allocated = |options: &str| {
        Tool::Ours.img(pair.ours(), &format!("convert {options} a.raw out")).expect_success();
        pair.ours().join("out").metadata().unwrap().blocks() * 512
    };
    assert!(allocated("-O raw") < 4 << 20);
    assert!(allocated("-O raw -S 0") >= 10 << 20);
    assert!(allocated("-O qcow2") < 4 << 20);
    assert!(allocated("-O qcow2 -S 0") >= 10 << 20);
}

#[test]
fn both_take_the_same_clusters() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 a 900k
         io a: write -P 1 64k 192k
         img create -q -f qcow2 -b a -F qcow2 b 700k
         io b: write -P 2 512k 64k",
    );
    for options in [
        "-S 1M -O qcow2 a",
        "-S 1M -O qcow2 -o cluster_size=4k a",
        "-S 1M -O qcow2 -o extended_l2=on a",
        "-O qcow2 -o extended_l2=on a",
        "-O qcow2 -B a -F qcow2 b",
        // The cluster that the end of the disk cuts off is copied.
        "-c -O qcow2 -B a -F qcow2 b",
        "-c --salvage -O qcow2 -B a -F qcow2 b",
    ] {
        pair.same_img(&format!("convert {options} out"));
        pair.same_io("-f qcow2 out", &["map"]);
        pair.same_clean_image("out");
    }
}

#[test]
fn several_sources_follow_each_other() {
    let pair = Pair::prepared(SETUP);
    put(&pair, "odd.raw", &[9; 1000]);
    for options in ["-O raw", "-O qcow2", "-O qcow2 -m 1", "-O raw -p"] {
        pair.same_img(&format!("convert -q {options} odd.raw a.raw top.qcow2 odd.raw out"));
        pair.same_disk("out");
    }
}

#[test]
fn existing_targets_are_overwritten_whole() {
    let pair = Pair::prepared(SETUP);
    let fill = "img create -q -f qcow2 out.qcow2 16M\nimg create -q -f raw out.raw 16M";
    for (format, name) in [("qcow2", "out.qcow2"), ("raw", "out.raw")] {
        for directory in [pair.ours(), pair.theirs()] {
            for line in fill.lines() {
                Tool::Theirs.img(directory, line.strip_prefix("img ").unwrap()).expect_success();
            }
            let options = format!("-f {format} {name}");
            Tool::Theirs.io(directory, &options, &["write -P 255 0 16M"]).expect_success();
        }
        pair.same_img(&format!("convert -n -O {format} top.qcow2 {name}"));
        pair.same_disk(name);
        pair.same_img(&format!("convert -n -O {format} -S 0 a.raw {name}"));
        pair.same_disk(name);
    }
    // A target that is said to be zero keeps what the sources do not write.
    pair.same_img("convert -n --target-is-zero -O qcow2 a.raw out.qcow2");
    pair.same_clean_image("out.qcow2");
}

#[test]
fn overlays_take_only_what_the_source_itself_has() {
    let pair = Pair::prepared(SETUP);
    pair.same_img("convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 out.qcow2");
    pair.same_clean_image("out.qcow2");
    let same = Tool::Theirs.img(pair.ours(), "compare top.qcow2 out.qcow2");
    assert_eq!(same.code, Some(0), "{same:?}");
    let inherited = Tool::Ours.img(pair.ours(), "map --output=json out.qcow2").expect_success();
    assert!(inherited.json().as_array().unwrap().iter().any(|extent| extent["depth"] == 1));
}

#[test]
fn what_no_image_of_the_source_has_hides_the_new_backing_image() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 base.qcow2 9M
         io base.qcow2: write -P 1 0 9M
         img create -q -f qcow2 alone.qcow2 12M
         io alone.qcow2: write -P 5 1M 100k; write -P 6 11M 4k
         img create -q -f raw holes.raw 9M
         io -f raw holes.raw: write -P 9 3M 1M
         img create -q -f qcow2 vast.qcow2 1T",
    );
    for source in ["alone.qcow2", "holes.raw", "vast.qcow2"] {
        for backing in ["-B base.qcow2 -F qcow2", "-o backing_file=base.qcow2,backing_fmt=qcow2"] {
            for options in ["", "-S 0", "-o cluster_size=4k", "-o cluster_size=2M"] {
                let said =
                    pair.same_img(&format!("convert -O qcow2 {backing} {options} {source} out"));
                assert_eq!(said.code, Some(0), "{backing} {options} {source}: {said:?}");
                pair.same_clean_image("out");
            }
        }
    }
    let stored = pair.ours().join("out").metadata().unwrap().blocks() * 512;
    assert!(stored < 16 << 20, "{stored} bytes for zeros behind the backing image's end");
}

/// QEMU judges a stretch by its first byte, and so lets the grown backing image shine through here.
#[test]
fn what_lies_beyond_the_old_backing_image_hides_a_grown_one() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 short.qcow2 2M
         io short.qcow2: write -P 7 0 1M
         img create -q -f qcow2 grown.qcow2 9M
         io grown.qcow2: write -P 7 0 1M; write -P 1 2M 7M
         img create -q -f qcow2 -b short.qcow2 -F qcow2 source.qcow2 12M
         io source.qcow2: write -P 8 5M 512",
    );
    for options in ["", "-o cluster_size=4k", "-o cluster_size=2M"] {
        let line = format!("convert -O qcow2 -B grown.qcow2 -F qcow2 {options} source.qcow2 out");
        Tool::Ours.img(pair.ours(), &line).expect_success();
        Tool::Theirs.img(pair.ours(), "compare source.qcow2 out").expect_success();
        Tool::Theirs.img(pair.ours(), "check -f qcow2 out").expect_success();
    }
}

#[test]
fn existing_overlays_hide_their_backing_image() {
    let setup = format!(
        "{SETUP}
         img create -q -f qcow2 alone.qcow2 12M
         io alone.qcow2: write -P 5 1M 100k
         img create -q -f qcow2 other.qcow2 12M
         io other.qcow2: write -P 6 0 12M
         img create -q -f qcow2 -b other.qcow2 -F qcow2 sibling.qcow2
         io sibling.qcow2: write -P 7 3M 1M"
    );
    let pair = Pair::prepared(&setup);
    let target = [
        "create -q -f qcow2 -b other.qcow2 -F qcow2 out.qcow2 12M",
        "convert -n -O qcow2 a.raw out.qcow2",
    ];
    for source in ["alone.qcow2", "top.qcow2", "-B other.qcow2 -F qcow2 sibling.qcow2"] {
        for options in ["", "-S 0"] {
            for directory in [pair.ours(), pair.theirs()] {
                for line in target {
                    Tool::Theirs.img(directory, line).expect_success();
                }
            }
            let said = pair.same_img(&format!("convert -n {options} -O qcow2 {source} out.qcow2"));
            assert_eq!(said.code, Some(0), "{options} {source}: {said:?}");
            pair.same_clean_image("out.qcow2");
        }
    }
}

#[test]
fn large_empty_images_take_no_time() {
    let pair = Pair::prepared(SETUP);
    for options in ["-O qcow2", "-O qcow2 -o cluster_size=2M"] {
        Tool::Ours.img(pair.ours(), &format!("convert {options} empty.qcow2 out")).expect_success();
        let said = Tool::Theirs.img(pair.ours(), "compare empty.qcow2 out");
        assert_eq!(said.code, Some(0), "{said:?}");
    }
}

#[test]
fn verification_reads_the_target_back() {
    let pair = Pair::prepared(SETUP);
    for options in ["-O raw", "-O qcow2"] {
        let line = format!("convert --verify {options} a.raw top.qcow2 out");
        Tool::Ours.img(pair.ours(), &line).expect_success();
    }
}

#[test]
fn the_checksum_is_that_of_the_whole_disk() {
    let pair = Pair::prepared(SETUP);
    put(&pair, "digits.raw", b"123456789");
    let convert = |line: &str| Tool::Ours.img(pair.ours(), &format!("convert --checksum {line}"));
    let mut expected = None;
    for line in [
        "-O raw top.qcow2 out",
        "-O raw -S 0 top.qcow2 out",
        "-O qcow2 -W top.qcow2 out",
        "-c -O qcow2 top.qcow2 out",
        "-q -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 out",
    ] {
        let said = convert(line).expect_success();
        let digits = said.stdout.strip_prefix("CRC-32C: ").expect("a checksum").trim_end();
        assert_eq!(digits.len(), 8, "{said:?}");
        assert_eq!(expected.get_or_insert(digits.to_owned()), digits, "{line}");
    }
    assert_ne!(convert("a.raw out").stdout.trim_end(), format!("CRC-32C: {}", expected.unwrap()));
    // Nine digits, and zeros up to the end of the sector: computed bit by bit, by another program.
    assert_eq!(convert("-f raw digits.raw out").stdout, "CRC-32C: 0a1164ff\n");
}

#[test]
fn a_broken_source_leaves_no_target() {
    let pair = Pair::prepared(SETUP);
    // The L1 entry of the middle of the disk points to an unaligned L2 table.
    damage(&pair, "base.qcow2", 0x3000 + 6, &[2]);
    let said = Tool::Ours.img(pair.ours(), "convert -O qcow2 base.qcow2 out");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.starts_with("qemu-img: error while reading at byte "), "{said:?}");
    assert!(!pair.ours().join("out").exists());
    Tool::Ours.img(pair.ours(), "convert --keep-partial -O qcow2 base.qcow2 out");
    assert!(pair.ours().join("out").exists());
}

#[test]
fn what_was_copied_before_a_failure_can_be_read() {
    let pair = Pair::prepared(SETUP);
    // The L1 entry of the third 2 MiB of the disk points to an unaligned L2 table.
    damage(&pair, "base.qcow2", 0x3000 + 2 * 8 + 6, &[2]);
    let ours = pair.ours();
    Tool::Theirs.img(ours, "create -q -f qcow2 there 9M").expect_success();
    for (options, target) in [("-n", "there"), ("--keep-partial", "new")] {
        let line = format!("convert -m 1 {options} -O qcow2 base.qcow2 {target}");
        let said = Tool::Ours.img(ours, &line);
        assert_eq!((said.code, said.stderr.lines().count()), (Some(1), 1), "{said:?}");
        Tool::Theirs.io(ours, target, &["read -P 1 1M 3M"]).expect_success();
        Tool::Theirs.img(ours, &format!("check -f qcow2 {target}")).expect_success();
    }
}

#[test]
fn sources_and_targets_may_be_option_strings() {
    let pair = Pair::prepared(SETUP);
    for line in [
        "--image-opts driver=qcow2,file.filename=base.qcow2 driver=raw,file.filename=a.raw out",
        "--image-opts driver=qcow2,file.filename=top.qcow2,backing.driver=qcow2,backing.file.filename=base.qcow2 out",
        "-f raw -O qcow2 file:a.raw file:out",
    ] {
        let said = pair.same_img(&format!("convert {line}"));
        assert_eq!(said.code, Some(0), "{line}: {said:?}");
        pair.same_disk("out");
    }
    pair.same_img("create -q -f qcow2 -o cluster_size=4k there.qcow2 12M");
    for options in ["--verify", "-W"] {
        let line = format!("convert {options} -n --target-image-opts top.qcow2");
        let target = "driver=qcow2,file.filename=there.qcow2,discard=unmap";
        Tool::Ours.img(pair.ours(), &format!("{line} {target}")).expect_success();
    }
    Tool::Theirs.img(pair.theirs(), "convert -n -O qcow2 top.qcow2 there.qcow2").expect_success();
    pair.same_clean_image("there.qcow2");
}

#[test]
fn the_rate_changes_nothing_but_time() {
    let pair = Pair::prepared(SETUP);
    for options in ["-r 1G -O qcow2", "-r 1T", "-r 0 -c -O qcow2", "-C -r 1G"] {
        pair.same_img(&format!("convert {options} a.raw out"));
        pair.same_disk("out");
    }
}

#[test]
fn the_host_copies_where_it_can() {
    let pair = Pair::prepared(SETUP);
    put(&pair, "odd.raw", &[9; 1000]);
    for line in [
        "-f raw a.raw out",
        "-f raw odd.raw a.raw odd.raw out",
        "-f raw -t none -T none a.raw out",
        "-f raw -t writethrough -m 1 a.raw out",
        "-f raw -W a.raw a.raw out",
        "-f raw -n a.raw out",
        "-f raw -O qcow2 a.raw out",
        "-O raw top.qcow2 out",
        "-O qcow2 -B base.qcow2 -F qcow2 top.qcow2 out",
    ] {
        let said = pair.same_img(&format!("convert -C {line}"));
        assert_eq!(said.code, Some(0), "{line}: {said:?}");
        pair.same_disk("out");
    }
}

#[test]
fn what_cannot_be_read_is_zeros_where_salvage_is_asked_for() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 a.qcow2 4M
         io a.qcow2: write -c -P 3 0 64k; write -c -P 4 128k 64k; write -P 5 1M 1M; write -P 6 3M 100k",
    );
    // The stream of the first compressed cluster.
    damage(&pair, "a.qcow2", 0x50000, &[0xff; 8]);
    for options in ["", "-q", "-m 1", "-W", "-O qcow2", "-c -O qcow2", "-S 0", "-p -q"] {
        let said = pair.same_img(&format!("convert --salvage {options} a.qcow2 out"));
        assert_eq!(said.code, Some(0), "{options}: {said:?}");
        let told = if options.contains("-q") { 0 } else { 128 };
        assert_eq!(said.stderr.lines().count(), told, "{options}");
        pair.same_disk("out");
    }
    // Without it nothing is made.
    let said = Tool::Ours.img(pair.ours(), "convert a.qcow2 new");
    assert_eq!((said.code, said.stderr.lines().count()), (Some(1), 1), "{said:?}");
    assert!(!pair.ours().join("new").exists());
}

#[test]
fn a_damaged_table_costs_no_more_than_what_it_maps() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 -o cluster_size=512 a.qcow2 96k
         io a.qcow2: write -P 5 0 96k",
    );
    // The second L1 entry, for the second 32 KiB of the disk, points to an unaligned L2 table.
    damage(&pair, "a.qcow2", 0x600 + 8 + 6, &[1]);
    let ours = Tool::Ours.img(pair.ours(), "convert --salvage a.qcow2 out").expect_success();
    Tool::Theirs.img(pair.theirs(), "convert --salvage a.qcow2 out").expect_success();
    pair.same_disk("out");
    for sector in (32 << 10..64 << 10).step_by(512) {
        for what in ["block status at offset", "offset"] {
            let line = format!(
                "qemu-img: warning: error while reading {what} {sector}: Input/output error"
            );
            assert!(ours.stderr.lines().any(|told| told == line), "{line}");
        }
    }
    assert_eq!(ours.stderr.lines().count(), 128);
}

#[test]
fn progress_counts_what_is_copied() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 a.qcow2 64M
         io a.qcow2: write 0 1M; write 2M 1M; write 4M 1M; write -z 6M 1M; write 32M 1M
         img create -q -f qcow2 empty.qcow2 64M
         img create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2
         io top.qcow2: write 8M 1M; write 12M 1M",
    );
    for line in [
        "convert -p -m 1 -O raw a.qcow2 x",
        "convert -p -m 1 -O qcow2 top.qcow2 x",
        "convert -p -m 1 -O qcow2 -B a.qcow2 -F qcow2 top.qcow2 x",
        "convert -p -m 1 -O qcow2 empty.qcow2 x",
        "convert -q -p -O qcow2 a.qcow2 x",
    ] {
        pair.same_img(line);
    }
}
