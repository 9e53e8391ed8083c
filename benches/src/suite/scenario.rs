//! What is measured, and the targets: data.

use serde::Serialize;

use super::images::{Codec, ImageKind};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Our daemon, on a qcow2 image.
    Ours,
    /// QEMU's daemon, on the same image.
    Peer,
    /// Our daemon, on a raw image that holds the same.
    OursRaw,
    /// Our daemon, on a qcow2 image that holds the same in clear.
    OursPlain,
    /// Nobody: [`crate::load::bare`] on that raw image, copying from the one below if there is one.
    Bare,
}

impl Side {
    /// All, in the order in which tables show them.
    pub const ALL: [Self; 5] = [Self::Ours, Self::Peer, Self::OursRaw, Self::OursPlain, Self::Bare];

    /// For the heading of a column.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Peer => "QEMU",
            Self::OursRaw => "our raw",
            Self::OursPlain => "our plain",
            Self::Bare => "bare",
        }
    }

    /// Whether it works on the raw image.
    pub fn is_raw(self) -> bool {
        matches!(self, Self::OursRaw | Self::Bare)
    }
}

/// Somebody to be compared with, and what the ratio of ours to theirs has to be.
#[derive(Clone, Copy, Debug)]
pub struct Rival {
    /// Who.
    pub side: Side,
    /// CPU time per request: at most this.
    pub cpu_max: Option<f64>,
    /// Requests or bytes per second: at least this.
    pub throughput_min: Option<f64>,
}

const fn peer(cpu_max: f64, throughput_min: f64) -> Rival {
    Rival { side: Side::Peer, cpu_max: Some(cpu_max), throughput_min: Some(throughput_min) }
}

const fn peer_throughput(throughput_min: f64) -> Rival {
    Rival { side: Side::Peer, cpu_max: None, throughput_min: Some(throughput_min) }
}

const fn raw(throughput_min: f64) -> Rival {
    Rival { side: Side::OursRaw, cpu_max: Some(1.1), throughput_min: Some(throughput_min) }
}

const fn plain(cpu_max: f64) -> Rival {
    Rival { side: Side::OursPlain, cpu_max: Some(cpu_max), throughput_min: None }
}

/// The floor has no target: it says how far below the others anything can get here.
const BARE: Rival = Rival { side: Side::Bare, cpu_max: None, throughput_min: None };

/// One row of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// For `--only`.
    pub name: &'static str,
    /// In words.
    pub title: &'static str,
    /// What is served.
    pub image: ImageKind,
    /// What is asked of it.
    pub work: Work,
    /// Bypass the page cache.
    pub direct: bool,
    /// L2 caches as both daemons size them by themselves; otherwise QEMU's covers the whole disk, as
    /// ours does by default up to 256 GiB.
    pub default_caches: bool,
    /// Whom ours is compared with.
    pub rivals: &'static [Rival],
}

/// What is asked of a side.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Requests.
    Load(Load),
    /// Nothing.
    Idle,
}

/// Requests without a break.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// See [`crate::compare::case::Case`].
    pub case: &'static str,
    /// Bytes of the disk that are used, from its start; `None`: all.
    pub range: Option<u64>,
    /// Ends after this many requests instead of a time, and starts without a warm-up: first writes
    /// run out of fresh places, and must not make more dirty pages than the kernel takes without
    /// slowing the writer down. A run of less than [`FULL_SECONDS`] makes fewer.
    pub requests: Option<u64>,
}

/// Seconds of a load for which [`Load::requests`] is meant.
pub const FULL_SECONDS: f64 = 2.0;

const fn load(case: &'static str) -> Work {
    Work::Load(Load { case, range: None, requests: None })
}

const fn first_writes(case: &'static str, requests: u64) -> Work {
    Work::Load(Load { case, range: None, requests: Some(requests) })
}

const fn within(case: &'static str, range: u64) -> Work {
    Work::Load(Load { case, range: Some(range), requests: None })
}

const FULL: ImageKind = ImageKind::Full { size: GIB };
const LUKS: ImageKind = ImageKind::Encrypted { size: GIB };
const THIN: ImageKind = ImageKind::Thin { size: 64 * GIB, extended_l2: false };
const THIN_EXTENDED: ImageKind = ImageKind::Thin { size: 64 * GIB, extended_l2: true };
const SPOTS: ImageKind = ImageKind::Spots { size: TIB, every: 64 * MIB };
const ZSTD: ImageKind = ImageKind::Compressed { size: GIB, codec: Codec::Zstd };
const DEFLATE: ImageKind = ImageKind::Compressed { size: GIB, codec: Codec::Deflate };

/// What most rows have in common.
const USUAL: Scenario = Scenario {
    name: "",
    title: "",
    image: FULL,
    work: Work::Idle,
    direct: false,
    default_caches: false,
    rivals: &[],
};

/// Memory of our daemon above its caches, in bytes: less than this in all scenarios.
pub const MEMORY_ABOVE_CACHES_MAX: u64 = 16 * MIB;

/// The suite, in the order in which it runs. Neighbours with equal images share them.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "read-4k-d32",
        title: "4 KiB random read, depth 32",
        work: load("read:random:4k:32"),
        rivals: &[peer(0.65, 1.5), raw(0.95), BARE],
        ..USUAL
    },
    Scenario {
        name: "read-4k-d1",
        title: "4 KiB random read, depth 1",
        work: load("read:random:4k:1"),
        rivals: &[peer(0.8, 1.15), raw(0.95), BARE],
        ..USUAL
    },
    Scenario {
        name: "read-4k-d32-q2",
        title: "4 KiB random read, depth 32, two queues",
        work: load("read:random:4k:32:2"),
        rivals: &[peer_throughput(1.8), raw(0.95), BARE],
        ..USUAL
    },
    Scenario {
        name: "write-4k-d32",
        title: "4 KiB random overwrite, depth 32",
        work: load("write:random:4k:32"),
        rivals: &[peer(0.9, 1.1), raw(0.95), BARE],
        ..USUAL
    },
    Scenario {
        name: "write-4k-d32-direct",
        title: "4 KiB random overwrite, O_DIRECT, depth 32",
        work: load("write:random:4k:32"),
        direct: true,
        rivals: &[peer(0.9, 1.1), raw(0.95), BARE],
        ..USUAL
    },
    Scenario {
        name: "read-1m",
        title: "1 MiB sequential read, depth 8",
        work: load("read:sequential:1m:8"),
        rivals: &[peer(1.0, 1.0), raw(0.95), BARE],
        ..USUAL
    },
    Scenario {
        name: "write-1m",
        title: "1 MiB sequential overwrite, depth 8",
        work: load("write:sequential:1m:8"),
        rivals: &[peer(1.0, 1.0), raw(0.95), BARE],
        ..USUAL
    },
    Scenario {
        name: "idle",
        title: "idle, a guest connected",
        rivals: &[Rival { side: Side::Peer, cpu_max: None, throughput_min: None }],
        ..USUAL
    },
    Scenario {
        name: "luks-read-4k-d32",
        title: "4 KiB random read of an encrypted image, depth 32",
        image: LUKS,
        work: load("read:random:4k:32"),
        rivals: &[plain(1.5)],
        ..USUAL
    },
    Scenario {
        name: "luks-write-4k-d32",
        title: "4 KiB random overwrite of an encrypted image, depth 32",
        image: LUKS,
        work: load("write:random:4k:32"),
        rivals: &[plain(1.5)],
        ..USUAL
    },
    Scenario {
        name: "first-4k",
        title: "4 KiB random first write, depth 32",
        image: THIN,
        work: first_writes("write:scattered/64k:4k:32", 160_000),
        rivals: &[peer(0.5, 1.8), raw(0.9), BARE],
        ..USUAL
    },
    Scenario {
        name: "first-64k",
        title: "64 KiB sequential first write, depth 8",
        image: THIN,
        work: first_writes("write:sequential:64k:8", 16_384),
        rivals: &[peer(0.6, 1.7), raw(0.95), BARE],
        ..USUAL
    },
    Scenario {
        name: "first-64k-extended",
        title: "64 KiB sequential first write, extended L2, depth 8",
        image: THIN_EXTENDED,
        work: first_writes("write:sequential:64k:8", 16_384),
        rivals: &[peer(0.6, 1.7), raw(0.95), BARE],
        ..USUAL
    },
    Scenario {
        name: "first-4k-overlay",
        title: "4 KiB random first write over a full backing file, depth 32",
        image: ImageKind::Overlay { size: GIB },
        work: first_writes("write:scattered/64k:4k:32", GIB / (64 * KIB)),
        rivals: &[peer(0.5, 2.0), BARE],
        ..USUAL
    },
    Scenario {
        name: "spots-1t",
        title: "4 KiB random read of a spot in each 64 MiB of 1 TiB, default caches, depth 32",
        image: SPOTS,
        work: load("read:random/64m:4k:32"),
        default_caches: true,
        rivals: &[peer(0.45, 2.5)],
        ..USUAL
    },
    Scenario {
        name: "zstd-hot",
        title: "4 KiB random read of 4 MiB of a zstd image, depth 32",
        image: ZSTD,
        work: within("read:random:4k:32", 4 * MIB),
        rivals: &[peer_throughput(15.0)],
        ..USUAL
    },
    Scenario {
        name: "zstd-cold",
        title: "4 KiB random read of all of a zstd image, depth 32",
        image: ZSTD,
        work: load("read:random:4k:32"),
        rivals: &[peer_throughput(2.0)],
        ..USUAL
    },
    Scenario {
        name: "deflate-hot",
        title: "4 KiB random read of 4 MiB of a deflate image, depth 32",
        image: DEFLATE,
        work: within("read:random:4k:32", 4 * MIB),
        rivals: &[peer_throughput(60.0)],
        ..USUAL
    },
    Scenario {
        name: "deflate-cold",
        title: "4 KiB random read of all of a deflate image, depth 32",
        image: DEFLATE,
        work: load("read:random:4k:32"),
        rivals: &[peer_throughput(3.0)],
        ..USUAL
    },
];

impl Scenario {
    /// Who takes part: ours first.
    pub fn sides(&self) -> Vec<Side> {
        let rivals = self.rivals.iter().map(|rival| rival.side);
        std::iter::once(Side::Ours).chain(rivals).collect()
    }
}

/// The scenarios of these names, in the suite's order; all if there are no names.
pub fn select(names: &[String]) -> Result<Vec<Scenario>, String> {
    if let Some(name) = names.iter().find(|name| ALL.iter().all(|s| s.name != **name)) {
        return Err(format!("'{name}': no such scenario; --list lists them"));
    }
    let wanted = |s: &&Scenario| names.is_empty() || names.iter().any(|name| name == s.name);
    Ok(ALL.iter().filter(wanted).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::case::Case;

    #[test]
    fn the_table_is_sound() {
        for (i, scenario) in ALL.iter().enumerate() {
            let name = scenario.name;
            assert!(ALL[..i].iter().all(|earlier| earlier.name != name), "{name} twice");
            assert!(!scenario.sides()[1..].contains(&Side::Ours), "{name}");
            if let Work::Load(load) = scenario.work {
                load.case.parse::<Case>().unwrap();
            }
        }
    }

    #[test]
    fn scenarios_are_selected_in_the_order_of_the_suite() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let selected = select(&names(&["idle", "read-4k-d1"])).unwrap();
        let selected: Vec<_> = selected.iter().map(|s| s.name).collect();
        assert_eq!(selected, ["read-4k-d1", "idle"]);
        assert_eq!(select(&[]).unwrap().len(), ALL.len());
        assert!(select(&names(&["idel"])).unwrap_err().contains("'idel'"));
    }
}
