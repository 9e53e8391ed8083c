//! Direct I/O on blocks that are larger than what the engine writes: neighbours must not bring old bytes back.

use qcow::addr::HostOffset;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::disk::{Buffer, Disk, Payload};
use qcow::exec::{try_join_all, yield_now};

const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;
const ROUNDS: u64 = 300;

#[test]
fn sectors_of_one_block_are_written_and_zeroed_at_the_same_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    let disk = UringDisk::open(&path, Access::Create, CacheMode::PageCache).expect("create");
    let disk = disk.with_alignment(BLOCK);
    for round in 0..ROUNDS {
        block_on(async {
            let all = Buffer::from_bytes(&[0xee; 2 * BLOCK as usize]);
            disk.write(HostOffset::new(0), &all.payload()).await.expect("write");
            let changes = (0..2 * BLOCK / SECTOR).map(|sector| change(&disk, sector, round));
            try_join_all(16, changes).await.expect("changes");
            disk.read(HostOffset::new(0), &all.payload()).await.expect("read");
            for (sector, bytes) in all.to_vec().chunks(SECTOR as usize).enumerate() {
                let expected = expected(sector as u64);
                assert!(bytes.iter().all(|&b| b == expected), "round {round}: sector {sector}");
            }
        });
    }
}

/// Zeroes every third sector, writes to the others.
async fn change(disk: &UringDisk, sector: u64, round: u64) -> std::io::Result<()> {
    for _ in 0..(sector * round) % 3 {
        yield_now().await;
    }
    let at = HostOffset::new(sector * SECTOR);
    match expected(sector) {
        0 => disk.write_zeroes(at, SECTOR).await,
        byte => {
            let bytes: Payload = Buffer::from_bytes(&[byte; SECTOR as usize]).payload();
            disk.write(at, &bytes).await
        }
    }
}

fn expected(sector: u64) -> u8 {
    if sector.is_multiple_of(3) { 0 } else { sector as u8 }
}
