//! Direct I/O on blocks that are larger than what the engine writes: neighbours must not bring old bytes back.

use qcow::addr::HostOffset;
use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
use qcow::disk::{Buffer, Disk, Payload};
use qcow::exec::{try_join_all, yield_now};
use qcow::foreign::raw::{NewPart, Raw};

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

#[test]
fn a_raw_disk_that_ends_inside_a_block_keeps_its_length() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    let disk = UringDisk::open(&path, Access::Create, CacheMode::PageCache).expect("create");
    block_on(async {
        disk.set_len(2 * BLOCK + 3 * SECTOR).await.expect("set the length");
        let raw = Raw::new(disk.with_alignment(BLOCK), &path, true).expect("open");
        let sector = Buffer::from_bytes(&[7; SECTOR as usize]).payload();
        raw.write(2 * BLOCK, &sector).await.expect("write");
        raw.write(2 * BLOCK + 2 * SECTOR, &sector).await.expect("write the last sector");
        raw.write_zeroes(2 * BLOCK + SECTOR, SECTOR, false).await.expect("zero");
        assert_eq!(raw.disk().len().expect("length"), 2 * BLOCK + 3 * SECTOR);
        raw.resize(3 * BLOCK + SECTOR, NewPart::Hole).await.expect("grow");
        raw.write(3 * BLOCK, &sector).await.expect("write behind the old end");
        assert_eq!(raw.disk().len().expect("length"), 3 * BLOCK + SECTOR);
    });
    let bytes = std::fs::read(&path).expect("read");
    let sectors: Vec<u8> = bytes.iter().copied().step_by(SECTOR as usize).collect();
    let mut expected = vec![0; 25];
    for sector in [16, 18, 24] {
        expected[sector] = 7;
    }
    assert_eq!(sectors, expected);
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
