//! Many threads, one image: each drives its own ring, as the queues of a daemon do.
//!
//! Every thread writes sectors of its own, spread over clusters that it shares with all others, while others zero, discard
//! and flush; afterwards every sector holds what its owner wrote last, and QEMU calls the image clean.

use std::path::Path;
use std::process::Command;
use std::sync::Barrier;

use qcow::disk::sim::Random;
use qcow::disk::uring::{CacheMode, UringDisk, block_on};
use qcow::disk::{Buffer, Disk};
use qcow::engine::{CreateOptions, Format, Image, OpenOptions, create};
use qcow::exec::SlotPool;
use qcow::gate::{BackingPolicy, HostGate};

const THREADS: u64 = 4;
const SECTORS: u64 = 4096;
const WRITES: u64 = 3000;
const DEPTH: usize = 16;

#[test]
fn threads_share_clusters_and_lose_nothing() {
    for cluster_bits in [9, 12, 16] {
        let seed = std::env::var("THREADS_SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or(u64::from(cluster_bits));
        println!("repeat with: THREADS_SEED={seed} cargo test -p qcow --test threads");
        run(cluster_bits, seed);
    }
}

fn run(cluster_bits: u32, seed: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image.qcow2");
    make_image(&path, cluster_bits);
    let image = block_on(open(&path));
    let start = Barrier::new(THREADS as usize);
    let expected: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (image, start) = (image.clone(), &start);
                scope.spawn(move || {
                    start.wait();
                    block_on(work(&image, thread, Random::new(seed << 8 | thread)))
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().expect("a worker")).collect()
    });
    block_on(async {
        verify(&image, &expected).await;
        image.close().await.expect("close");
        drop(image);
        verify(&open(&path).await, &expected).await;
    });
    let check = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output();
    let check = check.expect("qemu-img is installed");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

fn make_image(path: &Path, cluster_bits: u32) {
    use qcow::disk::uring::Access;
    let disk = UringDisk::open(path, Access::Create, CacheMode::PageCache).expect("create");
    let options = CreateOptions { size: SECTORS * 512, cluster_bits, ..CreateOptions::default() };
    block_on(create(&disk, &options)).expect("create");
}

async fn open(path: &Path) -> Image<UringDisk> {
    let gate =
        HostGate { cache: CacheMode::PageCache, shared: false, backing: BackingPolicy::Deny };
    let options =
        OpenOptions { writable: true, format: Some(Format::Qcow2), ..OpenOptions::default() };
    Image::open(&gate, path, &options).await.expect("open")
}

/// Writes to the sectors of `thread`, every `THREADS`th; what they hold in the end.
async fn work<D: Disk>(image: &Image<D>, thread: u64, mut random: Random) -> Vec<u64> {
    let mut last = vec![0; (SECTORS / THREADS) as usize];
    let mut busy: Vec<u64> = Vec::new();
    let mut pool = SlotPool::new(DEPTH);
    for stamp in 1..=WRITES {
        let index = random.below(SECTORS / THREADS);
        let kind = random.below(20);
        // A sector has one request at a time, so that its last one decides.
        while pool.is_full() || busy.contains(&index) {
            let done: u64 = std::future::poll_fn(|context| pool.poll_next(context)).await;
            busy.retain(|&b| b != done);
        }
        busy.push(index);
        last[index as usize] = if kind == 0 { 0 } else { stamp };
        let sector = index * THREADS + thread;
        let done = pool.insert(async move {
            match kind {
                0 => image.write_zeroes(sector * 512, 512, true).await.expect("zero"),
                1 => {
                    image.write(sector * 512, &stamped(stamp)).await.expect("write");
                    image.flush().await.expect("flush");
                }
                _ => image.write(sector * 512, &stamped(stamp)).await.expect("write"),
            }
            index
        });
        busy.retain(|&b| Some(b) != done);
    }
    while !pool.is_empty() {
        std::future::poll_fn(|context| pool.poll_next(context)).await;
    }
    last
}

fn stamped(stamp: u64) -> qcow::disk::Payload {
    Buffer::from_bytes(&stamp.to_le_bytes().repeat(64)).payload()
}

async fn verify<D: Disk>(image: &Image<D>, expected: &[Vec<u64>]) {
    let buffer = Buffer::zeroed((SECTORS * 512) as usize);
    image.read(0, &buffer.payload()).await.expect("read");
    for (sector, bytes) in buffer.to_vec().chunks(512).enumerate() {
        let (thread, index) = (sector % THREADS as usize, sector / THREADS as usize);
        let stamp = expected[thread][index].to_le_bytes();
        assert!(bytes.chunks(8).all(|word| word == stamp), "sector {sector}");
    }
}
