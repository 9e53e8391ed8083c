//! The close mark: set and cleared at the right moments, kept by QEMU, and inserted into images of others without a
//! moment in which the header is broken.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use qcow::addr::HostOffset;
use qcow::disk::sim::{SimDisk, World};
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::disk::{Buffer, Disk, FileExtent, Identity, Payload};
use qcow::engine::check::{Repair, check};
use qcow::engine::{CreateOptions, Format, Image, OpenOptions, create};
use qcow::format::header::{Header, Version};
use qcow::format::mark::{MARK_TYPE, MarkState};
use qcow::gate::{BackingPolicy, HostGate, OneFile};
use tempfile::TempDir;

/// Runs a program of QEMU in `directory`; its output.
fn run(directory: &Path, program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(directory).output();
    let output = output.expect("these tests need QEMU's tools");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

/// The image by itself, whatever it names as its backing file.
const ALONE: &str =
    r#"json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"image"}}"#;

fn header(bytes: &[u8]) -> Header {
    let bits = Header::cluster_bits_of(bytes).expect("an image");
    let mut cluster0 = bytes[..bytes.len().min(1 << bits)].to_vec();
    cluster0.resize(1 << bits, 0);
    Header::parse(&cluster0, bytes.len() as u64).expect("a sound header")
}

fn state(bytes: &[u8]) -> Option<MarkState> {
    header(bytes).extensions.mark.map(|mark| mark.state())
}

async fn open<D: Disk + Clone>(disk: &D) -> Image<D> {
    // What the backing file holds does not matter here.
    let format = Some(Format::Qcow2);
    let options = OpenOptions { writable: true, format, backing: false, ..OpenOptions::default() };
    Image::open(&OneFile(disk.clone()), Path::new("image"), &options).await.expect("open")
}

async fn write<D: Disk>(image: &Image<D>) {
    let bytes = Buffer::from_bytes(&[7; 512]);
    image.write(1024, &bytes.payload()).await.expect("write");
}

async fn create_in(file: &SimDisk, options: CreateOptions) {
    create(file, &CreateOptions { size: 1 << 20, ..options }).await.expect("create");
}

#[test]
fn unclean_from_the_first_change_to_the_close() {
    for version in [Version::V2, Version::V3] {
        let world = World::new(1);
        let file = world.add_file(&[]);
        let now = || state(&file.to_vec()).expect("a mark");
        world.block_on(async {
            create_in(&file, CreateOptions { version, ..CreateOptions::default() }).await;
            assert_eq!(now(), MarkState::Clean);
            let image = open(&file).await;
            image.flush().await.expect("flush");
            assert_eq!(now(), MarkState::Clean, "nothing has changed yet");
            write(&image).await;
            assert_eq!(now(), MarkState::Unclean);
            image.close().await.expect("close");
            assert_eq!(now(), MarkState::Clean);
            // The same image may be written on.
            write(&image).await;
            image.discard(0, 1 << 20).await.expect("discard");
            assert_eq!(now(), MarkState::Unclean);
            drop(image);
            // Nobody has looked for leaks: the mark stays.
            let image = open(&file).await;
            assert!(image.needs_recovery());
            write(&image).await;
            image.close().await.expect("close");
            assert_eq!(now(), MarkState::Unclean);
            let repaired = check(&file, Path::new("image"), Repair::Leaks, &mut |_| {}).await;
            assert!(repaired.expect("check").is_clean());
            assert_eq!(now(), MarkState::Clean);
            assert!(!open(&file).await.needs_recovery());
        });
    }
}

#[test]
fn who_wants_no_marks_adds_none_unless_a_snapshot_needs_one() {
    for version in [Version::V2, Version::V3] {
        let world = World::new(1);
        let file = world.add_file(&[]);
        world.block_on(async {
            let options = CreateOptions { version, marked: false, ..CreateOptions::default() };
            create_in(&file, options).await;
            assert_eq!(state(&file.to_vec()), None);
            let options =
                OpenOptions { writable: true, adds_mark: false, ..OpenOptions::default() };
            let gate = OneFile(file.clone());
            let image = Image::open(&gate, Path::new("image"), &options).await.expect("open");
            write(&image).await;
            image.flush().await.expect("flush");
            assert_eq!(state(&file.to_vec()), None);
            image.create_snapshot("one".as_ref(), Duration::ZERO).await.expect("snapshot");
            image.close().await.expect("close");
            let needed = (version == Version::V2).then_some(MarkState::Clean);
            assert_eq!(state(&file.to_vec()), needed);
            let checked = check(&file, Path::new("image"), Repair::None, &mut |_| {}).await;
            assert!(checked.expect("check").is_clean());
        });
    }
}

#[test]
fn a_mark_that_is_not_understood_counts_as_unclean_and_is_kept() {
    let world = World::new(1);
    let file = world.add_file(&[]);
    world.block_on(async {
        create_in(&file, CreateOptions::default()).await;
        let at = Header::find_mark(&file.to_vec()[..65536]).expect("sound").expect("a mark");
        let patched = Buffer::from_bytes(&[9, 0, 3]);
        file.write(at, &patched.payload()).await.expect("write");
        let image = open(&file).await;
        assert!(image.needs_recovery());
        write(&image).await;
        image.close().await.expect("close");
        let at = at.get() as usize;
        assert_eq!(file.to_vec()[at..at + 8], [9, 1, 3, 0, 0, 0, 0, 0]);
    });
}

#[test]
fn a_header_without_room_is_left_as_it_is() {
    let world = World::new(1);
    let file = world.add_file(&[]);
    world.block_on(async {
        // 112 bytes of fields, 8 of end marker, 390 of name: two bytes are left of the cluster.
        let backing = Some(("n".repeat(390).into(), None));
        let options = CreateOptions { cluster_bits: 9, backing, ..CreateOptions::default() };
        create_in(&file, options).await;
        let before = file.to_vec();
        assert_eq!(state(&before), None);
        let image = open(&file).await;
        write(&image).await;
        image.close().await.expect("close");
        assert_eq!(file.to_vec()[..512], before[..512]);
    });
}

#[test]
fn new_images_suit_qemu_and_their_mark_survives_it() {
    for (version, cluster_bits) in [(Version::V2, 12), (Version::V3, 9), (Version::V3, 16)] {
        let directory = TempDir::new().expect("a directory");
        let path = directory.path().join("image");
        let qemu = |program: &str, args: &[&str]| run(directory.path(), program, args);
        let disk = UringDisk::open(&path, Access::Create, CacheMode::PageCache).expect("create");
        let options =
            CreateOptions { size: 1 << 20, version, cluster_bits, ..CreateOptions::default() };
        block_on(create(&disk, &options)).expect("create");
        drop(disk);
        let bytes = || std::fs::read(&path).expect("read");
        let check_state = |expected| {
            qemu("qemu-img", &["check", ALONE]);
            qemu("qemu-img", &["info", "image"]);
            assert_eq!(state(&bytes()), Some(expected), "version {version:?}");
        };
        check_state(MarkState::Clean);
        for unclean in [false, true] {
            if unclean {
                set_unclean(&path);
            }
            let expected = if unclean { MarkState::Unclean } else { MarkState::Clean };
            qemu("qemu-img", &["rebase", "-u", "-b", "some/base", "-F", "raw", "image"]);
            check_state(expected);
            qemu("qemu-img", &["rebase", "-u", "-b", "", "image"]);
            check_state(expected);
            qemu("qemu-io", &["-c", "write -P 3 0 300k", "-c", "discard 0 64k", "image"]);
            check_state(expected);
            qemu("qemu-img", &["snapshot", "-c", "one", "image"]);
            qemu("qemu-img", &["snapshot", "-d", "one", "image"]);
            check_state(expected);
            if version == Version::V3 {
                qemu("qemu-img", &["amend", "-o", "lazy_refcounts=on", "image"]);
                qemu("qemu-img", &["amend", "-o", "lazy_refcounts=off", "image"]);
                qemu("qemu-img", &["bitmap", "--add", "image", "dirty"]);
                qemu("qemu-img", &["bitmap", "--remove", "image", "dirty"]);
            } else {
                qemu("qemu-img", &["amend", "-o", "compat=1.1", "image"]);
                qemu("qemu-img", &["amend", "-o", "compat=0.10", "image"]);
            }
            check_state(expected);
        }
    }
}

fn set_unclean(path: &Path) {
    let gate =
        HostGate { cache: CacheMode::PageCache, shared: false, backing: BackingPolicy::Deny };
    let format = Some(Format::Qcow2);
    let options = OpenOptions { writable: true, format, backing: false, ..OpenOptions::default() };
    block_on(async {
        let image = Image::open(&gate, path, &options).await.expect("open");
        image.write_zeroes(0, 512, false).await.expect("write zeroes");
        image.flush().await.expect("flush");
    });
}

/// What happened to a file: writes, and barriers between them.
#[derive(Clone, Debug)]
enum Event {
    Write(usize, Vec<u8>),
    Barrier,
}

/// A disk that keeps a record of all that is written to its header cluster.
#[derive(Clone, Debug)]
struct Recorder {
    disk: SimDisk,
    cluster: u64,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Disk for Recorder {
    async fn read(&self, at: HostOffset, into: &Payload) -> io::Result<()> {
        self.disk.read(at, into).await
    }

    async fn write(&self, at: HostOffset, from: &Payload) -> io::Result<()> {
        if at.get() < self.cluster {
            let event = Event::Write(at.get() as usize, from.to_vec());
            self.events.lock().expect("no panic").push(event);
        }
        self.disk.write(at, from).await
    }

    async fn write_zeroes(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.disk.write_zeroes(at, len).await
    }

    async fn punch_hole(&self, at: HostOffset, len: u64) -> io::Result<bool> {
        self.disk.punch_hole(at, len).await
    }

    async fn allocate(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.disk.allocate(at, len).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(len).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.events.lock().expect("no panic").push(Event::Barrier);
        self.disk.sync().await
    }

    fn drop_cache(&self, _: std::ops::Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn allocated_len(&self) -> io::Result<u64> {
        self.disk.allocated_len()
    }

    fn extent_at(&self, at: HostOffset) -> io::Result<FileExtent> {
        self.disk.extent_at(at)
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn identity(&self) -> Identity {
        self.disk.identity()
    }

    fn random_number(&self) -> u64 {
        self.disk.random_number()
    }
}

/// Images of QEMU: options, and whether the mark has room.
fn foreign_images() -> Vec<(Vec<String>, bool)> {
    let with_name = |len: usize, options: &str| {
        // Of letters that differ: a name that is moved is not the same in between.
        let name: String = ('a'..='w').cycle().take(len).collect();
        ["-o", options, "-u", "-b", &name, "-F", "raw"].map(str::to_owned).to_vec()
    };
    let plain = |options: &str| ["-o", options].map(str::to_owned).to_vec();
    let mut images = vec![
        (plain("cluster_size=64k"), true),
        (plain("cluster_size=512"), true),
        (plain("compat=0.10"), true),
        (plain("compat=0.10,cluster_size=512"), true),
        (plain("compression_type=zstd,cluster_size=2M"), true),
    ];
    for len in [1, 7, 8, 9, 100, 300, 500, 512, 1000, 1023] {
        images.push((with_name(len, "cluster_size=64k"), true));
        images.push((with_name(len, "cluster_size=4k"), true));
        images.push((with_name(len, "compat=0.10,cluster_size=2k"), len < 900));
    }
    for len in [1, 100, 150, 220, 300, 330] {
        // All of it is one sector.
        images.push((with_name(len, "cluster_size=512"), true));
    }
    images
}

#[test]
fn images_of_others_get_the_mark_and_a_crash_finds_the_old_header_or_the_new_one() {
    for (options, fits) in foreign_images() {
        let directory = TempDir::new().expect("a directory");
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        args.extend(options.iter().map(String::as_str));
        args.extend(["image", "1M"]);
        run(directory.path(), "qemu-img", &args);
        let bytes = std::fs::read(directory.path().join("image")).expect("read");
        let old = header(&bytes);
        let cluster = 1 << old.cluster_bits;
        let world = World::new(1);
        let disk = world.add_file(&bytes);
        let recorder = Recorder { disk: disk.clone(), cluster, events: Arc::default() };
        world.block_on(async {
            let image = open(&recorder).await;
            write(&image).await;
            assert_eq!(state(&disk.to_vec()).is_some(), fits, "{options:?}");
            let events = recorder.events.lock().expect("no panic").clone();
            check_crashes(&bytes, &old, &events);
            image.close().await.expect("close");
        });
        let mut new = header(&disk.to_vec());
        assert_eq!(new.extensions.mark.take().map(|m| m.state()), fits.then_some(MarkState::Clean));
        assert_eq!((&new.backing_name, &new.extensions), (&old.backing_name, &old.extensions));
        std::fs::write(directory.path().join("image"), disk.to_vec()).expect("write");
        run(directory.path(), "qemu-img", &["check", ALONE]);
        let info = run(directory.path(), "qemu-img", &["info", "-U", "image"]);
        let name = old.backing_name.map(|name| name.into_string().expect("text"));
        assert!(info.contains(name.as_deref().unwrap_or_default()), "{info}");
    }
}

/// Every subset of the sectors written since the last barrier may be on disk after a crash.
fn check_crashes(bytes: &[u8], old: &Header, events: &[Event]) {
    let mut durable = bytes.to_vec();
    let mut since: Vec<(usize, Vec<u8>)> = Vec::new();
    for event in events {
        match event {
            Event::Write(at, bytes) => since.push((*at, bytes.clone())),
            Event::Barrier => {
                assert!(since.len() <= 8, "too many writes between barriers to try all subsets");
                for chosen in 0..1_u32 << since.len() {
                    let mut image = durable.clone();
                    for (_, write) in since.iter().enumerate().filter(|(i, _)| chosen >> i & 1 == 1)
                    {
                        image[write.0..write.0 + write.1.len()].copy_from_slice(&write.1);
                    }
                    let mut found = header(&image);
                    if let Some(mark) = found.extensions.mark.take() {
                        assert_eq!(mark.state(), MarkState::Unclean);
                    }
                    assert_eq!(&found, old);
                }
                for (at, bytes) in since.drain(..) {
                    durable[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
        }
    }
}

#[test]
fn the_type_is_no_other_extensions() {
    for known in [0xe279_2aca, 0x4441_5441, 0x0537_be77, 0x6803_f857, 0x2385_2875, 0_u32] {
        assert_ne!(MARK_TYPE, known);
    }
}
