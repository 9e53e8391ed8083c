//! Commands that ask: `length`, `info`, `map`, `alloc`.

use qcow::engine::Format;

use super::command::number;
use super::definition::Command;
use super::open::OpenImage;
use super::report::size;
use super::session::{Done, Failed, Flow, Session};
use crate::failure::tell;
use crate::image::{HostImage, Opening};
use crate::info;
use crate::output::say;
use crate::source::Source;

/// Smallest amount that `alloc` asks for.
const SECTOR_LEN: u64 = 512;

/// `length`
pub fn length(session: &mut Session, _: &Command, _: &[&str]) -> Done {
    let open = session.current().ok_or(Failed)?;
    say!("{}", size(open.image.virtual_size() as f64));
    Ok(Flow::Continue)
}

/// `info`
pub fn info(session: &mut Session, _: &Command, _: &[&str]) -> Done {
    let open = session.current().ok_or(Failed)?;
    say!("format name: {}", open.image.format());
    let cluster_size = open.image.cluster_size().unwrap_or(0);
    say!("cluster size: {}", size(cluster_size as f64));
    say!("vm state offset: {}", size(vm_state_offset(&open.image) as f64));
    if open.image.format() != Format::Raw {
        print_format_specific(open)?;
    }
    Ok(Flow::Continue)
}

fn print_format_specific(open: &OpenImage) -> Done<()> {
    // The lock is ours already, so the header is read past it.
    let opening = Opening { shared: true, ..Opening::default() };
    let source = Source { format: Some(open.image.format()), ..open.source.clone() };
    let (_, image) = info::describe::describe(&source, &opening).map_err(|reason| {
        tell(&reason);
        Failed
    })?;
    if let Some(header) = image.qcow2() {
        info::format_specific(header, image.info.luks.as_ref(), &image.bitmaps)
            .iter()
            .for_each(|line| say!("{line}"));
    }
    if let Some(header) = image.luks() {
        info::luks_specific(header).iter().for_each(|line| say!("{line}"));
    }
    Ok(())
}

/// Where the saved state of a virtual machine would lie in the image's address space: behind the last L2 table of the disk.
fn vm_state_offset(image: &HostImage) -> u64 {
    let Some(cluster_size) = image.cluster_size() else { return 0 };
    let table_span = cluster_size * (cluster_size / 8);
    image.virtual_size().div_ceil(table_span).saturating_mul(table_span)
}

/// `map`
pub fn map(session: &mut Session, _: &Command, _: &[&str]) -> Done {
    let image = session.current().ok_or(Failed)?.image.clone();
    let end = image.virtual_size();
    let mut at = 0;
    while at < end {
        let (allocated, len) = allocated_run(session, &image, at, end)?;
        let what = if allocated { "    allocated" } else { "not allocated" };
        let (len_text, at_text) = (size(len as f64), size(at as f64));
        say!("{len_text} ({len:#x}) bytes {what} at offset {at_text} ({at:#x})");
        at += len;
    }
    Ok(Flow::Continue)
}

/// `alloc offset [count]`
pub fn alloc(session: &mut Session, _: &Command, words: &[&str]) -> Done {
    let parse = |text: &&str| {
        number(text).map_err(|message| {
            say!("{message}");
            Failed
        })
    };
    let start = words.first().map(parse).transpose()?.unwrap_or(0);
    let count = words.get(1).map(parse).transpose()?.unwrap_or(SECTOR_LEN);
    let image = session.current().ok_or(Failed)?.image.clone();
    let end = start.saturating_add(count).min(image.virtual_size());
    let (mut at, mut sum) = (start, 0);
    while at < end {
        let (allocated, len) = allocated_run(session, &image, at, end)?;
        sum += if allocated { len } else { 0 };
        at += len;
    }
    let asked = end.saturating_sub(start);
    say!("{sum}/{asked} bytes allocated at offset {}", size(start as f64));
    Ok(Flow::Continue)
}

/// Whether the top image itself has what lies at `at`, and for how many bytes that stays so.
fn allocated_run(session: &mut Session, image: &HostImage, at: u64, end: u64) -> Done<(bool, u64)> {
    let mut run: Option<(bool, u64)> = None;
    let mut next = at;
    while next < end {
        let extent = session.wait(image.map(next, end - next)).map_err(|error| {
            tell(&format!("Failed to get allocation status: {error}"));
            Failed
        })?;
        let allocated = extent.present && extent.depth == 0;
        if run.is_some_and(|(before, _)| before != allocated) {
            break;
        }
        next += extent.len;
        run = Some((allocated, next - at));
    }
    run.ok_or(Failed)
}
