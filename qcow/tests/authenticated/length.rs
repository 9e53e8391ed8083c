//! Files that are longer than what they hold, as sparse ones can be at no cost: they cost little memory, or are refused.

use qcow::ErrorKind;
use qcow::addr::HostOffset;
use qcow::disk::sim::World;
use qcow::disk::{Buffer, Disk as _};
use qcow::limits::SEALED_FILE_BYTES_MAX;

use crate::oracle::read_all;
use crate::shape::Files;
use crate::template::Template;

#[test]
fn a_long_file_is_refused_and_one_that_can_be_is_read() {
    // Some of them are closed, and some are not.
    for seed in 0..4 {
        let template = Template::make(seed);
        let state = template.state_at(template.root.generation);
        let max = SEALED_FILE_BYTES_MAX;
        for len in [max, max + 1, 1 << 56, (1 << 63) - 512] {
            let world = World::new(seed);
            let files = Files::new(&world, template.file.clone(), template.backing.clone());
            world.block_on(async {
                files.image.set_len(len).await.unwrap();
                for writable in [false, true] {
                    let opened = files.open(writable, None).await;
                    if len > max {
                        let refused = opened.unwrap_err();
                        assert_eq!(refused.kind(), ErrorKind::Limit, "{len}: {refused}");
                    } else {
                        let areas = template.shape.areas();
                        let unread = read_all(&opened.unwrap(), &state.disk, &areas).await;
                        assert_eq!(unread, Ok(0));
                    }
                }
            });
        }
    }
}

#[test]
fn what_lies_behind_the_end_is_as_if_it_were_not_there() {
    for seed in 0..12 {
        let template = Template::make(seed);
        let state = template.state_at(template.root.generation);
        let world = World::new(seed);
        let files = Files::new(&world, template.file.clone(), template.backing.clone());
        world.block_on(async {
            let rubbish = Buffer::from_bytes(&[0xa5; 100_000]).payload();
            let end = HostOffset::new(template.bytes.len() as u64 + 5);
            files.image.write(end, &rubbish).await.unwrap();
            let image = files.open(true, None).await.unwrap();
            let unread = read_all(&image, &state.disk, &template.shape.areas()).await.unwrap();
            let checked = image.check_authenticated(true, &mut |_| {}).await.unwrap();
            assert_eq!((unread, checked.corruptions), (0, 0));
        });
    }
}
