//! The host fails every operation of a compaction in turn: the error says what failed, every layer shows what it showed, and
//! the next compaction is as good as any.

use qcow::disk::sim::{Fault, World};
use qcow::error::ErrorKind;

use crate::images::Made;
use crate::layers::{Layers, look};
use crate::{compact_image, each_seed};

const IMAGES: u64 = 12;

#[test]
fn a_fault_is_told_and_harms_nothing() {
    let mut failed = 0;
    each_seed(IMAGES, "a_fault_is_told_and_harms_nothing", |seed| {
        let made = Made::small(seed);
        println!("{made:?}");
        for fault in [Fault::Io, Fault::NoSpace, Fault::Short] {
            for operation in 0.. {
                match befall(&made, seed, operation, fault) {
                    Some(is_told) => failed += u64::from(is_told),
                    None => break,
                }
            }
        }
    });
    println!("{failed} failures");
    assert!(failed > 50 * IMAGES);
}

/// Whether the fault was told; `None` where there are not so many operations.
fn befall(made: &Made, seed: u64, operation: u64, fault: Fault) -> Option<bool> {
    let world = World::new(seed);
    let disk = world.add_content(made.content.clone());
    world.inject(operation, fault);
    let compacted = world.block_on(compact_image(&disk, seed));
    if world.operations() <= operation {
        return None;
    }
    if let Err(error) = &compacted {
        let is_hosts = matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace);
        assert!(is_hosts, "operation {operation}, {fault:?}: {error}");
        assert!(error.to_string().contains("image"), "{error}");
    }
    world.block_on(async {
        let summary = look(&disk).await;
        assert_eq!((summary.corruptions, summary.check_errors), (0, 0), "{summary:?}");
        assert!(Layers::read(&disk).await == made.layers, "operation {operation}, {fault:?}");
        compact_image(&disk, seed).await.unwrap();
        assert!(Layers::read(&disk).await == made.layers, "operation {operation}, {fault:?}");
        assert!(look(&disk).await.is_clean());
    });
    Some(compacted.is_err())
}
