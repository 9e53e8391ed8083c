//! Authenticated images whose files are changed by accident or on purpose: 100,000 random corruptions of random images, all of
//! them noticed. What is read is what was there, or the read fails; a check with all data finds each change that counts; a file
//! that is put back to an older one shows what it held then, and its root says that it is an older one.
//!
//! `AUTHENTICATED_SEED=N cargo test -p qcow --test authenticated` repeats the corruptions of one image; `SOAK_FACTOR=N` makes
//! it N times as many, and `SIMULATION_SHARE=N` the N-th part.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use qcow::disk::Buffer;
use qcow::disk::sim::{Random, World};

use corruption::Corruption;
use oracle::{Seen, hold_against_check, look, read_all};
use shape::Files;
use state::SECTOR;
use template::Template;

mod afterwards;
mod corruption;
mod kill;
mod length;
mod oracle;
mod reach;
mod shape;
mod state;
mod template;

/// Corruptions of each image.
const PER_IMAGE: u64 = 250;
/// Images: 100,000 corruptions.
const IMAGES: u64 = 400;

#[test]
fn no_corruption_is_read() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = number("AUTHENTICATED_SEED") {
        return println!("{:?}", corrupt_one_image(seed).expect("nothing goes unnoticed"));
    }
    let share = number("SIMULATION_SHARE").unwrap_or(1).max(1);
    let images = (IMAGES * number("SOAK_FACTOR").unwrap_or(1) / share).max(8);
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        let mut seen = Seen::default();
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= images {
                break;
            }
            let done = catch_unwind(AssertUnwindSafe(|| corrupt_one_image(seed)));
            match done.unwrap_or_else(|_| Err("a panic, see above".to_owned())) {
                Ok(more) => seen = seen.and(more),
                Err(message) => {
                    stop.store(true, Ordering::Relaxed);
                    panic!(
                        "{message}\nrepeat with: AUTHENTICATED_SEED={seed} cargo test -p qcow --test authenticated"
                    );
                }
            }
        }
        seen
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seen = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = running.into_iter().map(|thread| thread.join().expect("see above"));
        ended.fold(Seen::default(), Seen::and)
    });
    println!("{} corruptions of {images} images: {seen:?}", images * PER_IMAGE);
    let each = [seen.refused, seen.unread, seen.rolled_back, seen.harmless];
    assert!(each.iter().all(|count| *count > images), "hardly tested: {seen:?}");
}

fn corrupt_one_image(seed: u64) -> Result<Seen, String> {
    let template = Template::make(seed);
    let mut random = Random::new(seed ^ 0xc044);
    let mut all = Seen::default();
    for _ in 0..PER_IMAGE {
        let corruption = Corruption::draw(&template, &mut random);
        let seen = look(&template, &corruption, &mut random);
        all = all.and(seen.map_err(|e| format!("{e}\n{:?}: {corruption}", template.shape))?);
    }
    Ok(all)
}

/// The oracle has to refuse what is wrong: a change that no check finds, other data, and a root that passes for a later one.
#[test]
fn what_is_wrong_is_refused() {
    for seed in 0..12 {
        let mut template = Template::make(seed);
        let mut random = Random::new(seed);
        let none = Corruption::none();
        look(&template, &none, &mut random).expect("an image with nothing wrong");

        let world = World::new(seed);
        let files = Files::new(&world, template.file.clone(), template.backing.clone());
        world.block_on(async {
            let image = files.open(true, None).await.expect("open");
            if let Some(place) = template.reach.places.first() {
                let claimed = Corruption::flip(&template, place.start);
                let mut seen = Seen::default();
                let held = hold_against_check(&template, &claimed, &image, &mut seen).await;
                assert!(held.is_err_and(|message| message.contains("finds nothing")));
            }
            let other = Buffer::from_bytes(&[0x5a; SECTOR as usize]).payload();
            image.write(0, &other).await.expect("write");
            let disk = &template.state_at(template.root.generation).disk;
            let read = read_all(&image, disk, &template.shape.areas()).await;
            assert!(read.is_err_and(|message| message.starts_with("sector 0 reads as [5a")));
            image.flush().await.expect("flush");
        });
        template.file = files.image.content();
        let looked = look(&template, &none, &mut random);
        assert!(looked.is_err_and(|message| message.contains("passes for a later one")));
    }
}
