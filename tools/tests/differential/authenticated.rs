//! Authenticated images, which QEMU refuses: what each command does with them, and that what comes out is what went in.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::sides::{Said, Tool};
use crate::tool::prepare_lines;
use tempfile::TempDir;

const SECRETS: &str = "--object secret,id=s,file=pw --object secret,id=t,file=pw2";
const KEY: &str = "integrity=aes-256-gcm,encrypt.key-secret=s,encrypt.iter-time=1";
/// What QEMU says of such an image.
const REFUSAL: &str = "Unsupported qcow2 feature(s): authenticated image ('qcow convert' reads it)";

/// A directory with passphrases, a disk of 4 MiB in `plain.raw`, and `qcow` to run in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary directory"));
        let put = |name, bytes: &[u8]| fs::write(place.path().join(name), bytes).expect("a file");
        put("pw", b"a passphrase\n");
        put("pw2", b"another one");
        put("pw3", b"a wrong one");
        // What does not become smaller, what does, and zeros.
        let mut seed = 1_u64;
        let mut disk: Vec<u8> = (0..200_000_u64)
            .flat_map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 17).to_le_bytes()
            })
            .collect();
        disk.extend([7; 900_000]);
        disk.resize(4 << 20, 0);
        put("plain.raw", &disk);
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs `qcow` with the words of `line`: `$S` stands for the secrets, `$K` for the options of a new image with a key, and
    /// `@file` for an image with one.
    fn qcow(&self, line: &str) -> Said {
        let line = line.replace("$S", SECRETS).replace("$K", KEY);
        let words = line.split_whitespace().map(|word| match word.split_once('@') {
            Some((before, name)) => {
                format!("{before}driver=qcow2,encrypt.key-secret=s,file.filename={name}")
            }
            None => word.trim_matches('\'').to_owned(),
        });
        Tool::Ours.run("qcow", self.path(), words)
    }

    #[track_caller]
    fn run(&self, line: &str) -> String {
        self.qcow(line).expect_success().stdout
    }

    /// Runs what has to fail, with one line that says why.
    #[track_caller]
    fn refuse(&self, line: &str, code: i32, why: &str) {
        let said = self.qcow(line);
        assert_eq!(said.code, Some(code), "{line}: {said:?}");
        assert!(said.stderr.contains(why), "{line}: {said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{line}: {said:?}");
    }

    /// Runs `qcow io` with the image, as `qcow` has it, last.
    #[track_caller]
    fn io(&self, image: &str, commands: &[&str]) {
        let mut words: Vec<String> = SECRETS.split(' ').map(str::to_owned).collect();
        match image.strip_prefix('@') {
            Some(name) => words.extend([
                "--image-opts".to_owned(),
                format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}"),
            ]),
            None => words.push(image.to_owned()),
        }
        commands.iter().for_each(|command| words.extend(["-c".to_owned(), (*command).to_owned()]));
        words.insert(0, "io".to_owned());
        let said = Tool::Ours.run("qcow", self.path(), words).expect_success();
        assert!(!said.stdout.contains("failed"), "{said:?}");
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path().join(name)).expect("a file")
    }

    fn put_at(&self, name: &str, at: u64, bytes: &[u8]) {
        let file = fs::File::options().write(true).open(self.path().join(name));
        file.and_then(|file| file.write_all_at(bytes, at)).expect("it can be damaged");
    }

    fn copy(&self, from: &str, to: &str) {
        fs::copy(self.path().join(from), self.path().join(to)).expect("a copy");
    }

    /// What `info` says is the root of an image.
    #[track_caller]
    fn root(&self, image: &str) -> String {
        let said = self.run(&format!("info {image}"));
        let root = said.lines().find_map(|line| line.strip_prefix("    root: "));
        root.expect("a root").to_owned()
    }
}

/// How both kinds of images are made and named.
const KINDS: [(&str, &str); 2] =
    [("-o integrity=crc32c", "a.qcow2"), ("$S -o $K", "$S --image-opts @a.qcow2")];

#[test]
fn disks_are_converted_there_and_back() {
    let place = Place::new();
    for (options, image) in KINDS {
        for (compressed, more) in [("", ""), ("-c", ""), ("-c", ",compression_type=zstd")] {
            place.run(&format!(
                "convert {compressed} -f raw -O qcow2 {options}{more} plain.raw a.qcow2"
            ));
            place.run(&format!("check --scrub {image}"));
            place.run(&format!("convert {compressed} -O qcow2 {image} b.qcow2"));
            let said = Tool::Theirs.img(place.path(), "compare -f qcow2 -F raw b.qcow2 plain.raw");
            assert_eq!(said.code, Some(0), "{options}{more}: {said:?}");
            place.run(&format!("convert -O raw {image} b.raw"));
            assert!(place.bytes("b.raw") == place.bytes("plain.raw"), "{options}{more}");
            let is_small = fs::metadata(place.path().join("a.qcow2")).unwrap().len() < 1_900_000;
            assert_eq!(is_small, compressed == "-c", "{options}{more}");
        }
        // From one such image to another, with another key.
        let other = "integrity=aes-256-gcm,encrypt.key-secret=t,encrypt.iter-time=1";
        place.run(&format!("convert $S -O qcow2 -o {other} {image} c.qcow2"));
        let opened = "driver=qcow2,encrypt.key-secret=t,file.filename=c.qcow2";
        place.run(&format!("convert $S --image-opts {opened} -O raw b.raw"));
        assert!(place.bytes("b.raw") == place.bytes("plain.raw"), "{options}");
        place.run(&format!(
            "compare {image} {}",
            if image.contains('@') { "@a.qcow2" } else { "a.qcow2" }
        ));
    }
    place.run("convert -f raw -O qcow2 -o integrity=crc32c plain.raw a.qcow2");
    place.run("compare -f qcow2 -F raw a.qcow2 plain.raw");
    place.io("a.qcow2", &["write -P 1 3000 5k"]);
    assert_eq!(place.qcow("compare -f qcow2 -F raw a.qcow2 plain.raw").code, Some(1));
}

#[test]
fn dd_copies_from_and_to_them() {
    let place = Place::new();
    place.run("convert $S -f raw -O qcow2 -o $K plain.raw a.qcow2");
    place.run("dd $S --image-opts if=@a.qcow2 of=part.raw bs=64k skip=2 count=5");
    let line = "dd -f raw if=plain.raw of=wanted.raw bs=64k skip=2 count=5";
    Tool::Theirs.img(place.path(), line).expect_success();
    assert!(place.bytes("part.raw") == place.bytes("wanted.raw"));
}

#[test]
fn io_reads_what_it_has_written() {
    let place = Place::new();
    for (options, image) in KINDS {
        place.run(&format!("create -q -f qcow2 {options} a.qcow2 8M"));
        let image = if image.contains('@') { "@a.qcow2" } else { image };
        place.io(image, &["write -P 1 0 3M", "write -z 1M 100k", "discard 2M 64k", "flush"]);
        place.io(image, &["write -P 2 5000000 1000", "write -z -u 10k 40k"]);
        place.io(
            image,
            &["read -P 1 0 10k", "read -P 0 10k 40k", "read -P 1 50k 974k", "read -P 0 1M 100k"],
        );
        place
            .io(image, &["read -P 0 2M 64k", "read -P 1 2162688 983040", "read -P 2 5000000 1000"]);
    }
}

#[test]
fn others_refuse_them_and_say_why() {
    let place = Place::new();
    for (options, _) in KINDS {
        place.run(&format!("create -q -f qcow2 {options} a.qcow2 1M"));
        for line in ["info a.qcow2", "check a.qcow2", "convert -O raw a.qcow2 x.raw", "map a.qcow2"]
        {
            let said = Tool::Theirs.img(place.path(), line);
            assert_eq!((said.code, said.stderr.contains(REFUSAL)), (Some(1), true), "{said:?}");
        }
    }
    // In QEMU's place, nothing is offered that QEMU does not have.
    let line = "create -f qcow2 -o integrity=crc32c x.qcow2 1M";
    let [ours, theirs] = [Tool::Ours, Tool::Theirs].map(|tool| tool.img(place.path(), line));
    assert_eq!(ours, theirs);
    assert!(ours.stderr.contains("Invalid parameter 'integrity'"), "{ours:?}");
    let help = Tool::Ours.img(place.path(), "create -f qcow2 -o help").expect_success();
    assert!(!help.stdout.contains("integrity"), "{help:?}");
    assert!(place.run("create -f qcow2 -o help").contains("integrity=<str>"));
}

#[test]
fn what_they_cannot_do_is_refused_in_one_line() {
    let place = Place::new();
    place.run("create -q -f qcow2 -o integrity=crc32c a.qcow2 1M");
    for (line, why) in [
        ("compact a.qcow2", REFUSAL),
        ("bitmap --add a.qcow2 b", "Can't store persistent bitmaps"),
        ("measure -O qcow2 -o integrity=crc32c --size 1M", "cannot be measured yet"),
        ("amend -o lazy_refcounts=on a.qcow2", "'lazy_refcounts' of an authenticated image"),
        ("amend -o compat=0.10 a.qcow2", "'compat' of an authenticated image"),
        ("create -q -f qcow2 -o integrity=crc32c,lazy_refcounts=on x 1M", "lazy_refcounts=on"),
        ("create -q -f qcow2 -o integrity=crc32c,preallocation=full x 1M", "preallocation"),
        ("create -q -f qcow2 -o integrity=crc32c,data_file=d x 1M", "data_file"),
        ("create -q -f qcow2 -o integrity=crc32c,extended_l2=on x 1M", "extended_l2=on"),
        ("create -q -f qcow2 -o integrity=crc32c,compat=0.10 x 1M", "compat=0.10"),
        ("create -q -f qcow2 -o integrity=crc32c,encryption=on x 1M", "'encryption'"),
        ("create -q -f qcow2 -o integrity=crc32c,cluster_size=2k x 1M", "4096 to 65536"),
        ("create -q -f qcow2 -o integrity=crc32c,cluster_size=2M x 1M", "4096 to 65536"),
        ("create -q -f qcow2 -o integrity=md5 x 1M", "does not accept value 'md5'"),
        ("create -q -f qcow2 -o integrity=aes-256-gcm x 1M", "'encrypt.key-secret' is required"),
        ("create -q -f raw -o integrity=crc32c x 1M", "Invalid parameter 'integrity'"),
        ("create -q -f qcow2 -o integrity=crc32c x 5E", "The image size is too large"),
        ("resize a.qcow2 5E", "File too large"),
    ] {
        place.refuse(line, 1, why);
        assert!(!place.path().join("x").exists(), "{line} leaves a file");
    }
    place.refuse("check --scrub -f raw plain.raw", 63, "does not support checks");
}

#[test]
fn info_tells_kind_root_and_key_slots() {
    let place = Place::new();
    place.run("create -q -f qcow2 -o integrity=crc32c,compression_type=zstd a.qcow2 1M");
    let said = place.run("info a.qcow2");
    for line in ["    integrity: crc32c", "    compression type: zstd", "    closed: true"] {
        assert!(said.lines().any(|told| told == line), "{said}");
    }
    let said = place.qcow("info --output=json a.qcow2").json();
    assert_eq!(said["format"], "qcow2");
    let data = &said["format-specific"]["data"];
    assert_eq!((&data["integrity"], &data["closed"]), (&"crc32c".into(), &true.into()));
    assert_eq!(data["root"], place.root("a.qcow2"));

    place.run("create -q $S -f qcow2 -o $K k.qcow2 1M");
    let without = place.run("info k.qcow2");
    assert!(without.contains("encrypted: yes") && without.contains("key slot 0: argon2id"));
    assert!(without.contains("root: known with the key only"), "{without}");
    let root = place.root("$S --image-opts @k.qcow2");
    assert!(root.starts_with("2:") && root.len() == 34, "{root}");
    let wrong = "info --object secret,id=s,file=pw3 --image-opts @k.qcow2";
    place.refuse(wrong, 1, "Invalid password, cannot unlock any keyslot");
}

#[test]
fn check_finds_damage_and_repairs_what_has_a_copy() {
    let place = Place::new();
    for (options, image) in KINDS {
        place.run(&format!("convert -f raw -O qcow2 {options} plain.raw a.qcow2"));
        place.copy("a.qcow2", "whole.qcow2");
        // Some data, in the middle of the file.
        place.put_at("a.qcow2", 500_000, b"damage");
        place.run(&format!("check {image}"));
        let said = place.qcow(&format!("check --scrub {image}"));
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.stderr.contains("ERROR the data at 0x"), "{said:?}");
        for repair in ["leaks", "all"] {
            let said = place.qcow(&format!("check -r {repair} --scrub {image}"));
            assert_eq!(said.code, Some(2), "nobody knows what was there: {said:?}");
        }
        let json = place.qcow(&format!("check --scrub --output=json {image}"));
        assert_eq!((json.code, &json.json()["corruptions"]), (Some(2), &1.into()));
        let read = place.qcow(&format!("convert -O raw {image} x.raw"));
        assert_eq!(read.code, Some(1));
        assert!(read.stderr.contains("is not what was written there"), "{read:?}");

        // One copy of a root has a twin; of two, nobody knows which root it was.
        place.copy("whole.qcow2", "a.qcow2");
        place.put_at("a.qcow2", 4096 + 100, b"damage");
        assert_eq!(place.qcow(&format!("check {image}")).code, Some(2));
        let said = place.qcow(&format!("check -r all {image}"));
        assert_eq!((said.code, said.stdout.contains("1 corruptions")), (Some(0), true), "{said:?}");
        place.run(&format!("check --scrub {image}"));
        place.put_at("a.qcow2", 4096 + 100, b"damage");
        place.put_at("a.qcow2", 8192 + 100, b"damage");
        place.refuse(&format!("check -r all {image}"), 1, "both copies of a root");

        // The end of the file is missing.
        place.copy("whole.qcow2", "a.qcow2");
        let file = fs::File::options().write(true).open(place.path().join("a.qcow2")).unwrap();
        file.set_len(100_000).unwrap();
        place.refuse(&format!("check {image}"), 1, "the file has been cut off");
    }
}

#[test]
fn check_tells_an_older_state_by_its_root() {
    let place = Place::new();
    for (options, image) in KINDS {
        place.run(&format!("create -q -f qcow2 {options} a.qcow2 1M"));
        let written = if image.contains('@') { "@a.qcow2" } else { "a.qcow2" };
        let first = place.root(image);
        place.copy("a.qcow2", "older.qcow2");
        place.io(written, &["write -P 1 0 64k"]);
        let second = place.root(image);
        for root in [&first, &second] {
            place.run(&format!("check --root {root} {image}"));
        }
        place.copy("older.qcow2", "a.qcow2");
        place.run(&format!("check --root {first} {image}"));
        let said = place.qcow(&format!("check --root {second} {image}"));
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.stderr.contains(&format!("does not follow {second}")), "{said:?}");
        // Another history that has as many roots is another one.
        place.io(written, &["write -P 2 0 64k"]);
        assert_eq!(place.qcow(&format!("check --root {second} {image}")).code, Some(2));
        place.refuse(&format!("check --root {first} plain.raw -f raw"), 63, "does not support");
    }
    let said = place.qcow("check --root 1:2 a.qcow2");
    assert_eq!((said.code, said.stderr.contains("is no root")), (Some(1), true), "{said:?}");
}

#[test]
fn snapshots_and_sizes_are_as_in_other_images() {
    let place = Place::new();
    for (options, image) in KINDS {
        place.run(&format!("create -q -f qcow2 {options} a.qcow2 4M"));
        let written = if image.contains('@') { "@a.qcow2" } else { "a.qcow2" };
        place.io(written, &["write -P 1 0 1M"]);
        place.run(&format!("snapshot -c one {image}"));
        place.io(written, &["write -P 2 500k 1M", "discard 0 64k"]);
        place.run(&format!("snapshot -c two {image}"));
        let listed = place.run(&format!("snapshot -l {image}"));
        assert!(listed.contains(" one ") && listed.contains(" two "), "{listed}");
        place.run(&format!("resize {image} 6M"));
        place.io(written, &["write -P 3 4000k 200k", "read -P 0 4200k 1M", "read -P 2 600k 500k"]);
        place.run(&format!("convert -l snapshot.name=one -O raw {image} one.raw"));
        let one = place.bytes("one.raw");
        assert!(one.len() == 4 << 20 && one[..1 << 20].iter().all(|byte| *byte == 1));
        assert!(one[1 << 20..].iter().all(|byte| *byte == 0));
        place.run(&format!("snapshot -a one {image}"));
        place.io(written, &["read -P 1 0 1M", "read -P 0 1M 3M"]);
        place.run(&format!("snapshot -d one {image}"));
        place.run(&format!("snapshot -a two {image}"));
        place.io(written, &["read -P 0 0 64k", "read -P 1 64k 436k", "read -P 2 500k 1M"]);
        place.run(&format!("check --scrub {image}"));
        place.run(&format!("snapshot -d two {image}"));
        place.refuse(&format!("snapshot -d two {image}"), 1, "snapshot not found");
        assert_eq!(place.run(&format!("snapshot -l {image}")), "");
        assert_eq!(place.qcow(&format!("resize {image} 1M")).code, Some(1));
        place.run(&format!("resize --shrink {image} 1M"));
        place.run(&format!("resize {image} 2M"));
        place.io(written, &["read -P 1 64k 436k", "read -P 2 500k 524k", "read -P 0 1M 1M"]);
        place.run(&format!("check --scrub {image}"));
    }
}

#[test]
fn they_lie_on_others_and_others_on_them() {
    let place = Place::new();
    prepare_lines(
        place.path(),
        "img create -q -f qcow2 base.qcow2 4M
         io base.qcow2: write -P 1 0 1M
         img create -q -f qcow2 other.qcow2 4M
         io other.qcow2: write -P 1 0 2M",
    );
    place.run("create -q -f qcow2 -o integrity=crc32c -b base.qcow2 -F qcow2 top.qcow2");
    place.io("top.qcow2", &["write -P 2 500k 100k", "write -z 0 100k", "discard 100k 64k"]);
    let content = ["read -P 0 0 100k", "read -P 1 192k 308k", "read -P 2 500k 100k"];
    place.io("top.qcow2", &content);
    let said = place.run("info top.qcow2");
    assert!(said.contains("backing file: base.qcow2"), "{said}");
    place.run("convert -O raw top.qcow2 before.raw");
    // Another backing file, with what differs brought up; then none.
    place.run("rebase -b other.qcow2 -F qcow2 top.qcow2");
    place.run("compare -f qcow2 -F raw top.qcow2 before.raw");
    place.run("rebase -u -b base.qcow2 -F qcow2 top.qcow2");
    place.run("compare -f qcow2 -F raw top.qcow2 before.raw");
    place.run("check --scrub top.qcow2");
    // Down into the image below.
    place.run("commit -q top.qcow2");
    place.run("compare -f qcow2 -F raw base.qcow2 before.raw");
    let said = Tool::Theirs.img(place.path(), "compare -f qcow2 -F raw base.qcow2 before.raw");
    assert_eq!(said.code, Some(0), "{said:?}");
    place.run("compare -f qcow2 -F raw top.qcow2 before.raw");
    place.run("rebase -b '' top.qcow2");
    // One such image on another.
    place.run("create -q -f qcow2 -o integrity=crc32c -b top.qcow2 -F qcow2 over.qcow2");
    place.io("over.qcow2", &["write -P 5 1M 1M"]);
    place.run("convert -O raw over.qcow2 after.raw");
    place.run("commit -q over.qcow2");
    place.run("compare -f qcow2 -F raw top.qcow2 after.raw");
    place.run("check --scrub top.qcow2");
    place.run("check --scrub over.qcow2");
}

#[test]
fn key_slots_come_and_go() {
    let place = Place::new();
    place.run("create -q $S -f qcow2 -o $K a.qcow2 1M");
    place.io("@a.qcow2", &["write -P 9 0 1M"]);
    let slots = || {
        let said = place.run("info a.qcow2");
        let slots = said.lines().filter_map(|line| line.strip_prefix("    key slot "));
        slots.map(|slot| slot.split(':').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let amend = |secret: &str, options: &str| {
        let second = "--object secret,id=t,file=pw2";
        format!(
            "amend --object secret,id=s,file={secret} {second} -o {options} --image-opts @a.qcow2"
        )
    };
    let opens = |secret: &str| {
        let line = format!("check --object secret,id=s,file={secret} --image-opts @a.qcow2");
        place.qcow(&line).code == Some(0)
    };
    let add = "encrypt.state=active,encrypt.new-secret=t,encrypt.iter-time=1";
    place.refuse(&amend("pw3", add), 1, "Invalid password");
    place.run(&amend("pw", add));
    place.run(&amend("pw", &format!("{add},encrypt.keyslot=7")));
    assert_eq!(slots(), ["0", "1", "7"]);
    assert!(opens("pw") && opens("pw2") && !opens("pw3"));
    place.refuse(&amend("pw", &format!("{add},encrypt.keyslot=1")), 1, "active keyslot 1");
    place.refuse(&amend("pw", "encrypt.state=inactive,encrypt.keyslot=3"), 1, "already erased");
    let mismatch = "encrypt.state=inactive,encrypt.keyslot=0,encrypt.old-secret=t";
    place.refuse(&amend("pw", mismatch), 1, "doesn't contain the given old password");
    // A passphrase is erased wherever it is: nothing is left that it opens.
    place.run(&amend("pw", "encrypt.state=inactive,encrypt.old-secret=t"));
    assert_eq!(slots(), ["0"]);
    assert!(opens("pw") && !opens("pw2"));
    place.refuse(
        &amend("pw", "encrypt.state=inactive,encrypt.old-secret=t"),
        1,
        "No keyslots match",
    );
    for last in ["encrypt.keyslot=0", "encrypt.old-secret=s"] {
        place.refuse(
            &amend("pw", &format!("encrypt.state=inactive,{last}")),
            1,
            "refusing operation",
        );
    }
    place.run(&amend("pw", add));
    place.run(&amend("pw2", "encrypt.state=inactive,encrypt.keyslot=0"));
    assert!(!opens("pw") && opens("pw2"));
    place.run(&amend("pw2", &format!("{add},encrypt.keyslot=3")));
    let all = "encrypt.state=inactive,encrypt.old-secret=t";
    place.refuse(&amend("pw2", all), 1, "All the active keyslots match");
    assert_eq!(slots(), ["1", "3"]);
}

#[test]
fn without_the_right_key_nothing_opens() {
    let place = Place::new();
    place.run("convert $S -f raw -O qcow2 -o $K plain.raw a.qcow2");
    let whole = place.bytes("a.qcow2");
    for line in ["check a.qcow2", "map a.qcow2", "snapshot -l a.qcow2", "resize a.qcow2 8M"] {
        place.refuse(line, 1, "'encrypt.key-secret' is required");
    }
    place.refuse("convert -O raw a.qcow2 x.raw", 1, "'encrypt.key-secret' is required");
    let wrong = "--object secret,id=s,file=pw3 --image-opts";
    place.refuse(&format!("convert {wrong} @a.qcow2 -O raw x.raw"), 1, "Invalid password");
    place.refuse(&format!("resize {wrong} @a.qcow2 8M"), 1, "Invalid password");
    assert!(place.bytes("a.qcow2") == whole, "it is as it was");
    // Each byte of the only key slot, which lies in the block behind the roots.
    const SLOT: u64 = 5 * 4096;
    for at in SLOT..SLOT + 512 {
        let byte = whole[at as usize];
        place.put_at("a.qcow2", at, &[byte ^ 1 << (at % 8)]);
        let said = place.qcow("check $S --image-opts @a.qcow2");
        assert_eq!(said.code, Some(1), "byte {at:#x}: {said:?}");
        place.put_at("a.qcow2", at, &[byte]);
    }
    place.run("check --scrub $S --image-opts @a.qcow2");
}

#[test]
fn nothing_of_the_disk_is_readable_in_the_file() {
    let place = Place::new();
    place.run("create -q $S -f qcow2 -o $K a.qcow2 4M");
    let marker: Vec<u8> = (0..512_u32).map(|i| (i * i % 251) as u8 ^ (i >> 3) as u8).collect();
    fs::write(place.path().join("marker.raw"), marker.repeat(200)).unwrap();
    place.run("convert -n $S -f raw marker.raw --target-image-opts @a.qcow2");
    place.run("snapshot -c a-telling-name $S --image-opts @a.qcow2");
    place.io("@a.qcow2", &["write -P 7 1M 64k"]);
    let file = place.bytes("a.qcow2");
    let mut parts: std::collections::HashSet<&[u8]> = marker.windows(16).collect();
    parts.insert(&[7; 16]);
    let found = file.windows(16).position(|part| parts.contains(part));
    assert_eq!(found, None, "a part of what was written");
    assert!(!file.windows(14).any(|part| part == b"a-telling-name"));
    // In an image without a key, all of it is there.
    place.run("convert -f raw -O qcow2 -o integrity=crc32c marker.raw b.qcow2");
    assert!(place.bytes("b.qcow2").windows(16).any(|part| parts.contains(part)));
}
