//! `convert --snapshots`: QEMU finds in the target what it finds in the source, at every snapshot.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::tool::{Pair, Tool};

/// A disk that was 8 MiB long at two snapshots, 10 MiB at the third, and is 6 MiB long now, on a backing file; of the first
/// snapshot there is a VM state.
const SETUP: &str = "
    img create -q -f qcow2 base 5M
    io base: write -P 9 0 5M
    img create -q -f qcow2 -b base -F qcow2 s 8M
    io s: write -P 1 0 1M; write -c -P 2 2M 64k; write -c -P 6 7M 64k; write -b -P 7 0 192k
    img snapshot -c one s
    io s: write -P 3 512k 1M; write -z 2M 128k; discard 0 64k
    img snapshot -c two s
    img resize -q s 10M
    io s: write -P 4 9M 512k
    img snapshot -c three s
    img resize -q --shrink s 6M
    io s: write -P 5 3M 512k
";

/// Bytes of the VM state of the first snapshot: not a whole number of sectors.
const VM_STATE_LEN: u64 = 191_000;

/// Says in the first entry of the snapshot table that there is a VM state, when the machine was stopped, and an id of its own.
fn give_vm_state(image: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(image).expect("the image");
    let mut table = [0; 8];
    file.read_exact_at(&mut table, 64).expect("the header");
    let entry = u64::from_be_bytes(table);
    let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, entry + at).expect("an entry");
    put(24, &123_456_789_000_u64.to_be_bytes());
    put(32, &u32::try_from(VM_STATE_LEN).expect("a short one").to_be_bytes());
    put(40, &VM_STATE_LEN.to_be_bytes());
    // The id is the only byte behind 24 bytes of extra data.
    put(64, b"5");
}

#[test]
fn every_state_comes_along() {
    let pair = Pair::prepared(SETUP);
    let ours = pair.ours();
    give_vm_state(&ours.join("s"));
    let list = Tool::Theirs.img(ours, "snapshot -l s").expect_success();
    assert!(list.stdout.contains("187 KiB"), "{list:?}");
    for options in [
        "",
        "-o cluster_size=512",
        "-o cluster_size=2M,compat=1.1,lazy_refcounts=on",
        "-o extended_l2=on,cluster_size=32k",
        "-W -m 16 -t none",
        "-m 1 -r 1T -p -q",
    ] {
        let line = format!("convert --snapshots {options} -O qcow2 s t");
        Tool::Ours.img(ours, &line).expect_success();
        let listed = Tool::Theirs.img(ours, "snapshot -l t").expect_success();
        assert_eq!(list.stdout, listed.stdout, "{options}");
        Tool::Theirs.img(ours, "check -f qcow2 t").expect_success();
        Tool::Theirs.img(ours, "compare s t").expect_success();
        for name in ["one", "two", "three"] {
            for image in ["s", "t"] {
                // Ours, because QEMU's gives the copy the length that the disk has now.
                let line = format!("convert -l snapshot.name={name} -O raw {image} {image}.raw");
                Tool::Ours.img(ours, &line).expect_success();
            }
            let compared = Tool::Theirs.img(ours, "compare -f raw -F raw s.raw t.raw");
            assert_eq!(compared.stdout, "Images are identical.\n", "{options} {name}");
            std::fs::copy(ours.join("t"), ours.join("u")).expect("a copy");
            Tool::Theirs.img(ours, &format!("snapshot -a {name} u")).expect_success();
            Tool::Theirs.img(ours, "compare -f qcow2 -F raw u s.raw").expect_success();
            Tool::Theirs.img(ours, "check -f qcow2 u").expect_success();
            if name == "one" {
                Tool::Theirs.io(ours, "u", &["read -b -P 7 0 190976"]).expect_success();
            }
        }
    }
}

#[test]
fn what_states_share_is_stored_once() {
    let pair = Pair::prepared(
        "img create -q -f qcow2 s 32M
         io s: write -P 1 0 16M; write -c -P 2 16M 64k
         img snapshot -c one s
         io s: write -P 3 1M 64k
         img snapshot -c two s
         img snapshot -c three s",
    );
    Tool::Ours.img(pair.ours(), "convert --snapshots -O qcow2 s t").expect_success();
    let stored = |name: &str| pair.ours().join(name).metadata().expect("an image").blocks() * 512;
    assert!(stored("t") < stored("s") + (1 << 20), "{} and {} bytes", stored("s"), stored("t"));
}

#[test]
fn bitmaps_come_along_too() {
    let setup = format!("{SETUP}\nimg bitmap --add s b0\nio s: write -P 1 1M 64k");
    let pair = Pair::prepared(&setup);
    let ours = pair.ours();
    Tool::Ours.img(ours, "convert --snapshots --bitmaps -O qcow2 s t").expect_success();
    Tool::Theirs.img(ours, "check -f qcow2 t").expect_success();
    let info = Tool::Theirs.img(ours, "info --output=json t").json();
    assert_eq!(info["format-specific"]["data"]["bitmaps"][0]["name"], "b0");
    assert_eq!(info["snapshots"].as_array().map(Vec::len), Some(3));
}

#[test]
fn what_cannot_come_along_is_refused_in_one_line() {
    let pair = Pair::prepared(&format!("{SETUP}\nimg create -q -f raw raw 1M"));
    let ours = pair.ours();
    for (line, why) in [
        ("-O raw s t", "--snapshots: the target has to be qcow2"),
        ("-O qcow2 -f raw raw t", "--snapshots: only a qcow2 source has snapshots"),
        ("-O qcow2 s s t", "--snapshots: only one source can come with its snapshots"),
        ("-O qcow2 -l one s t", "--snapshots: does not go with -l"),
        ("-O qcow2 -n s base", "--snapshots: does not go with -n"),
        ("-O qcow2 -c s t", "--snapshots: does not go with -c"),
        ("-O qcow2 -S 0 s t", "--snapshots: does not go with -S 0"),
        ("-O qcow2 -B base -F qcow2 s t", "--snapshots: does not go with -B"),
        ("-O qcow2 -o compat=0.10 s t", "Can't resize a v2 image which has snapshots"),
        (
            "-O qcow2 -o data_file=data s t",
            "an image with an external data file cannot have internal snapshots",
        ),
        ("-O qcow2 -o refcount_bits=1 s t", "refcount"),
    ] {
        let said = Tool::Ours.img(ours, &format!("convert --snapshots {line}"));
        assert_eq!((said.code, said.stderr.lines().count()), (Some(1), 1), "{line}: {said:?}");
        assert!(said.stderr.contains(why), "{line}: {said:?}");
        assert!(!ours.join("t").exists() && !ours.join("data").exists(), "{line}");
    }
    // Two that nothing tells apart: the id of the second becomes that of the first, and the names are the same.
    Tool::Theirs.img(ours, "create -q -f qcow2 twins 1M").expect_success();
    for _ in 0..2 {
        Tool::Theirs.img(ours, "snapshot -c twin twins").expect_success();
    }
    let file = std::fs::File::options().read(true).write(true).open(ours.join("twins"));
    let file = file.expect("the image");
    let mut table = [0; 8];
    file.read_exact_at(&mut table, 64).expect("the header");
    // An entry of 40 bytes, 24 of extra data, the id, the name, and padding.
    file.write_all_at(b"1", u64::from_be_bytes(table) + 72 + 64).expect("the second entry");
    let said = Tool::Ours.img(ours, "convert --snapshots -O qcow2 twins t");
    let why = "qemu-img: --snapshots: there are two with id '1' and name 'twin'\n";
    assert_eq!((said.code, said.stderr.as_str()), (Some(1), why));
}
