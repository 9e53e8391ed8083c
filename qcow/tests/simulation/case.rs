//! What one case does: an image and a list of requests. A case is written as one line of text, so that it can be repeated.

use std::fmt;
use std::str::FromStr;

use proptest::prelude::*;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// The largest of small disks, and how large it is where a node is large.
const LARGE: u64 = 57;
const SEVERAL_NODES: u64 = 640;

/// One request, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write {
        at: u64,
        count: u64,
    },
    Zero {
        at: u64,
        count: u64,
        unmap: bool,
    },
    Discard {
        at: u64,
        count: u64,
    },
    /// A compressed write of the whole clusters that these sectors touch.
    Compressed {
        at: u64,
        count: u64,
    },
    Read {
        at: u64,
        count: u64,
    },
    Flush,
    /// Make the disk so many sectors large: beside writes, reads and flushes where it grows, else alone.
    Resize {
        size: u64,
    },
    /// Wait for everything under way, close, open again.
    Reopen,
    /// The process dies with requests in flight, and the image is opened again.
    Kill,
    /// Give back what earlier kills have leaked, beside everything else.
    Recover,
}

/// What the image holds at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Start {
    /// Nothing.
    Empty,
    /// Nothing, above a raw backing file of so many sectors.
    Backing(u64),
    /// Every sector is written.
    Filled,
    /// Every sector is written, and an internal snapshot shares all of it. Made by `qemu-img`.
    Snapshot,
    /// Every cluster is compressed. Made by `qemu-img`.
    Compressed,
    /// So many sectors are written, and nothing behind them.
    Partly(u64),
    /// As `Partly`, with the data in an external file, which holds junk behind them.
    External(u64),
    /// As `Partly`, with the data in a raw external file.
    RawExternal(u64),
    /// As `Partly`, encrypted.
    Encrypted(u64),
    /// As `Partly`, authenticated with checksums.
    Checksummed(u64),
    /// As `Partly`, authenticated with a key.
    Sealed(u64),
    /// As `Backing`, authenticated with a key.
    SealedBacking(u64),
}

/// What kind of image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Sectors of the disk.
    pub size: u64,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// log2 of the refcount width.
    pub refcount_order: u32,
    pub version3: bool,
    /// With extended L2 entries: mapped by the subcluster.
    pub extended: bool,
    pub start: Start,
}

/// One case.
#[derive(Clone, PartialEq, Eq)]
pub struct Case {
    /// Decides about every order that is not given by the requests.
    pub seed: u64,
    pub shape: Shape,
    /// Requests at the same time.
    pub depth: usize,
    /// Bytes of L2 tables in memory; small ones evict all the time.
    pub cache: u64,
    /// Records that there is room for in a redo log, which outlives kills; none without a log.
    pub redo: u64,
    pub ops: Vec<Op>,
}

impl Start {
    /// The same for images that differ in how much they hold alone.
    pub fn kind(self) -> Self {
        match self {
            Self::Backing(_) => Self::Backing(0),
            Self::Partly(_) => Self::Partly(0),
            Self::External(_) => Self::External(0),
            Self::RawExternal(_) => Self::RawExternal(0),
            Self::Encrypted(_) => Self::Encrypted(0),
            Self::Checksummed(_) => Self::Checksummed(0),
            Self::Sealed(_) => Self::Sealed(0),
            Self::SealedBacking(_) => Self::SealedBacking(0),
            other => other,
        }
    }
}

impl Shape {
    pub fn cluster_sectors(&self) -> u64 {
        (1 << self.cluster_bits) / SECTOR
    }

    /// Sectors of the backing file, of images that have one.
    pub fn backing(&self) -> Option<u64> {
        match self.start {
            Start::Backing(sectors) | Start::SealedBacking(sectors) => Some(sectors),
            _ => None,
        }
    }

    /// Sectors of the image itself that are written at first.
    pub fn written(&self) -> u64 {
        match self.start {
            Start::Empty | Start::Backing(_) | Start::SealedBacking(_) => 0,
            Start::Filled | Start::Snapshot | Start::Compressed => self.size,
            Start::Partly(sectors)
            | Start::External(sectors)
            | Start::RawExternal(sectors)
            | Start::Encrypted(sectors)
            | Start::Checksummed(sectors)
            | Start::Sealed(sectors) => sectors.min(self.size),
        }
    }

    /// Whether the data lies in an external file.
    pub fn is_external(&self) -> bool {
        matches!(self.start, Start::External(_) | Start::RawExternal(_))
    }

    /// Whether guest data is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.start, Start::Encrypted(_))
    }

    /// Whether it is an authenticated image.
    pub fn is_authenticated(&self) -> bool {
        let Self { start, .. } = self;
        matches!(start, Start::Checksummed(_) | Start::Sealed(_) | Start::SealedBacking(_))
    }

    /// Whether nobody can tell guest data in its file.
    pub fn is_secret(&self) -> bool {
        let sealed = matches!(self.start, Start::Sealed(_) | Start::SealedBacking(_));
        sealed || self.is_encrypted()
    }

    /// The sectors that a discard of this range may change, on a disk of `size` sectors.
    pub fn whole_clusters(&self, at: u64, count: u64, size: u64) -> std::ops::Range<u64> {
        let cluster = self.cluster_sectors();
        let first = at.next_multiple_of(cluster);
        let end = at + count;
        let end = if end == size { end } else { end / cluster * cluster };
        first..end.max(first)
    }

    /// The sectors of all clusters that this range touches, on a disk of `size` sectors.
    pub fn touched_clusters(&self, at: u64, count: u64, size: u64) -> std::ops::Range<u64> {
        let cluster = self.cluster_sectors();
        at.min(size - 1) / cluster * cluster..(at + count).next_multiple_of(cluster).min(size)
    }

    /// Whether nobody may resize the image: in version 2, snapshots do not say how large the disk was.
    pub fn keeps_size(&self) -> bool {
        !self.version3 && self.start == Start::Snapshot
    }

    /// Version 2 knows one refcount width only, no external data and no extended entries, and narrow counts cannot count a
    /// snapshot. Clusters of 16 KiB are the smallest ones with subclusters, of a sector each.
    fn sound(mut self) -> Self {
        if self.extended {
            self.cluster_bits = 14 + u32::from(self.cluster_bits == 13);
        }
        if self.is_authenticated() {
            // Their clusters are at least that large, and 64 of them have a node.
            (self.extended, self.version3, self.refcount_order) = (false, true, 4);
            self.cluster_bits = self.cluster_bits.clamp(12, 13);
            self.size = if self.size == LARGE { SEVERAL_NODES } else { self.size };
        }
        self.version3 |= self.is_external() || self.extended;
        if !self.version3 {
            self.refcount_order = 4;
        }
        if self.start == Start::Snapshot {
            self.refcount_order = self.refcount_order.max(1);
        }
        self
    }
}

impl Op {
    /// Cuts the request to `len` sectors; says whether it was longer.
    pub fn shorten(&mut self, len: u64) -> bool {
        match self {
            Self::Write { count, .. }
            | Self::Zero { count, .. }
            | Self::Discard { count, .. }
            | Self::Compressed { count, .. }
            | Self::Read { count, .. } => {
                let longer = *count > len;
                *count = len.min(*count);
                longer
            }
            _ => false,
        }
    }

    /// The request moved and cut so that it lies inside a disk of `size` sectors.
    pub fn inside(self, size: u64) -> Self {
        let place = |at: u64, count: u64| (at % size, count.clamp(1, size - at % size));
        match self {
            Self::Write { at, count } => {
                let (at, count) = place(at, count);
                Self::Write { at, count }
            }
            Self::Zero { at, count, unmap } => {
                let (at, count) = place(at, count);
                Self::Zero { at, count, unmap }
            }
            Self::Discard { at, count } => {
                let (at, count) = place(at, count);
                Self::Discard { at, count }
            }
            Self::Compressed { at, count } => {
                let (at, count) = place(at, count);
                Self::Compressed { at, count }
            }
            Self::Read { at, count } => {
                let (at, count) = place(at, count);
                Self::Read { at, count }
            }
            _ => self,
        }
    }
}

/// Cases with many requests, every table growing and every cache overflowing: for what happens while the disk lives.
pub fn busy_case() -> impl Strategy<Value = Case> {
    let start = prop_oneof![
        2 => Just(Start::Empty),
        2 => (1u64..=1200).prop_map(Start::Backing),
        1 => Just(Start::Filled),
        1 => (0u64..=600).prop_map(Start::External),
        1 => (0u64..=600).prop_map(Start::RawExternal),
        1 => (0u64..=600).prop_map(Start::Encrypted),
        1 => (0u64..=600).prop_map(Start::Checksummed),
        1 => (0u64..=600).prop_map(Start::Sealed),
        1 => (0u64..=600).prop_map(Start::SealedBacking),
    ];
    // The largest disks have more tables than the smallest cache holds.
    let size = prop_oneof![8 => 1u64..=1200, 1 => 2000u64..=3000];
    let shape = (size, 9u32..=13, 0u32..=6, prop::bool::weighted(0.85), start);
    let cache = prop::sample::select(vec![0u64, 1 << 20]);
    let lengths = prop_oneof![8 => 1u64..=16, 4 => 1u64..=64, 2 => 1u64..=400, 1 => 1u64..=1500];
    any_case(shape, 0.1, 1..=32, cache, lengths.boxed(), (1u64..=4000).boxed(), 1..120)
}

/// Small cases on images of all kinds but authenticated ones, for what a power cut, a fault or a kill leaves.
pub fn small_case() -> impl Strategy<Value = Case> {
    let start = prop_oneof![
        3 => Just(Start::Empty),
        2 => prop::sample::select(vec![5u64, 12, 64]).prop_map(Start::Backing),
        3 => Just(Start::Filled),
        2 => Just(Start::Snapshot),
        1 => Just(Start::Compressed),
        1 => prop::sample::select(vec![0u64, 9, 40]).prop_map(Start::External),
        1 => prop::sample::select(vec![0u64, 9, 40]).prop_map(Start::RawExternal),
        1 => prop::sample::select(vec![0u64, 9, 40]).prop_map(Start::Encrypted),
    ];
    // Few sizes, because QEMU makes some of these images.
    let size = prop::sample::select(vec![16u64, 33, 57]);
    let bits = prop::sample::select(vec![9u32, 9, 10, 12]);
    let order = prop::sample::select(vec![4u32, 4, 6, 1]);
    let shape = (size, bits, order, prop::bool::weighted(0.9), start);
    let cache = prop::sample::select(vec![0u64, 1 << 20]);
    // With small clusters an L2 table maps 64 sectors.
    let sizes = prop_oneof![1u64..=40, 41u64..=150].boxed();
    // Clusters with subclusters are large: one such state costs as much as thirty others.
    any_case(shape, 0.01, 1..=6, cache, (1u64..=9).boxed(), sizes, 1..14)
}

/// Small cases on authenticated images, whose clusters and nodes are large: one such state costs as much as many others.
pub fn sealed_case() -> impl Strategy<Value = Case> {
    let start = prop_oneof![
        prop::sample::select(vec![0u64, 9, 600]).prop_map(Start::Checksummed),
        prop::sample::select(vec![0u64, 40]).prop_map(Start::Sealed),
        prop::sample::select(vec![5u64, 64, 600]).prop_map(Start::SealedBacking),
    ];
    let shape =
        (prop::sample::select(vec![16u64, 33, LARGE]), 12u32..=13, Just(4u32), Just(true), start);
    let cache = prop::sample::select(vec![0u64, 1 << 20]);
    let sizes = prop_oneof![1u64..=40, 41u64..=150, 500u64..=700].boxed();
    let lengths = prop_oneof![4 => 1u64..=20, 1 => 1u64..=200].boxed();
    any_case(shape, 0.0, 1..=6, cache, lengths, sizes, 1..14)
}

/// Small cases with a redo log, sometimes too small for one request.
pub fn redo_case() -> impl Strategy<Value = Case> {
    let redo = prop::sample::select(vec![1u64, 3, 8, 100]);
    (small_case(), redo).prop_map(|(case, redo)| Case { redo, ..case })
}

/// Cases on images of these shapes, of which the part `extended` has extended L2 entries.
fn any_case(
    shape: impl Strategy<Value = (u64, u32, u32, bool, Start)>,
    extended: f64,
    depth: std::ops::RangeInclusive<usize>,
    cache: impl Strategy<Value = u64>,
    lengths: BoxedStrategy<u64>,
    sizes: BoxedStrategy<u64>,
    count: std::ops::Range<usize>,
) -> impl Strategy<Value = Case> {
    let shape = (shape, prop::bool::weighted(extended)).prop_map(|(shape, extended)| {
        let (size, cluster_bits, refcount_order, version3, start) = shape;
        Shape { size, cluster_bits, refcount_order, version3, extended, start }.sound()
    });
    let ops = prop::collection::vec(any_op(lengths, sizes), count);
    (any::<u32>(), shape, depth, cache, ops).prop_map(|(seed, shape, depth, cache, ops)| Case {
        seed: seed.into(),
        shape,
        depth,
        cache,
        redo: 0,
        ops: inside(shape.size, ops),
    })
}

/// The requests, each inside the disk as large as it is then.
fn inside(mut size: u64, ops: Vec<Op>) -> Vec<Op> {
    let mut place = |op: Op| {
        if let Op::Resize { size: new } = op {
            size = new;
        }
        op.inside(size)
    };
    ops.into_iter().map(&mut place).collect()
}

fn any_op(lengths: BoxedStrategy<u64>, sizes: BoxedStrategy<u64>) -> impl Strategy<Value = Op> {
    // Few places and many lengths, so that requests meet.
    let range = (0u64..3000, lengths);
    prop_oneof![
        10 => range.clone().prop_map(|(at, count)| Op::Write { at, count }),
        3 => (range.clone(), any::<bool>())
            .prop_map(|((at, count), unmap)| Op::Zero { at, count, unmap }),
        3 => range.clone().prop_map(|(at, count)| Op::Discard { at, count }),
        3 => range.clone().prop_map(|(at, count)| Op::Compressed { at, count }),
        3 => range.prop_map(|(at, count)| Op::Read { at, count }),
        3 => Just(Op::Flush),
        2 => sizes.prop_map(|size| Op::Resize { size }),
        1 => Just(Op::Reopen),
        2 => Just(Op::Kill),
        2 => Just(Op::Recover),
    ]
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { at, count } => write!(f, "w{at}+{count}"),
            Self::Zero { at, count, unmap: false } => write!(f, "z{at}+{count}"),
            Self::Zero { at, count, unmap: true } => write!(f, "u{at}+{count}"),
            Self::Discard { at, count } => write!(f, "d{at}+{count}"),
            Self::Compressed { at, count } => write!(f, "c{at}+{count}"),
            Self::Read { at, count } => write!(f, "r{at}+{count}"),
            Self::Flush => write!(f, "flush"),
            Self::Resize { size } => write!(f, "s{size}"),
            Self::Reopen => write!(f, "reopen"),
            Self::Kill => write!(f, "kill"),
            Self::Recover => write!(f, "recover"),
        }
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "flush" => return Ok(Self::Flush),
            "reopen" => return Ok(Self::Reopen),
            "kill" => return Ok(Self::Kill),
            "recover" => return Ok(Self::Recover),
            _ => {}
        }
        let wrong = || format!("no request is written '{text}'");
        let (verb, range) = text.split_at_checked(1).ok_or_else(wrong)?;
        if verb == "s" {
            return Ok(Self::Resize { size: number(range)? });
        }
        let (at, count) = range.split_once('+').ok_or_else(wrong)?;
        let (at, count) = (number(at)?, number(count)?);
        Ok(match verb {
            "w" => Self::Write { at, count },
            "z" => Self::Zero { at, count, unmap: false },
            "u" => Self::Zero { at, count, unmap: true },
            "d" => Self::Discard { at, count },
            "c" => Self::Compressed { at, count },
            "r" => Self::Read { at, count },
            _ => return Err(wrong()),
        })
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "empty"),
            Self::Backing(sectors) => write!(f, "backing:{sectors}"),
            Self::Filled => write!(f, "filled"),
            Self::Snapshot => write!(f, "snapshot"),
            Self::Compressed => write!(f, "compressed"),
            Self::Partly(sectors) => write!(f, "partly:{sectors}"),
            Self::External(sectors) => write!(f, "external:{sectors}"),
            Self::RawExternal(sectors) => write!(f, "raw-external:{sectors}"),
            Self::Encrypted(sectors) => write!(f, "encrypted:{sectors}"),
            Self::Checksummed(sectors) => write!(f, "checksummed:{sectors}"),
            Self::Sealed(sectors) => write!(f, "sealed:{sectors}"),
            Self::SealedBacking(sectors) => write!(f, "sealed-backing:{sectors}"),
        }
    }
}

impl FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "empty" => Self::Empty,
            "filled" => Self::Filled,
            "snapshot" => Self::Snapshot,
            "compressed" => Self::Compressed,
            _ => match text.split_once(':') {
                Some(("backing", sectors)) => Self::Backing(number(sectors)?),
                Some(("partly", sectors)) => Self::Partly(number(sectors)?),
                Some(("external", sectors)) => Self::External(number(sectors)?),
                Some(("raw-external", sectors)) => Self::RawExternal(number(sectors)?),
                Some(("encrypted", sectors)) => Self::Encrypted(number(sectors)?),
                Some(("checksummed", sectors)) => Self::Checksummed(number(sectors)?),
                Some(("sealed", sectors)) => Self::Sealed(number(sectors)?),
                Some(("sealed-backing", sectors)) => Self::SealedBacking(number(sectors)?),
                _ => return Err(format!("no start is called '{text}'")),
            },
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { size, cluster_bits, refcount_order, version3, extended, start } = self.shape;
        let version = if version3 { 3 } else { 2 };
        let entries = if extended { " entries=extended" } else { "" };
        let Self { seed, depth, cache, redo, .. } = self;
        let redo = if *redo > 0 { format!(" redo={redo}") } else { String::new() };
        write!(f, "seed={seed} start={start} size={size} cluster={cluster_bits} ")?;
        write!(
            f,
            "refcount={refcount_order} version={version}{entries} depth={depth} cache={cache}{redo}"
        )?;
        self.ops.iter().try_for_each(|op| write!(f, " {op}"))
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut case = Self::plain(Start::Empty);
        for word in text.split_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                case.ops.push(word.parse()?);
                continue;
            };
            match name {
                "seed" => case.seed = number(value)?,
                "start" => case.shape.start = value.parse()?,
                "size" => case.shape.size = number(value)?,
                "cluster" => case.shape.cluster_bits = number(value)? as u32,
                "refcount" => case.shape.refcount_order = number(value)? as u32,
                "version" => case.shape.version3 = value == "3",
                "entries" => case.shape.extended = value == "extended",
                "depth" => case.depth = number(value)? as usize,
                "cache" => case.cache = number(value)?,
                "redo" => case.redo = number(value)?,
                _ => return Err(format!("a case has no '{name}'")),
            }
        }
        Ok(case)
    }
}

impl Case {
    /// A small case without requests.
    pub fn plain(start: Start) -> Self {
        let shape = Shape {
            size: 16,
            cluster_bits: 10,
            refcount_order: 4,
            version3: true,
            extended: false,
            start,
        }
        .sound();
        Self { seed: 1, shape, depth: 1, cache: 1 << 20, redo: 0, ops: Vec::new() }
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("'{text}' is not a number"))
}

#[test]
fn a_case_is_written_and_read_back() {
    let text = "seed=9 start=backing:5 size=33 cluster=14 refcount=1 version=3 entries=extended \
                depth=4 cache=0 redo=3 w1+2 z0+4 u4+4 d8+8 c0+2 r0+16 flush s40 reopen kill recover";
    let case: Case = text.parse().expect("a case");
    assert_eq!(case.to_string(), text);
    assert_eq!(case.ops.len(), 11);
}
