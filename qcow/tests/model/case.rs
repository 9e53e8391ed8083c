//! What one case does: an image and a list of requests.

use proptest::prelude::*;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// One request, in sectors.
#[derive(Clone, Copy, Debug)]
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
    Read {
        at: u64,
        count: u64,
    },
    Flush,
    /// Wait for everything under way, close, open again.
    Reopen,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Decides the order in which the disk completes.
    pub seed: u64,
    /// Sectors of the disk.
    pub size: u64,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// log2 of the refcount width.
    pub refcount_order: u32,
    pub version3: bool,
    /// Sectors of the backing file; none where there is no backing file.
    pub backing: Option<u64>,
    /// Requests at the same time.
    pub depth: usize,
    /// Bytes of L2 tables in memory; small ones evict all the time.
    pub cache: u64,
    pub ops: Vec<Op>,
}

impl Case {
    /// Some case of medium size.
    pub fn example(seed: u64) -> Self {
        let ops = (0..60).map(|i| match i % 7 {
            0..4 => Op::Write { at: i * 37 % 200, count: 1 + i % 19 },
            4 => Op::Zero { at: i * 11 % 180, count: 20, unmap: i % 2 == 0 },
            5 => Op::Discard { at: i * 5 % 150, count: 50 },
            _ => Op::Flush,
        });
        Self {
            seed,
            size: 256,
            cluster_bits: 10,
            refcount_order: 4,
            version3: true,
            backing: Some(100),
            depth: 16,
            cache: 1 << 20,
            ops: ops.collect(),
        }
    }
}

/// Cases small enough to run by the thousand, with every table growing and every cache overflowing.
pub fn any_case() -> impl Strategy<Value = Case> {
    let image = (1u64..=1200, 9u32..=13, 0u32..=6, prop::bool::weighted(0.85));
    let backing = prop::option::of(1u64..=1200);
    (any::<u64>(), image, backing, 1usize..=32, prop::sample::select(vec![0u64, 1 << 20]))
        .prop_flat_map(
            |(seed, (size, cluster_bits, refcount_order, version3), backing, depth, cache)| {
                prop::collection::vec(any_op(size), 1..120).prop_map(move |ops| Case {
                    seed,
                    size,
                    cluster_bits,
                    refcount_order: if version3 { refcount_order } else { 4 },
                    version3,
                    backing,
                    depth,
                    cache,
                    ops,
                })
            },
        )
}

fn any_op(size: u64) -> impl Strategy<Value = Op> {
    // Few places and many lengths, so that requests meet.
    let range = (0..size, prop_oneof![4 => 1u64..=16, 2 => 1u64..=64, 1 => 1u64..=400])
        .prop_map(move |(at, count)| (at, count.min(size - at)));
    prop_oneof![
        10 => range.clone().prop_map(|(at, count)| Op::Write { at, count }),
        3 => (range.clone(), any::<bool>())
            .prop_map(|((at, count), unmap)| Op::Zero { at, count, unmap }),
        3 => range.clone().prop_map(|(at, count)| Op::Discard { at, count }),
        5 => range.prop_map(|(at, count)| Op::Read { at, count }),
        2 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}
