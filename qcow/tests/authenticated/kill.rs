//! A process that is killed, and a guest that lives on: whoever serves it next is told by the memory that the guest's monitor
//! keeps that something may be lost, whatever has become of the image meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow::disk::sim::{Content, Random, SimDisk, World};
use qcow::disk::{Buffer, Payload};
use qcow::engine::{FoundRedo, Image, create};
use qcow::meta::redo::SharedWords;
use qcow::{ErrorKind, Result};

use crate::shape::{Files, Shape};

/// Memory that outlives who uses it.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<[AtomicU64; 8]>);

impl SharedWords for Memory {
    fn words(&self) -> &[AtomicU64] {
        &*self.0
    }
}

async fn image(world: &World) -> Files {
    let shape = Shape { has_key: false, backing: None, ..Shape::draw(&mut Random::new(1)) };
    let files = Files::new(world, Content::default(), None);
    create(&files.image, &shape.create_options()).await.expect("create");
    files
}

async fn attach(image: &Image<SimDisk>, memory: &Memory, found: FoundRedo) -> Result<()> {
    image.attach_redo_log(Arc::new(memory.clone()), found).await.map(drop)
}

/// A session that is killed after a write.
async fn killed(files: &Files, memory: &Memory) {
    let image = files.open(true, None).await.expect("open");
    attach(&image, memory, FoundRedo::Replay).await.expect("attach");
    image.write(0, &sector()).await.expect("write");
}

fn sector() -> Payload {
    Buffer::from_bytes(&[1; 512]).payload()
}

#[test]
fn a_kill_is_told_to_the_guest_whoever_comes_next() {
    let world = World::new(1);
    world.block_on(async {
        let (files, memory) = (image(&world).await, Memory::default());
        killed(&files, &memory).await;
        // Also after others, who have closed the image.
        for _ in 0..3 {
            let image = files.open(true, None).await.unwrap();
            let refused = attach(&image, &memory, FoundRedo::Replay).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Stale, "{refused}");
            image.write(512, &sector()).await.unwrap();
            image.close().await.unwrap();
        }
        // A guest that starts anew goes on with it.
        let image = files.open(true, None).await.unwrap();
        attach(&image, &memory, FoundRedo::Discard).await.unwrap();
        attach(&image, &memory, FoundRedo::Replay).await.expect("it is this session's own");
    });
}

#[test]
fn after_a_close_the_guest_goes_on() {
    let world = World::new(1);
    world.block_on(async {
        let (files, memory) = (image(&world).await, Memory::default());
        for _ in 0..3 {
            let image = files.open(true, None).await.unwrap();
            attach(&image, &memory, FoundRedo::Replay).await.unwrap();
            image.write(0, &sector()).await.unwrap();
            attach(&image, &memory, FoundRedo::Replay).await.unwrap();
            image.close().await.unwrap();
        }
        killed(&files, &memory).await;
        let image = files.open(true, None).await.unwrap();
        assert!(attach(&image, &memory, FoundRedo::Replay).await.is_err());
    });
}

#[test]
fn memory_of_something_else_is_refused() {
    let world = World::new(1);
    world.block_on(async {
        let files = image(&world).await;
        let image = files.open(true, None).await.unwrap();
        let memory = Memory::default();
        memory.0[0].store(7, Ordering::Relaxed);
        let refused = attach(&image, &memory, FoundRedo::Replay).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Stale);
        let short: Box<[AtomicU64]> = Box::new([AtomicU64::new(0)]);
        let refused = image.attach_redo_log(Arc::new(short), FoundRedo::Replay).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
        let reading = files.open(false, None).await.unwrap();
        let attached = attach(&reading, &memory, FoundRedo::Replay).await;
        attached.expect("who only reads loses nothing");
    });
}
