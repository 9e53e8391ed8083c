//! Carrying out one request on the image.

use qcow::{ErrorKind, Result};

use crate::device::Device;
use crate::image::DiskImage;
use crate::request::{Done, Operation, Range, Request, Status};

/// Carries out `request`. Errors become its status and a line in the log.
pub async fn execute(image: &DiskImage, device: &Device, request: Request) -> Done {
    let Request { head, status, operation } = request;
    let answer_len = operation.answer_len();
    let result = perform(image, device, operation).await;
    let (answer, written) = match &result {
        Ok(()) => (Status::Ok, answer_len + 1),
        Err(error) if error.kind() == ErrorKind::Unsupported => (Status::Unsupported, 1),
        Err(_) => (Status::IoError, 1),
    };
    if let Err(error) = result {
        device.report(format_args!("request failed: {error}"));
        device.note_health(image.health());
    }
    status.copy_from(0, &[answer.byte()]);
    Done { head, written }
}

async fn perform(image: &DiskImage, device: &Device, operation: Operation) -> Result<()> {
    match operation {
        Operation::Read { at, into } => return image.read(at, &into).await,
        Operation::Write { at, from } => image.write(at, &from).await?,
        // What is rare lies on the heap: a queue moves the future of every request into its slot, and it is as large as the
        // largest of these.
        rare => return Box::pin(perform_rare(image, device, rare)).await,
    }
    settle(image, device).await
}

async fn perform_rare(image: &DiskImage, device: &Device, operation: Operation) -> Result<()> {
    match operation {
        Operation::Flush => return image.flush().await,
        Operation::GetId { into } => {
            into.copy_from(0, &device.serial()[..into.len() as usize]);
            return Ok(());
        }
        Operation::Discard(ranges) => {
            for Range { at, len, .. } in ranges {
                image.discard(at, len).await?;
            }
        }
        Operation::WriteZeroes(ranges) => {
            for Range { at, len, unmap } in ranges {
                image.write_zeroes(at, len, unmap).await?;
            }
        }
        Operation::Read { .. } | Operation::Write { .. } => {
            unreachable!("{operation:?} is not rare")
        }
    }
    settle(image, device).await
}

/// Without a write-back cache a change is durable when it is acknowledged.
async fn settle(image: &DiskImage, device: &Device) -> Result<()> {
    if device.is_write_back() { Ok(()) } else { Box::pin(image.flush()).await }
}
