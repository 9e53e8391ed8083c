//! Images with external data files: the same answers as QEMU's, the same disks, and data files that each side reads.

use std::path::Path;

use crate::tool::{Pair, Tool};

const SETUP: &str = "
    img create -q -f qcow2 -o data_file=a.data a.qcow2 1000k
    img create -q -f qcow2 -o data_file=raw.data,data_file_raw=on raw.qcow2 1000k
    img create -q -f qcow2 base.qcow2 1M
    io base.qcow2: write -P 9 0 1M
    img create -q -f qcow2 -o data_file=top.data -b base.qcow2 -F qcow2 top.qcow2
    img create -q -f qcow2 -o data_file=part.data,extended_l2=on part.qcow2 1000k
    img create -q -f qcow2 -o data_file=rawpart.data,data_file_raw=on,extended_l2=on rawpart.qcow2 1000k
    img create -q -f qcow2 -o data_file=over.data,extended_l2=on -b base.qcow2 -F qcow2 over.qcow2
";

#[test]
fn the_data_file_is_named_anew_and_chosen_at_an_open() {
    let pair = Pair::prepared(SETUP);
    let open = |file: &str| format!("open -o data-file.filename={file} a.qcow2");
    pair.same_io("a.qcow2", &["write -P 1 0 64k"]);
    pair.same_io("", &[&open("a.data"), "read -P 1 0 64k"]);
    pair.same_io("", &[&open("missing"), "read -P 1 0 64k"]);
    for name in ["other.data", "", "a.data"] {
        pair.same_img(&format!("amend -o data_file={name} a.qcow2"));
        pair.same_json("info --output=json a.qcow2");
        pair.same_io("a.qcow2", &["read -P 1 0 64k"]);
        pair.same_io("", &[&open("a.data"), "read -P 1 0 64k"]);
        pair.same_img(
            "map --image-opts driver=qcow2,file.filename=a.qcow2,data-file.filename=a.data",
        );
    }
}

#[test]
fn new_images_are_made_and_refused_alike() {
    let pair = Pair::prepared(SETUP);
    for line in [
        "-o data_file=n.data n.qcow2 1000k",
        "-o data_file=n.data,data_file_raw=on,cluster_size=4k n.qcow2 3M",
        "-o data_file=n.data,preallocation=metadata n.qcow2 3M",
        "-o data_file=n.data,preallocation=falloc n.qcow2 3M",
        "-o data_file=n.data,preallocation=full,data_file_raw=on n.qcow2 300k",
        "-o data_file=n.data -b base.qcow2 -F qcow2 n.qcow2",
        "-o data_file=n.data,lazy_refcounts=on n.qcow2 300k",
    ] {
        pair.same_img(&format!("create -f qcow2 {line}"));
        pair.same_json("map --output=json n.qcow2");
        pair.same_json("info --output=json n.qcow2");
        pair.same_img("map n.qcow2");
        for directory in [pair.ours(), pair.theirs()] {
            Tool::Theirs.img(directory, "check n.qcow2").expect_success();
        }
    }
    for line in [
        "-o data_file=nowhere/n.data m.qcow2 1M",
        "-o data_file=m.data,compat=0.10 m.qcow2 1M",
        "-o data_file_raw=on m.qcow2 1M",
        "-o data_file=m.data,data_file_raw=on -b base.qcow2 -F qcow2 m.qcow2",
    ] {
        pair.same_img(&format!("create -f qcow2 {line}"));
        for (directory, name) in [pair.ours(), pair.theirs()].map(|d| (d, "m.qcow2")) {
            assert!(!directory.join(name).exists(), "create {line} left {name}");
        }
    }
}

#[test]
fn everything_is_told_alike_and_a_missing_data_file_is_named() {
    let pair = Pair::prepared(SETUP);
    let commands = [
        "write -P 1 100k 300k",
        "discard 128k 64k",
        "write -z 256k 64k",
        "write -zu 320k 64k",
        "write -P 3 960k 40k",
        "write -P 5 130k 1k",
        "read -P 0 131k 20k",
        "read -P 1 192k 64k",
        "read -P 0 256k 128k",
        "map",
        "alloc 0 1000k",
    ];
    let names = ["a", "raw", "top", "part", "rawpart", "over"];
    for name in names.map(|name| format!("{name}.qcow2")) {
        let name = name.as_str();
        pair.same_io(name, &commands);
        pair.same_img(&format!("map {name}"));
        pair.same_json(&format!("map --output=json {name}"));
        pair.same_json(&format!("info --output=json {name}"));
        pair.same_img(&format!("convert -O raw {name} out.raw"));
        same_bytes(&pair, "out.raw");
    }
    for directory in [pair.ours(), pair.theirs()] {
        std::fs::remove_file(directory.join("a.data")).expect("the data file");
    }
    pair.same_img("map a.qcow2");
    pair.same_img("convert -O raw a.qcow2 out.raw");
    pair.same_img("compare a.qcow2 raw.qcow2");
    pair.same_io("a.qcow2", &["read 0 512"]);
    // The file itself says all that there is to say.
    pair.same_json("info --output=json a.qcow2");
}

#[test]
fn a_data_file_may_be_neither_an_image_of_the_chain_nor_something_else_than_a_file() {
    let pair = Pair::prepared(SETUP);
    let renamed = |name: &str| {
        let bytes = std::fs::read(pair.ours().join("a.qcow2")).expect("the image");
        let at = bytes.windows(6).position(|w| w == b"a.data").expect("its data file's name");
        let mut bytes = bytes;
        bytes[at..at + 6].copy_from_slice(name.as_bytes());
        std::fs::write(pair.ours().join("x.data"), &bytes).expect("write");
        Tool::Ours.io(pair.ours(), "-f qcow2 x.data", &["write 0 512"])
    };
    // Itself, a directory, a protocol, a byte that no name has.
    std::fs::create_dir(pair.ours().join("direct")).expect("a directory");
    for name in ["x.data", "direct", "nbd://", "json:{", "a\0data"] {
        let said = renamed(name);
        assert_eq!(said.code, Some(1), "{name}: {said:?}");
        assert!(said.stderr.contains("can't open"), "{name}: {said:?}");
    }
    assert_eq!(renamed("a.data").code, Some(0));
}

/// Scripts for each change.
const SCRIPTS: u64 = 20;

#[test]
fn scripts_leave_the_same_disks_and_raw_data_files_equal_them() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = SCRIPTS * number("SOAK_FACTOR").unwrap_or(1);
    let seeds = number("SCRIPT_SEED").map_or(0..count, |seed| seed..seed + 1);
    for seed in seeds {
        println!(
            "repeat with: SCRIPT_SEED={seed} cargo test -p tools --test differential scripts_leave"
        );
        let mut random = Random(seed);
        let raw = random.below(2) == 0;
        let clusters = ["512", "4k", "64k", "16k,extended_l2=on", "64k,extended_l2=on"];
        let cluster = clusters[random.below(clusters.len() as u64) as usize];
        let size = (1 + random.below(600)) * 512;
        let count = 1 + random.below(25);
        let commands: Vec<Command> = (0..count).map(|_| any_command(&mut random)).collect();
        run_script(raw, cluster, size, &commands);
    }
}

/// A command of `qemu-io`, or a new size of the disk.
#[derive(Debug)]
enum Command {
    Io { verb: String, at: u64, len: u64 },
    Resize(u64),
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn any_command(random: &mut Random) -> Command {
    if random.below(9) == 0 {
        return Command::Resize((1 + random.below(600)) * 512);
    }
    let verb = match random.below(12) {
        0..5 => format!("write -P {}", 1 + random.below(255)),
        5..7 => "write -z".to_owned(),
        7..9 => "write -zu".to_owned(),
        _ => "discard".to_owned(),
    };
    Command::Io { verb, at: random.below(307_200), len: 1 + random.below(100_000) }
}

fn run_script(raw: bool, cluster: &str, size: u64, commands: &[Command]) {
    let pair = Pair::new();
    let kind = if raw { ",data_file_raw=on" } else { "" };
    pair.same_img(&format!(
        "create -q -f qcow2 -o data_file=d,cluster_size={cluster}{kind} i.qcow2 {size}"
    ));
    let mut size = size;
    for command in commands {
        match command {
            Command::Io { verb, at, len } => {
                let at = at % size;
                let len = (*len).min(size - at);
                pair.same_io("-f qcow2 i.qcow2", &[&format!("{verb} {at} {len}")]);
            }
            Command::Resize(new) => {
                size = *new;
                pair.same_img(&format!("resize --shrink -f qcow2 i.qcow2 {new}"));
            }
        }
    }
    for directory in [pair.ours(), pair.theirs()] {
        Tool::Theirs.img(directory, "check -f qcow2 i.qcow2").expect_success();
        for tool in [Tool::Ours, Tool::Theirs] {
            let by = if tool == Tool::Ours { "ours.raw" } else { "theirs.raw" };
            tool.img(directory, &format!("convert -f qcow2 -O raw i.qcow2 {by}")).expect_success();
        }
    }
    let read = |path: &Path| std::fs::read(path).expect("the disk");
    let disk = read(&pair.ours().join("ours.raw"));
    for other in [
        pair.ours().join("theirs.raw"),
        pair.theirs().join("ours.raw"),
        pair.theirs().join("theirs.raw"),
    ] {
        assert!(read(&other) == disk, "{} is another disk", other.display());
    }
    if raw {
        assert!(read(&pair.ours().join("d")) == disk, "the raw data file is not the disk");
    }
}

fn same_bytes(pair: &Pair, name: &str) {
    let [ours, theirs] = [pair.ours(), pair.theirs()]
        .map(|directory| std::fs::read(directory.join(name)).expect("the file"));
    assert!(ours == theirs, "{name} differs");
}
