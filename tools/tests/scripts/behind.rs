//! What both sides leave behind differently on purpose, although they said the same, each with its reason.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;

use crate::differences::{Difference, ending};
use crate::normal::normal;
use crate::run::{Said, Tool};
use crate::script::{Program, Step};
use crate::twins::{Twins, is_qcow2};

/// Bytes in which direct I/O in memory is done by the programs.
const BLOCK_LEN: u64 = 4096;

/// Bytes of a header that say how large clusters and disk are.
const HEADER_LEN: usize = 32;

/// Looks at images before and after each command.
#[derive(Debug, Default)]
pub struct Watch {
    /// Sizes of the disks that the command may change, before it did.
    sizes: BTreeMap<String, u64>,
}

impl Watch {
    /// To be called before `step` is taken.
    pub fn before(&mut self, twins: &Twins, step: &Step) {
        let size = |name: &String| Some((name.clone(), size(&twins.of(Tool::Ours).join(name))?));
        self.sizes = step.changes.iter().filter_map(size).collect();
    }

    /// The deliberate difference, if there is one, in what is there after `step`, to which both have said `said`.
    pub fn after(&self, twins: &Twins, step: &Step, said: &Said) -> Option<Difference> {
        self.find_growth(twins, step).or_else(|| {
            let rules =
                [rebase, bench, snapshot, convert, direct, convert_holes, commit, compressed_write];
            rules.into_iter().find_map(|rule| rule(twins, step, said))
        })
    }

    /// A disk that grew, and shows on QEMU's side what is no part of it.
    fn find_growth(&self, twins: &Twins, step: &Step) -> Option<Difference> {
        let truncations = step.words.iter().filter(|word| word.starts_with("truncate ")).count();
        let laid_out = step.words.iter().any(|word| word.starts_with("--preallocation="));
        step.changes.iter().filter(|_| step.command() != "snapshot").find_map(|name| {
            let file = twins.of(Tool::Ours).join(name);
            let cluster = cluster_size(&file).filter(|_| is_qcow2(&file))?;
            let (&old, new) = (self.sizes.get(name)?, size(&file)?);
            if new <= old && truncations < 2 {
                return None;
            }
            let differs = first_difference(twins, name)?;
            // Where the disk ended between two truncations is not known.
            if truncations > 1 || old <= differs && differs / cluster == old / cluster {
                return Some(ending(
                    "QEMU shows what the rest of a disk's last cluster holds as the disk grows: what shrinking cut off, say",
                ));
            }
            let shows_bitmaps = laid_out && has_bitmaps(&twins.of(Tool::Theirs), name);
            (old <= differs && shows_bitmaps).then_some(ending(
                "resize --preallocation with bitmaps: QEMU shows what the file held where they were stored",
            ))
        })
    }
}

fn rebase(_: &Twins, step: &Step, said: &Said) -> Option<Difference> {
    let refused = said.stderr.contains("backing format must be specified");
    (step.command() == "rebase" && refused)
        .then_some(ending("a rebase that is refused has changed nothing; QEMU's has written data"))
}

fn bench(twins: &Twins, step: &Step, said: &Said) -> Option<Difference> {
    let failed = step.command() == "bench" && said.stderr.contains("Failed request: ");
    let is_qcow2 = |name: &String| is_qcow2(&twins.of(Tool::Ours).join(name));
    (failed && step.changes.iter().any(is_qcow2)).then_some(ending(
        "bench -w of which a request fails: QEMU ends without closing the image, what it has not written back is lost",
    ))
}

fn snapshot(twins: &Twins, step: &Step, said: &Said) -> Option<Difference> {
    const LEAKS: Option<i32> = Some(3);
    let leaks = |name: &String| {
        let words = ["check", "-f", "qcow2", name];
        Tool::Theirs.img(&twins.of(Tool::Theirs), &words).code == LEAKS
    };
    let failed = step.command() == "snapshot" && said.stderr.contains("Could not create snapshot");
    (failed && step.changes.iter().any(leaks))
        .then_some(ending("a snapshot that cannot be made: QEMU leaks what it has claimed for it"))
}

fn convert(twins: &Twins, step: &Step, said: &Said) -> Option<Difference> {
    let differ = |name: &String| {
        let [ours, theirs] = twins.both(name);
        size(&ours) != size(&theirs)
    };
    let done = step.command() == "convert" && step.has("-l") && said.code == Some(0);
    (done && step.changes.iter().any(differ)).then_some(ending(
        "convert -l: ours gives the target the snapshot's own size, QEMU the disk's",
    ))
}

fn direct(twins: &Twins, step: &Step, said: &Said) -> Option<Difference> {
    let is_longer = |name: &String| {
        let [ours, theirs] = twins.both(name);
        let blocks = size(&ours).map(|len| len.next_multiple_of(BLOCK_LEN));
        !is_qcow2(&ours) && size(&ours) != size(&theirs) && blocks == size(&theirs)
    };
    let is_direct = step.has("-t") && (step.has("none") || step.has("directsync"));
    let done = step.command() == "convert" && is_direct && said.code == Some(0);
    (done && step.changes.iter().any(is_longer)).then_some(ending(
        "convert -t none: QEMU makes a raw file as long as the host's blocks, and the disk with it",
    ))
}

fn convert_holes(twins: &Twins, step: &Step, said: &Said) -> Option<Difference> {
    let differ = |name: &String| !disks_differ(twins, name) && maps_differ(twins, name);
    let source_differs = |word: &String| !step.changes.contains(word) && holes_differ(twins, word);
    let done = step.command() == "convert" && said.code == Some(0);
    (done && step.words.iter().any(source_differs) && step.changes.iter().any(differ)).then_some(
        ending("convert: which parts of the source are holes of its file is its writer's choice"),
    )
}

fn commit(twins: &Twins, step: &Step, said: &Said) -> Option<Difference> {
    let differ = |name: &String| !disks_differ(twins, name) && maps_differ(twins, name);
    let done = step.command() == "commit" && said.code == Some(0);
    (done && step.changes.iter().any(differ)).then_some(ending(
        "commit: QEMU copies chunks of 64 KiB as a whole and zeros as data, ours what the image has",
    ))
}

fn compressed_write(twins: &Twins, step: &Step, said: &Said) -> Option<Difference> {
    let compresses = step.words.iter().any(|word| word.starts_with("write -c"));
    let failed =
        step.program == Program::Io && compresses && said.stdout.contains("write failed: ");
    let records = |name: &String| has_bitmaps(&twins.of(Tool::Theirs), name);
    (failed && step.changes.iter().any(records)).then_some(ending(
        "write -c of no whole cluster: QEMU's bitmaps record it, although nothing was written",
    ))
}

/// Bytes of the disk in `file`; nothing if there is no such file.
fn size(file: &Path) -> Option<u64> {
    match header(file).filter(|_| is_qcow2(file)) {
        Some([.., a, b, c, d, e, f, g, h]) => Some(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
        None => file.metadata().ok().map(|metadata| metadata.len()),
    }
}

/// Bytes of a cluster of the qcow2 image `file`.
fn cluster_size(file: &Path) -> Option<u64> {
    let bits = header(file)?[23];
    1_u64.checked_shl(bits.into())
}

fn header(file: &Path) -> Option<[u8; HEADER_LEN]> {
    let mut header = [0; HEADER_LEN];
    File::open(file).and_then(|file| file.read_exact_at(&mut header, 0)).ok()?;
    Some(header)
}

fn has_bitmaps(directory: &Path, name: &str) -> bool {
    let said = Tool::Theirs.img(directory, &["info", "-f", "qcow2", "--output=json", name]);
    let info: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
    info["format-specific"]["data"]["bitmaps"].is_array()
}

/// Whether the image `name` is another disk on the other side.
fn disks_differ(twins: &Twins, name: &str) -> bool {
    first_difference(twins, name).is_some()
}

/// The first byte of the image `name` that is another one on the other side.
fn first_difference(twins: &Twins, name: &str) -> Option<u64> {
    let [ours, theirs] = ["ours", "theirs"].map(|side| format!("{side}/{name}"));
    let said = Tool::Theirs.img(twins.root(), &["compare", &ours, &theirs]);
    let (_, place) = said.stdout.split_once("Content mismatch at offset ")?;
    place.trim_end().strip_suffix('!')?.parse().ok()
}

/// Whether the two images `name` have the same disk in other places.
fn maps_differ(twins: &Twins, name: &str) -> bool {
    let (step, [ours, theirs]) = maps(twins, name);
    normal(&step, &ours) != normal(&step, &theirs)
}

/// Whether QEMU takes other parts of the two images `name` for holes inside of their clusters.
fn holes_differ(twins: &Twins, name: &str) -> bool {
    let (_, both) = maps(twins, name);
    let [ours, theirs] = both.map(|said| {
        let map: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
        let extents = map.as_array().cloned().unwrap_or_default();
        let is_hole = |extent: &Value| extent["zero"] == true && extent["data"] == true;
        let place = |extent: Value| (extent["start"].clone(), extent["length"].clone());
        extents.into_iter().filter(is_hole).map(place).collect::<Vec<_>>()
    });
    ours != theirs
}

/// What QEMU tells of the two images `name`, and the command.
fn maps(twins: &Twins, name: &str) -> (Step, [Said; 2]) {
    let mut step = Step::img("map");
    step.add(&["--output=json", name]);
    let said = [Tool::Ours, Tool::Theirs].map(|side| Tool::Theirs.run(&twins.of(side), &step));
    (step, said)
}
