//! Encrypted images: each side works with what the other has made, and both refuse the same in the same words.

use crate::tool::{Pair, Said, Tool, put};

/// What unlocks an image in every line here.
const SECRETS: &str =
    "--object secret,id=s,file=pw --object secret,id=t,file=pw2 --object secret,id=u,file=pw3";
const LUKS: &str = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1";

/// A pair of directories with passphrases, and what QEMU has made of `setup` in both.
fn pair(setup: &str) -> Pair {
    let pair = Pair::new();
    put(&pair, "pw", b"a passphrase\n");
    put(&pair, "pw2", b"another one");
    put(&pair, "pw3", b"c2VjcmV0");
    put(&pair, "odd", b"no\xfftext");
    for directory in [pair.ours(), pair.theirs()] {
        crate::tool::prepare_lines(directory, setup);
    }
    pair
}

/// How `name` is called together with its key.
fn opts(name: &str) -> String {
    format!("{SECRETS} --image-opts driver=qcow2,encrypt.key-secret=s,file.filename={name}")
}

/// `line` with the placeholders for secrets and options filled in.
fn filled(line: &str) -> String {
    let line = line.replace("$S", SECRETS).replace("$L", LUKS);
    let words = line.split(' ').map(|word| match word.strip_prefix('@') {
        Some(name) => format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}"),
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn same(pair: &Pair, line: &str) -> Said {
    let line = filled(line);
    let (ours, theirs) = pair.img(&line);
    let untold = |said: Said| {
        let lines =
            said.stderr.lines().filter(|line| !line.contains("warning: encrypt.format=aes"));
        Said { stderr: lines.map(|line| format!("{line}\n")).collect(), ..said }
    };
    let ours = untold(ours);
    assert_eq!(ours, theirs, "qemu-img {line}");
    ours
}

/// Ciphers, modes, initialization vectors and hashes of LUKS headers that both sides know.
pub fn ciphers() -> Vec<[&'static str; 4]> {
    let mut all = Vec::new();
    for (number, aes) in ["aes-128", "aes-192", "aes-256"].into_iter().enumerate() {
        for (other, iv) in ["plain", "plain64", "essiv"].into_iter().enumerate() {
            let hash = ["sha1", "sha256", "sha512"][(number + other) % 3];
            all.push([aes, "xts", iv, hash]);
            if aes != "aes-192" {
                all.push([aes, "cbc", iv, hash]);
            }
        }
    }
    all
}

/// Every cipher, mode, initialization vector and hash, made by one side and used by the other and back.
#[test]
fn each_side_reads_and_writes_what_the_other_has_made() {
    let pair = pair("");
    let directory = pair.ours();
    for (number, [aes, mode, iv, hash]) in ciphers().into_iter().enumerate() {
        let (maker, other) = match number % 2 {
            0 => (Tool::Ours, Tool::Theirs),
            _ => (Tool::Theirs, Tool::Ours),
        };
        let name = format!("{aes}, {mode}, {iv}, {hash}, made by {maker:?}");
        let options = format!(
            "{LUKS},encrypt.cipher-alg={aes},encrypt.cipher-mode={mode},encrypt.ivgen-alg={iv},encrypt.hash-alg={hash}"
        );
        let line = format!("create -q {SECRETS} -f qcow2 -o {options} a.qcow2 4M");
        maker.img(directory, &line).expect_success();
        for (tool, byte) in [(other, 1), (maker, 2)] {
            let at = byte * 1_000_000;
            let write = format!("write -P {byte} {at} 100k");
            let said = tool.io(directory, &opts("a.qcow2"), &[&write, "flush"]).expect_success();
            assert!(said.stdout.contains("wrote 102400"), "{name}: {said:?}");
            for reader in [maker, other] {
                let reads = [
                    format!("read -P {byte} {at} 100k"),
                    format!("read -P 0 {} 1000", at + 102_400),
                ];
                let reads = reads.each_ref().map(String::as_str);
                let said = reader.io(directory, &opts("a.qcow2"), &reads).expect_success();
                assert!(!said.stdout.contains("failed"), "{name}, {reader:?}: {said:?}");
            }
        }
        for tool in [maker, other] {
            tool.img(directory, &format!("check {}", opts("a.qcow2"))).expect_success();
        }
        let [ours, theirs] =
            [Tool::Ours, Tool::Theirs].map(|tool| tool.img(directory, "info a.qcow2"));
        assert_eq!(ours, theirs, "{name}");
        let [ours, theirs] = [Tool::Ours, Tool::Theirs]
            .map(|tool| tool.img(directory, "info --output=json a.qcow2").json());
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn both_refuse_the_same_options() {
    let pair = pair("");
    for line in [
        "create $S -f qcow2 -o $L,encrypt.cipher-alg=foo a.qcow2 1M",
        "create $S -f qcow2 -o $L,encrypt.cipher-mode=foo a.qcow2 1M",
        "create $S -f qcow2 -o $L,encrypt.ivgen-alg=foo a.qcow2 1M",
        "create $S -f qcow2 -o $L,encrypt.hash-alg=foo a.qcow2 1M",
        "create $S -f qcow2 -o $L,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha1 a.qcow2 1M",
        "create $S -f qcow2 -o $L,encrypt.iter-time=x a.qcow2 1M",
        "create $S -f qcow2 -o encrypt.format=foo,encrypt.key-secret=s a.qcow2 1M",
        "create $S -f qcow2 -o encrypt.format=luks a.qcow2 1M",
        "create $S -f qcow2 -o encrypt.format=luks,encrypt.key-secret=nobody a.qcow2 1M",
        "create $S -f qcow2 -o encrypt.key-secret=s a.qcow2 1M",
        "create $S -f qcow2 -o encryption=on a.qcow2 1M",
        "create $S -f qcow2 -o encryption=on,encrypt.format=aes,encrypt.key-secret=s a.qcow2 1M",
        "create $S -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s,encrypt.hash-alg=sha1 a.qcow2 1M",
        "create --object secret,id=s,file=odd -f qcow2 -o $L a.qcow2 1M",
        "create --object secret,id=s,file=missing -f qcow2 -o $L a.qcow2 1M",
    ] {
        let said = same(&pair, line);
        assert_eq!(said.code, Some(1), "{line}");
    }
}

#[test]
fn both_say_the_same_of_an_image_and_its_key() {
    let pair = pair("");
    same(&pair, "create $S -f qcow2 -o encrypt.format=aes,encrypt.key-secret=s aes.qcow2 1M");
    for line in [
        "create -f qcow2 plain.qcow2 1M",
        "measure $S -O qcow2 -o $L --size 1G",
        "measure $S -O qcow2 -o $L,encrypt.cipher-alg=aes-128,cluster_size=2M --size 1G",
        "measure -O qcow2 -o encrypt.format=aes --size 1G",
        "measure -O qcow2 -o encrypt.format=luks --size 1G",
    ] {
        same(&pair, line);
    }
    for directory in [pair.ours(), pair.theirs()] {
        let line = filled("create -q $S -f qcow2 -o $L a.qcow2 1M");
        Tool::Ours.img(directory, &line).expect_success();
    }
    for line in [
        "map a.qcow2",
        "convert -O raw a.qcow2 a.raw",
        "compare a.qcow2 a.qcow2",
        "resize a.qcow2 2M",
        "map --object secret,id=s,file=pw2 --image-opts @a.qcow2",
        "map --image-opts @a.qcow2",
        "map $S --image-opts @a.qcow2",
        "map $S --output=json --image-opts @a.qcow2",
        "map $S --image-opts driver=qcow2,encrypt.format=aes,encrypt.key-secret=s,file.filename=a.qcow2",
        "map $S --image-opts driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=a.qcow2",
        "map $S --image-opts driver=qcow2,encrypt.foo=luks,encrypt.key-secret=s,file.filename=a.qcow2",
        "map $S --image-opts driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.filename=plain.qcow2",
        "map $S --image-opts @plain.qcow2",
        "map --image-opts @plain.qcow2",
        "resize $S --image-opts @a.qcow2 2M",
        "map --output=json $S --image-opts @a.qcow2",
        "convert $S -O qcow2 -c -o $L plain.qcow2 c.qcow2",
    ] {
        same(&pair, line);
    }
}

/// What stands in the command line is no secret.
#[test]
fn secrets_in_the_command_line_are_not_used() {
    let pair = pair("");
    let line = "create --object secret,id=s,data=abc -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s a.qcow2 1M";
    let said = Tool::Ours.img(pair.ours(), line);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("is in the command line") && !said.stderr.contains("abc"));
    assert!(!pair.ours().join("a.qcow2").exists());
}

#[test]
fn disks_are_converted_to_encrypted_ones_and_back() {
    let pair = pair(
        "img create -q -f qcow2 plain.qcow2 8M
         io plain.qcow2: write -P 7 0 1M; write -P 8 3000000 100k; write -z 6M 1M",
    );
    let directory = pair.ours();
    for (tool, other) in [(Tool::Ours, Tool::Theirs), (Tool::Theirs, Tool::Ours)] {
        let run = |tool: Tool, line: &str| tool.img(directory, &filled(line)).expect_success();
        run(tool, "convert $S -O qcow2 -o $L plain.qcow2 a.qcow2");
        run(other, "check $S --image-opts @a.qcow2");
        run(other, "convert $S --image-opts @a.qcow2 -O raw a.raw");
        run(other, "compare -f raw -F qcow2 a.raw plain.qcow2");
        run(tool, "create -q $S -f qcow2 -o $L there.qcow2 8M");
        run(other, "convert -n $S --image-opts @a.qcow2 --target-image-opts @there.qcow2");
        run(tool, "compare $S --image-opts @a.qcow2 @there.qcow2");
    }
}

#[test]
fn chains_are_encrypted_layer_by_layer() {
    let pair = pair("");
    for (directory, tool) in [(pair.ours(), Tool::Ours), (pair.theirs(), Tool::Theirs)] {
        let run = |line: &str| tool.img(directory, &filled(line)).expect_success();
        let base = "encrypt.format=luks,encrypt.key-secret=t,encrypt.iter-time=10";
        run(&format!("create -q $S -f qcow2 -o {base} base.qcow2 4M"));
        let named = "driver=qcow2,encrypt.key-secret=t,file.filename=base.qcow2";
        let io = |image: &str, commands: &[&str]| {
            let options = format!("{SECRETS} --image-opts {image}");
            tool.io(directory, &options, commands).expect_success()
        };
        io(named, &["write -P 1 0 2M"]);
        run("create -q $S -u -f qcow2 -o $L -b base.qcow2 -F qcow2 top.qcow2 4M");
        let top = "driver=qcow2,encrypt.key-secret=s,backing.encrypt.key-secret=t,backing.driver=qcow2,backing.file.filename=base.qcow2,file.filename=top.qcow2";
        io(top, &["write -P 2 100 1000", "write -P 3 1M 5k"]);
        let said = io(
            top,
            &["read -P 1 0 100", "read -P 2 100 1000", "read -P 1 1100 5000", "read -P 3 1M 5k"],
        );
        assert!(!said.stdout.contains("failed"), "{said:?}");
        run(&format!("convert $S --image-opts -O raw {top} before.raw"));
        run(&format!("commit -q $S --image-opts {top}"));
        run(&format!("convert $S --image-opts -O raw {named} after.raw"));
        run("compare -f raw -F raw before.raw after.raw");
    }
    pair.same_disk("after.raw");
}

/// Snapshots, resizes and key slots, in turns.
#[test]
fn snapshots_and_sizes_are_as_in_clear_images() {
    let pair = pair("");
    let directory = pair.ours();
    let run = |tool: Tool, line: &str| tool.img(directory, &filled(line)).expect_success();
    run(Tool::Ours, "create -q $S -f qcow2 -o $L a.qcow2 4M");
    let io = |tool: Tool, commands: &[&str]| {
        let said = tool.io(directory, &opts("a.qcow2"), commands).expect_success();
        assert!(!said.stdout.contains("failed"), "{said:?}");
    };
    io(Tool::Ours, &["write -P 1 0 1M"]);
    run(Tool::Theirs, "snapshot -c one $S --image-opts @a.qcow2");
    io(Tool::Theirs, &["write -P 2 500k 1M", "discard 0 64k"]);
    run(Tool::Ours, "snapshot -c two $S --image-opts @a.qcow2");
    run(Tool::Ours, "resize $S --image-opts @a.qcow2 6M");
    io(Tool::Ours, &["write -P 3 4000k 200k", "read -P 0 4200k 1M", "read -P 2 600k 500k"]);
    run(Tool::Ours, "snapshot -a one $S --image-opts @a.qcow2");
    io(Tool::Theirs, &["read -P 1 0 1M", "read -P 0 1M 3M"]);
    run(Tool::Theirs, "snapshot -a two $S --image-opts @a.qcow2");
    io(Tool::Ours, &["read -P 0 0 64k", "read -P 1 64k 436k", "read -P 2 500k 1M"]);
    for tool in [Tool::Ours, Tool::Theirs] {
        run(tool, "check $S --image-opts @a.qcow2");
    }
}

#[test]
fn key_slots_change_alike() {
    let pair = pair("");
    for directory in [pair.ours(), pair.theirs()] {
        let line = filled("create -q $S -f qcow2 -o $L a.qcow2 1M");
        Tool::Ours.img(directory, &line).expect_success();
    }
    let slots = |directory| {
        let info = Tool::Theirs.img(directory, "info --output=json a.qcow2").json();
        let slots = &info["format-specific"]["data"]["encrypt"]["slots"];
        slots.as_array().unwrap().iter().map(|slot| slot["active"] == true).collect::<Vec<_>>()
    };
    for options in [
        "encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=10",
        "encrypt.state=active,encrypt.iter-time=10",
        "encrypt.new-secret=t,encrypt.iter-time=10",
        "encrypt.state=foo,encrypt.iter-time=10",
        "encrypt.state=active,encrypt.new-secret=u,encrypt.iter-time=10,encrypt.keyslot=1",
        "encrypt.state=active,encrypt.new-secret=u,encrypt.iter-time=10,encrypt.keyslot=8",
        "encrypt.state=active,encrypt.new-secret=u,encrypt.iter-time=10,encrypt.keyslot=5",
        "encrypt.state=active,encrypt.new-secret=u,encrypt.iter-time=10,encrypt.old-secret=t",
        "encrypt.state=active,encrypt.new-secret=nope",
        "encrypt.state=inactive",
        "encrypt.state=inactive,encrypt.old-secret=nope",
        "encrypt.state=inactive,encrypt.keyslot=3",
        "encrypt.state=inactive,encrypt.keyslot=9",
        "encrypt.state=inactive,encrypt.new-secret=u,encrypt.keyslot=5",
        "encrypt.state=inactive,encrypt.iter-time=10,encrypt.keyslot=5",
        "encrypt.state=inactive,encrypt.keyslot=0,encrypt.old-secret=u",
        "encrypt.state=inactive,encrypt.old-secret=u",
        "encrypt.state=inactive,encrypt.old-secret=u",
        "encrypt.state=inactive,encrypt.keyslot=1",
        "encrypt.state=inactive,encrypt.keyslot=0",
        "encrypt.state=inactive,encrypt.old-secret=s",
    ] {
        same(&pair, &format!("amend -o {options} $S --image-opts @a.qcow2"));
        assert_eq!(slots(pair.ours()), slots(pair.theirs()), "{options}");
    }
    let force = "amend --force -o encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=10,encrypt.keyslot=0";
    same(&pair, &format!("{force} $S --image-opts @a.qcow2"));
    for (directory, tool) in [(pair.ours(), Tool::Theirs), (pair.theirs(), Tool::Ours)] {
        let image = "driver=qcow2,encrypt.key-secret=t,file.filename=a.qcow2";
        let line = format!("map {SECRETS} --image-opts {image}");
        tool.img(directory, &line).expect_success();
        let old = Tool::Ours.img(directory, &filled("map $S --image-opts @a.qcow2"));
        assert_eq!(old.code, Some(1), "{old:?}");
    }
}
