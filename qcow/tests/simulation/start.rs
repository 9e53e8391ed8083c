//! The images that cases start from. Making one costs processes of `qemu-img` and so is done once for each shape.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use qcow::addr::HostOffset;
use qcow::crypt::cipher::{Aes, CipherSpec, Iv, Mode};
use qcow::crypt::luks::{Cost, NewLuks};
use qcow::crypt::sealed_slots::SlotCost;
use qcow::crypt::{Hash, Passphrase};
use qcow::disk::sim::{Content, SimDisk, World};
use qcow::disk::{Buffer, Disk};
use qcow::engine::{
    CreateOptions, DataFileOptions, NewEncryption, NewIntegrity, create, create_with_data,
};
use qcow::format::header::Version;

use crate::case::{SECTOR, Shape, Start};
use crate::drive::{SimGate, open};

/// What an external data file holds where nothing has been written.
const JUNK: u64 = 0xdead_dead_dead_dead;

/// The files of an image that is not in use.
#[derive(Clone, Debug)]
pub struct Files {
    pub image: Content,
    pub backing: Option<Content>,
    pub data: Option<Content>,
}

impl Files {
    /// The files, in `world`.
    pub fn put_into(self, world: &World) -> SimGate {
        let add = |content| world.add_content(content);
        let (backing, data) = (self.backing.map(add), self.data.map(add));
        SimGate { image: add(self.image), backing, data, world: world.clone() }
    }
}

/// The image of `shape`.
pub fn files(shape: &Shape) -> Files {
    type Cell = Arc<OnceLock<Files>>;
    static MADE: OnceLock<Mutex<HashMap<Shape, Cell>>> = OnceLock::new();
    let cell: Cell = {
        let mut made =
            MADE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(made.entry(*shape).or_default())
    };
    cell.get_or_init(|| make(shape)).clone()
}

/// What a sector holds at first.
pub fn initial(shape: &Shape, sector: u64) -> u64 {
    match shape.start {
        Start::Backing(sectors) | Start::SealedBacking(sectors) if sector < sectors => {
            0xbac0_0000_0000_0000 | sector
        }
        _ if sector >= shape.written() => 0,
        _ => 0xf111_0000_0000_0000 | sector,
    }
}

/// Sectors that say on every word whose they are.
pub fn sectors(stamps: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for stamp in stamps {
        bytes.extend_from_slice(&stamp.to_le_bytes().repeat(SECTOR as usize / 8));
    }
    bytes
}

fn make(shape: &Shape) -> Files {
    match shape.start {
        Start::Snapshot | Start::Compressed => {
            Files { image: by_qemu(shape), backing: None, data: None }
        }
        _ => by_ourselves(shape),
    }
}

fn bytes(shape: &Shape, count: u64) -> Vec<u8> {
    sectors((0..count).map(|s| initial(shape, s)))
}

fn by_ourselves(shape: &Shape) -> Files {
    let world = World::new(1);
    let backing = shape.backing().map(|sectors| world.add_file(&bytes(shape, sectors)));
    let data = shape.is_external().then(|| world.add_file(&[]));
    let gate = SimGate { image: world.add_file(&[]), backing, data, world: world.clone() };
    world.block_on(async {
        match &gate.data {
            Some(data) => create_with_data(&gate.image, data, &options(shape)).await,
            None => create(&gate.image, &options(shape)).await,
        }
        .expect("create");
        if let (Start::External(_), Some(data)) = (shape.start, &gate.data) {
            // What no cluster maps means nothing.
            let junk = Buffer::from_bytes(&sectors((0..shape.size).map(|_| JUNK))).payload();
            data.write(HostOffset::new(0), &junk).await.expect("write junk");
        }
        if shape.written() > 0 {
            let image = open(&gate, 1 << 20).await.expect("open");
            let payload = Buffer::from_bytes(&bytes(shape, shape.written())).payload();
            image.write(0, &payload).await.expect("fill");
            image.close().await.expect("close");
        }
    });
    let content = |disk: SimDisk| disk.content();
    Files {
        image: gate.image.content(),
        backing: gate.backing.clone().map(content),
        data: gate.data.clone().map(content),
    }
}

/// The key of encrypted images.
pub fn key() -> Arc<Passphrase> {
    static KEY: OnceLock<Arc<Passphrase>> = OnceLock::new();
    let new = || Arc::new(Passphrase::read(&b"simulated"[..]).expect("a passphrase"));
    Arc::clone(KEY.get_or_init(new))
}

/// How an image of this shape is created.
pub fn options(shape: &Shape) -> CreateOptions {
    // The cheapest there is: each state is opened several times.
    let luks = || {
        let cipher = CipherSpec::new(Aes::Aes128, Mode::Cbc, Iv::Plain64).expect("a cipher");
        NewLuks { cipher, hash: Hash::Sha256, cost: Cost::Iterations(0) }
    };
    CreateOptions {
        integrity: match shape.start {
            Start::Checksummed(_) => Some(NewIntegrity::Crc32c),
            _ if shape.is_authenticated() => Some(NewIntegrity::Aes256Gcm(key(), SlotCost::TINY)),
            _ => None,
        },
        encryption: shape.is_encrypted().then(|| NewEncryption::Luks(luks(), key())),
        size: shape.size * SECTOR,
        version: if shape.version3 { Version::V3 } else { Version::V2 },
        cluster_bits: shape.cluster_bits,
        refcount_order: shape.refcount_order,
        extended_l2: shape.extended,
        backing: shape.backing().map(|_| ("backing".into(), Some("raw".into()))),
        data_file: shape.is_external().then(|| DataFileOptions {
            name: "data".into(),
            raw: matches!(shape.start, Start::RawExternal(_)),
        }),
        ..CreateOptions::default()
    }
}

fn by_qemu(shape: &Shape) -> Content {
    let directory = tempfile::tempdir().expect("a directory");
    let (raw, image) = (directory.path().join("raw"), directory.path().join("image"));
    std::fs::write(&raw, bytes(shape, shape.size)).expect("write");
    let compat = if shape.version3 { "1.1" } else { "0.10" };
    let options = format!(
        "cluster_size={},refcount_bits={},compat={compat},extended_l2={}",
        1 << shape.cluster_bits,
        1 << shape.refcount_order,
        if shape.extended { "on" } else { "off" }
    );
    let compress: &[&str] = if shape.start == Start::Compressed { &["-c"] } else { &[] };
    qemu_img(
        Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args(compress)
            .arg("-o")
            .arg(options)
            .args([&raw, &image]),
    );
    if shape.start == Start::Snapshot {
        qemu_img(Command::new("qemu-img").args(["snapshot", "-c", "first"]).arg(&image));
    }
    Content::from_bytes(&read(&image))
}

fn qemu_img(command: &mut Command) {
    let output = command.output().expect("qemu-img");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("the image that was made")
}
