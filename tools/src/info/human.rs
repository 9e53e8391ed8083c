//! An image's description for people.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use qcow::crypt::luks::LuksHeader;
use qcow::crypt::seal::SealKind;
use qcow::engine::SealedInfo;
use qcow::format::bitmap::{BitmapEntry, BitmapFlags};
use qcow::format::feature::{Autoclear, Compatible, Incompatible};
use qcow::format::header::{CryptMethod, Header, Version};
use qcow::format::snapshot::{SnapshotEntry, as_shown};

use super::describe::Description;
use super::{encryption, sealed};
use crate::output::say;
use crate::size::human;

/// Prints all of it.
pub fn print(image: &Description) {
    let info = &image.info;
    say!("image: {}", image.path.display());
    say!("file format: {}", image.format_name());
    say!("virtual size: {} ({} bytes)", human(info.virtual_size), info.virtual_size);
    say!("disk size: {}", human(info.allocated_len));
    if let Some(header) = image.qcow2() {
        print_qcow2(image, header);
    }
    if let Some(sealed) = &info.sealed {
        print_sealed(image, sealed);
    }
    if let Some(header) = image.luks() {
        say!("encrypted: yes");
        luks_specific(header).iter().for_each(|line| say!("{line}"));
    }
    say!("Child node '/file':");
    say!("    filename: {}", image.path.display());
    say!("    protocol type: file");
    say!("    file length: {} ({} bytes)", human(image.file_size()), image.file_size());
    say!("    disk size: {}", human(info.allocated_len));
}

fn print_qcow2(image: &Description, header: &Header) {
    if header.crypt_method != CryptMethod::None {
        say!("encrypted: yes");
    }
    say!("cluster_size: {}", header.geometry().cluster_size());
    if header.incompatible.contains(Incompatible::DIRTY) {
        say!("cleanly shut down: no");
    }
    print_backing(image);
    if !image.info.snapshots.is_empty() {
        print_snapshots(&image.info.snapshots);
    }
    for line in format_specific(header, image.info.luks.as_ref(), &image.bitmaps) {
        say!("{line}");
    }
}

fn print_sealed(image: &Description, sealed: &SealedInfo) {
    if sealed.header.kind == SealKind::Aes256Gcm {
        say!("encrypted: yes");
    }
    say!("cluster_size: {}", sealed.header.cluster_len());
    print_backing(image);
    if !image.info.snapshots.is_empty() {
        print_snapshots(&image.info.snapshots);
    }
    say!("Format specific information:");
    for (name, value) in sealed::properties(sealed) {
        say!("    {name}: {value}");
    }
}

fn print_backing(image: &Description) {
    let Some(backing) = &image.backing else { return };
    let place = match backing.full_name == backing.name {
        true => String::new(),
        false => format!(" (actual path: {})", backing.full_name),
    };
    say!("backing file: {}{place}", backing.name);
    if let Some(format) = &backing.format {
        say!("backing file format: {format}");
    }
}

/// Prints a table of internal snapshots.
pub fn print_snapshots(snapshots: &[SnapshotEntry]) {
    let row = |cells: [&str; 6]| {
        let [id, tag, size, date, clock, icount] = cells;
        say!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}");
    };
    say!("Snapshot list:");
    row(["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"]);
    for snapshot in snapshots {
        row([
            &as_shown(&snapshot.id).to_string_lossy(),
            &as_shown(&snapshot.name).to_string_lossy(),
            &human(snapshot.vm_state_size),
            &local_time(snapshot.date_seconds),
            &clock(snapshot.vm_clock_nanoseconds),
            &snapshot.icount.map(|icount| icount.to_string()).unwrap_or("--".to_owned()),
        ]);
    }
}

/// A point in time, given in seconds since 1970, where this computer is.
pub fn local_time(seconds: u32) -> String {
    let time = Timestamp::from_second(seconds.into()).unwrap_or_default();
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Hours, minutes, seconds and milliseconds.
fn clock(nanoseconds: u64) -> String {
    let milliseconds = nanoseconds / 1_000_000;
    let (seconds, milliseconds) = (milliseconds / 1000, milliseconds % 1000);
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    format!("{:04}:{:02}:{seconds:02}.{milliseconds:03}", minutes / 60, minutes % 60)
}

/// The lines about what only LUKS files have.
pub fn luks_specific(header: &LuksHeader) -> Vec<String> {
    let properties = encryption::luks_properties(header, None).lines();
    let lines = properties.into_iter().map(|line| format!("    {line}"));
    std::iter::once("Format specific information:".to_owned()).chain(lines).collect()
}

/// The lines about what only qcow2 images have.
pub fn format_specific(
    header: &Header,
    luks: Option<&LuksHeader>,
    bitmaps: &[BitmapEntry],
) -> Vec<String> {
    let mut lines = vec!["Format specific information:".to_owned()];
    let mut put = |line: String| lines.push(format!("    {line}"));
    put(format!("compat: {}", if header.version == Version::V2 { "0.10" } else { "1.1" }));
    put(format!("compression type: {}", header.compression.name()));
    if header.version == Version::V3 {
        put(format!("lazy refcounts: {}", header.compatible.contains(Compatible::LAZY_REFCOUNTS)));
        if !bitmaps.is_empty() {
            put("bitmaps:".to_owned());
            bitmap_lines(bitmaps).for_each(&mut put);
        }
    }
    put(format!("refcount bits: {}", header.geometry().refcount_bits()));
    if let Some(properties) = encryption::properties(header, luks) {
        put("encrypt:".to_owned());
        properties.lines().into_iter().for_each(|line| put(format!("    {line}")));
    }
    if let Some(file) = &header.extensions.data_file {
        put(format!("data file: {}", file.display()));
    }
    if header.version == Version::V3 {
        if header.incompatible.contains(Incompatible::EXTERNAL_DATA) {
            let raw = header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA);
            put(format!("data file raw: {raw}"));
        }
        put(format!("corrupt: {}", header.incompatible.contains(Incompatible::CORRUPT)));
        put(format!("extended l2: {}", header.incompatible.contains(Incompatible::EXTENDED_L2)));
    }
    lines
}

fn bitmap_lines(bitmaps: &[BitmapEntry]) -> impl Iterator<Item = String> + '_ {
    bitmaps.iter().enumerate().flat_map(|(number, bitmap)| {
        let mut lines = vec![format!("    [{number}]:"), "        flags:".to_owned()];
        let flags = flag_names(bitmap.flags).into_iter().enumerate();
        lines.extend(flags.map(|(i, flag)| format!("            [{i}]: {flag}")));
        lines.push(format!("        name: {}", bitmap.name.display()));
        lines.push(format!("        granularity: {}", 1_u64 << bitmap.granularity_bits));
        lines
    })
}

/// The names of a bitmap's flags.
pub fn flag_names(flags: BitmapFlags) -> Vec<&'static str> {
    let names = [(BitmapFlags::IN_USE, "in-use"), (BitmapFlags::AUTO, "auto")];
    names.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| name).collect()
}
