//! Power cuts while an image is being created: afterwards there is a whole image, or none.

use qcow::disk::sim::{Random, World};
use qcow::engine::create;

use crate::case::{Case, Shape, Start};
use crate::history::History;
use crate::recover::recover;
use crate::start::{Files, options};

/// States that are looked at of each moment.
const STATES_PER_MOMENT: u64 = 60;

/// Cuts the power at every event of the creation of an image; how many states were looked at, and how many of them were
/// images.
pub fn creation(shape: &Shape) -> (u64, u64) {
    let world = World::new(1);
    let disk = world.add_file(&[]);
    let (mut states, mut images, mut random) = (0, 0, Random::new(2));
    let mut look = || {
        let cut = disk.power_cut();
        for _ in 0..STATES_PER_MOMENT.min(cut.count()) {
            let image = cut.content(&cut.sample(&mut random));
            let mut magic = [0; 4];
            image.read(0, &mut magic);
            states += 1;
            if magic == *b"QFI\xfb" {
                images += 1;
                let empty = History::new(shape.size, |_| 0);
                let allowed = |values: &[u64]| empty.check_survivors(values);
                let files = Files { image, backing: None, data: None };
                recover(shape, files, states, &allowed, |_, _| {});
            }
        }
    };
    let created = world.run(async { create(&disk, &options(shape)).await }, &mut look);
    created.expect("nothing hangs").expect("create");
    look();
    (states, images)
}

#[test]
fn a_new_image_is_whole_or_not_there() {
    for (cluster_bits, refcount_order) in [(9, 4), (9, 6), (12, 0), (16, 4)] {
        let shape = Case::plain(Start::Empty).shape;
        let (states, images) = creation(&Shape { cluster_bits, refcount_order, ..shape });
        assert!(images > 0 && images < states, "{images} images in {states} states");
    }
}
