//! Files that are LUKS and nothing else: each side works with what the other has made, and both say the same of them.

use crate::encryption::ciphers;
use crate::tool::{Pair, Said, Tool, damage, put};

const SECRETS: &str = "--object secret,id=s,file=pw --object secret,id=t,file=pw2";
const LUKS: &str = "key-secret=s,iter-time=1";

/// A pair of directories with passphrases, and what QEMU has made of `setup` in both.
fn pair(setup: &str) -> Pair {
    let pair = Pair::new();
    put(&pair, "pw", b"a passphrase\n");
    put(&pair, "pw2", b"another one");
    for directory in [pair.ours(), pair.theirs()] {
        crate::tool::prepare_lines(directory, &filled(setup));
    }
    pair
}

/// A pair of directories with the same LUKS file, of a disk of 1 MiB.
fn pair_with_file() -> Pair {
    let pair = pair("");
    Tool::Ours.img(pair.ours(), &filled("create -q $S -f luks -o $L a.luks 1M")).expect_success();
    std::fs::copy(pair.ours().join("a.luks"), pair.theirs().join("a.luks")).expect("a copy");
    pair
}

/// `line` with the placeholders for secrets, options and files with their keys filled in.
fn filled(line: &str) -> String {
    let line = line.replace("$S", SECRETS).replace("$L", LUKS);
    let words = line.split(' ').map(|word| match word.strip_prefix('@') {
        Some(name) => opened(name),
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn opened(name: &str) -> String {
    format!("driver=luks,key-secret=s,file.filename={name}")
}

/// The same without what depends on which parts of a file are holes.
fn without_holes(said: Said) -> Said {
    let keep = |line: &&str| !line.contains("disk size") && !line.contains("actual-size");
    let stdout = said.stdout.lines().filter(keep).map(|line| format!("{line}\n")).collect();
    Said { stdout, ..said }
}

#[track_caller]
fn run(tool: Tool, pair: &Pair, line: &str) -> Said {
    tool.img(pair.ours(), &filled(line)).expect_success()
}

#[track_caller]
fn io(tool: Tool, pair: &Pair, name: &str, commands: &[&str]) {
    let options = format!("{SECRETS} --image-opts {}", opened(name));
    let said = tool.io(pair.ours(), &options, commands).expect_success();
    assert!(!said.stdout.contains("failed"), "{said:?}");
}

/// Every cipher, mode, initialization vector and hash, made by one side and used by the other and back.
#[test]
fn each_side_reads_and_writes_what_the_other_has_made() {
    let pair = pair("");
    for (number, [aes, mode, iv, hash]) in ciphers().into_iter().enumerate() {
        let (maker, other) = match number % 2 {
            0 => (Tool::Ours, Tool::Theirs),
            _ => (Tool::Theirs, Tool::Ours),
        };
        let name = format!("{aes}, {mode}, {iv}, {hash}, made by {maker:?}");
        let options =
            format!("{LUKS},cipher-alg={aes},cipher-mode={mode},ivgen-alg={iv},hash-alg={hash}");
        run(maker, &pair, &format!("create -q $S -f luks -o {options} a.luks 4M"));
        for (tool, byte) in [(other, 1), (maker, 2)] {
            let at = byte * 1_000_000;
            io(tool, &pair, "a.luks", &[&format!("write -P {byte} {at} 100k"), "flush"]);
            io(tool, &pair, "a.luks", &[&format!("write -z {} 5000", at + 100)]);
            for reader in [maker, other] {
                let reads = [
                    format!("read -P {byte} {at} 100"),
                    format!("read -P 0 {} 5000", at + 100),
                    format!("read -P {byte} {} 97300", at + 5100),
                ];
                io(reader, &pair, "a.luks", &reads.each_ref().map(String::as_str));
            }
        }
        for line in ["info a.luks", "info -f luks --output=json a.luks"] {
            let [ours, theirs] = [Tool::Ours, Tool::Theirs].map(|tool| tool.img(pair.ours(), line));
            assert_eq!(ours, theirs, "{name}: {line}");
        }
    }
}

#[test]
fn both_refuse_the_same_options_and_say_the_same_of_files() {
    let pair = pair_with_file();
    put(&pair, "plain.raw", &[0; 4096]);
    let mut different = Vec::new();
    for line in [
        "create -f luks -o help",
        "create -f luks -o help x",
        "create -f luks -o iter-time=10 x 1M",
        "create $S -f luks -o key-secret=nobody x 1M",
        "create $S -f luks -o $L,cipher-alg=foo x 1M",
        "create $S -f luks -o $L,cipher-mode=foo x 1M",
        "create $S -f luks -o $L,ivgen-alg=foo x 1M",
        "create $S -f luks -o $L,hash-alg=foo x 1M",
        "create $S -f luks -o $L,ivgen-alg=essiv,ivgen-hash-alg=sha1 x 1M",
        "create $S -f luks -o $L,encrypt.format=luks x 1M",
        "create $S -f luks -o $L,preallocation=foo x 1M",
        "create $S -f luks -o $L -b a.luks -F luks x 1M",
        "create $S -f luks -o $L x",
        "create $S -f luks -o $L,size=1M x 1M",
        "create $S -f luks -o $L made 1000",
        "create $S -f luks -o $L,cipher-alg=aes-128,preallocation=falloc made 1M",
        "create $S -f luks -o $L,preallocation=full made 1M",
        "create $S -f luks -o $L,preallocation=metadata made 1M",
        "create -f qcow2 -b a.luks -F luks over.qcow2",
        "info --backing-chain over.qcow2",
        "info a.luks",
        "info --output=json a.luks",
        "info $S --image-opts driver=luks,file.filename=a.luks",
        "map a.luks",
        "map --object secret,id=s,file=pw2 --image-opts @a.luks",
        "map --image-opts @a.luks",
        "map $S --image-opts @a.luks",
        "map $S --output=json --image-opts @a.luks",
        "map $S --output=json --image-opts key-secret=s,file.filename=a.luks",
        "map $S --output=json --image-opts driver=luks,key-secret=s,foo=x,file.filename=a.luks",
        "map $S --output=json --image-opts driver=raw,file.driver=luks,file.key-secret=s,file.file.filename=a.luks",
        "map $S --image-opts key-secret=s,file.filename=plain.raw",
        "map $S --image-opts driver=raw,key-secret=s,file.filename=a.luks",
        "map $S --image-opts driver=luks,key-secret=s,file.filename=plain.raw",
        "check a.luks",
        "check $S --image-opts @a.luks",
        "snapshot -l $S --image-opts @a.luks",
        "snapshot -c x $S --image-opts @a.luks",
        "snapshot -a x $S --image-opts @a.luks",
        "snapshot -d x $S --image-opts @a.luks",
        "convert -O raw a.luks x",
        "convert -O raw -l x $S --image-opts @a.luks x",
        "convert -O luks $S --image-opts @a.luks x",
        "convert -c -O luks -o $L $S --image-opts @a.luks x",
        "commit $S --image-opts @a.luks",
        "rebase -u -b x -F raw $S --image-opts @a.luks",
        "rebase -c -b  $S --image-opts @a.luks",
        "compare a.luks a.luks",
        "resize a.luks 2M",
        "resize $S --image-opts @a.luks 1000",
        "dd -O luks if=a.luks of=x",
        "dd -f raw -O luks if=plain.raw of=x",
        "measure -O luks --size 1G",
        "measure $S -O luks -o $L --size 1000",
        "measure $S -O luks -o $L,cipher-alg=aes-128 --size 1G",
        "measure $S -O luks -o $L,foo=x --size 1G",
        "measure $S -O luks -o $L --output=json --image-opts @a.luks",
        "measure $S -O qcow2 --image-opts @a.luks",
        "measure $S -O raw --image-opts @a.luks",
        "amend -f luks -o help",
        "amend -f luks -o state=active a.luks",
    ] {
        let line = filled(line);
        let (ours, theirs) = pair.img(&line);
        let [ours, theirs] = [ours, theirs].map(without_holes);
        let [our_len, their_len] = [pair.ours(), pair.theirs()]
            .map(|directory| std::fs::metadata(directory.join("made")).map(|made| made.len()).ok());
        if (&ours, our_len) != (&theirs, their_len) {
            different
                .push(format!("qemu-img {line}\n{ours:?} {our_len:?}\n{theirs:?} {their_len:?}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n\n"));
}

/// What is made of one is probed as one, as QEMU does it; version 2 is not.
#[test]
fn files_are_found_out_as_by_qemu() {
    let pair = pair_with_file();
    put(&pair, "two", &[&b"LUKS\xba\xbe\0\x02"[..], &[0; 4096]].concat());
    for line in ["info two", "info -f luks two", "info -f raw a.luks"] {
        let (ours, theirs) = pair.img(line);
        assert_eq!(without_holes(ours), without_holes(theirs), "qemu-img {line}");
    }
    // Who writes to a disk whose format was guessed cannot make it look like another one.
    put(&pair, "plain.raw", &[0; 4096]);
    put(&pair, "start", b"LUKS\xba\xbe\0\x01");
    pair.same_io("plain.raw", &["write -s start 0 512"]);
    pair.same_img("info plain.raw");
}

#[test]
fn disks_are_converted_into_luks_and_out_of_it() {
    let pair = pair(
        "img create -q -f qcow2 plain.qcow2 8M
         io plain.qcow2: write -P 7 0 1M; write -P 8 3000000 100k; write -z 6M 1M
         img convert -O raw plain.qcow2 plain.raw",
    );
    for (tool, other) in [(Tool::Ours, Tool::Theirs), (Tool::Theirs, Tool::Ours)] {
        let run = |tool: Tool, line: &str| run(tool, &pair, line);
        run(tool, "convert $S -f raw -O luks -o $L plain.raw a.luks");
        run(other, "compare $S --image-opts @a.luks driver=raw,file.filename=plain.raw");
        run(other, "convert $S --image-opts @a.luks -O raw a.raw");
        run(other, "compare -f raw -F raw a.raw plain.raw");
        run(
            other,
            "dd $S --image-opts -O raw bs=1M if=driver=luks,key-secret=s,file.filename=a.luks of=d.raw",
        );
        run(tool, "compare -f raw -F raw d.raw plain.raw");
        run(tool, "create -q $S -f luks -o $L there.luks 8M");
        let there = "--target-image-opts @there.luks";
        run(other, &format!("convert -n $S --image-opts @a.luks {there}"));
        run(tool, "compare $S --image-opts @a.luks @there.luks");
        run(
            tool,
            "convert $S -O qcow2 -o encrypt.format=luks,encrypt.key-secret=t,encrypt.iter-time=10 --image-opts @a.luks e.qcow2",
        );
        let e = "driver=qcow2,encrypt.key-secret=t,file.filename=e.qcow2";
        run(other, &format!("compare $S --image-opts @a.luks {e}"));
        run(other, &format!("convert $S -O luks -o $L,cipher-alg=aes-128 --image-opts {e} b.luks"));
        run(tool, "compare $S --image-opts @a.luks @b.luks");
    }
}

/// Our own options of `convert` go with LUKS targets, too.
#[test]
fn a_converted_luks_file_is_verified() {
    let pair = pair("");
    let bytes: Vec<u8> =
        (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    put(&pair, "plain.raw", &bytes);
    let line = filled("convert --verify --checksum $S -f raw -O luks -o $L plain.raw a.luks");
    let luks = Tool::Ours.img(pair.ours(), &line).expect_success();
    let raw = Tool::Ours.img(pair.ours(), "convert --checksum -f raw -O raw plain.raw b.raw");
    assert_eq!(luks.stdout, raw.expect_success().stdout);
    assert!(luks.stdout.starts_with("CRC-32C: "));
}

#[test]
fn a_luks_file_lies_below_qcow2_and_grows_and_shrinks() {
    let pair = pair("");
    for (maker, other) in [(Tool::Ours, Tool::Theirs), (Tool::Theirs, Tool::Ours)] {
        run(maker, &pair, "create -q $S -f luks -o $L base.luks 1M");
        io(maker, &pair, "base.luks", &["write -P 1 0 1M"]);
        run(other, &pair, "create -q -f qcow2 -b base.luks -F luks top.qcow2");
        let top = "driver=qcow2,file.filename=top.qcow2,backing.driver=luks,backing.key-secret=s,backing.file.filename=base.luks";
        let options = format!("{SECRETS} --image-opts {top}");
        for (tool, commands) in [
            (maker, ["read -P 1 0 1M", "write -P 2 100k 50k"]),
            (other, ["read -P 2 100k 50k", "read -P 1 150k 100k"]),
        ] {
            let said = tool.io(pair.ours(), &options, &commands).expect_success();
            assert!(!said.stdout.contains("failed"), "{said:?}");
        }
        run(other, &pair, &format!("commit -q $S --image-opts {top}"));
        io(maker, &pair, "base.luks", &["read -P 1 0 100k", "read -P 2 100k 50k"]);

        run(maker, &pair, "resize $S --image-opts @base.luks 2M");
        io(other, &pair, "base.luks", &["write -P 3 1M 1M", "read -P 1 150k 800k"]);
        run(other, &pair, "resize --shrink $S --image-opts @base.luks 1500k");
        io(maker, &pair, "base.luks", &["read -P 3 1M 476k"]);
        run(maker, &pair, "resize --preallocation=full $S --image-opts @base.luks 3M");
        io(other, &pair, "base.luks", &["read -P 3 1M 476k", "length"]);
    }
}

#[test]
fn key_slots_change_alike() {
    let pair = pair_with_file();
    for options in [
        "state=active,new-secret=t,iter-time=10",
        "state=active",
        "new-secret=t",
        "state=foo",
        "encrypt.state=active",
        "key-secret=s",
        "size=2M",
        "state=active,new-secret=t,iter-time=10,keyslot=1",
        "state=active,new-secret=t,iter-time=10,keyslot=9",
        "state=active,new-secret=t,iter-time=10,keyslot=5",
        "state=inactive",
        "state=inactive,keyslot=5",
        "state=inactive,keyslot=5",
        "state=inactive,old-secret=t",
        "state=inactive,keyslot=0",
        "state=inactive,old-secret=s",
        "state=active,new-secret=t,iter-time=10,keyslot=7",
    ] {
        let line = filled(&format!("amend -o {options} $S --image-opts @a.luks"));
        let (ours, theirs) = pair.img(&line);
        assert_eq!(ours, theirs, "qemu-img {line}");
        let slots = [pair.ours(), pair.theirs()].map(|directory| {
            let info = Tool::Theirs.img(directory, "info --output=json a.luks").json();
            let slots = &info["format-specific"]["data"]["slots"];
            slots
                .as_array()
                .expect("slots")
                .iter()
                .map(|slot| slot["active"] == true)
                .collect::<Vec<_>>()
        });
        assert_eq!(slots[0], slots[1], "{options}");
    }
    for (directory, tool) in [(pair.ours(), Tool::Theirs), (pair.theirs(), Tool::Ours)] {
        let image = "driver=luks,key-secret=t,file.filename=a.luks";
        tool.img(directory, &format!("map --output=json {SECRETS} --image-opts {image}"))
            .expect_success();
    }
}

/// What QEMU refuses is refused here in the same words where QEMU's say what is wrong, and in ours where they do not.
#[test]
fn damaged_files_are_refused() {
    let word = |value: u32| value.to_be_bytes();
    for (at, bytes) in [
        (104, word(7)),
        (104, word(8)),
        (164, word(0)),
        (208, word(1)),
        (212, word(0)),
        (248, word(1)),
        (248, word(600)),
        (252, word(4001)),
        (296, word(8)),
    ] {
        let pair = pair_with_file();
        damage(&pair, "a.luks", at, &bytes);
        for line in ["info -f luks a.luks", "map $S --image-opts @a.luks"] {
            let (ours, theirs) = pair.img(&filled(line));
            assert_eq!(ours, theirs, "{at}: {line}");
            assert_eq!(ours.code, Some(1));
        }
    }
    // QEMU's sum overflows here.
    let pair = pair_with_file();
    damage(&pair, "a.luks", 248, &word(u32::MAX));
    let said = Tool::Ours.img(pair.ours(), "info -f luks a.luks");
    assert!(said.stderr.ends_with("Keyslot 0 is overlapping with the encrypted payload\n"));
    for len in [8, 600, 8192, 300_000, 2_067_000] {
        let pair = pair_with_file();
        for directory in [pair.ours(), pair.theirs()] {
            let file = std::fs::File::options().write(true).open(directory.join("a.luks"));
            file.and_then(|file| file.set_len(len)).expect("it is cut off");
        }
        for line in ["info -f luks a.luks", "map $S --image-opts @a.luks"] {
            let (ours, theirs) = pair.img(&filled(line));
            assert_eq!((ours.code, theirs.code), (Some(1), Some(1)), "{len}: {ours:?}");
            assert_eq!(ours.stderr.lines().count(), 1, "{ours:?}");
        }
    }
}
