//! `truncate`: changes the size of the disk.

use qcow::engine::{Format, Resize};
use qcow::limits::SECTOR_BYTES;

use super::command::number;
use super::definition::Command;
use super::session::{Done, Failed, Flow, Session};
use super::transfer::{open_image, wrong};
use crate::failure::tell;
use crate::new_image;

/// `truncate`
pub fn truncate(session: &mut Session, command: &Command, words: &[&str]) -> Done {
    let arguments = command.arguments(words, "m:")?;
    let mode = arguments.value('m').unwrap_or("off");
    let preallocation = new_image::preallocation_called(mode)
        .ok_or_else(|| told(&format!("Invalid preallocation mode '{mode}'")))?;
    let [size] = arguments.operands.as_slice() else { return Err(command.tell_usage()) };
    let size = number(size).map_err(wrong)?;
    let image = open_image(session)?.image.clone();
    if image.format() == Format::Qcow2 && !size.is_multiple_of(SECTOR_BYTES) {
        return Err(told("The new size must be a multiple of 512"));
    }
    let resized = session.wait(image.resize_as(size, &Resize { shrink: true, preallocation }));
    resized.map(|()| Flow::Continue).map_err(|e| told(e.message()))
}

fn told(message: &str) -> Failed {
    tell(message);
    Failed
}
