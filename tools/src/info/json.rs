//! An image's description as JSON, with QEMU's keys.

use qcow::crypt::luks::LuksHeader;
use qcow::crypt::seal::SealKind;
use qcow::engine::SealedInfo;
use qcow::format::bitmap::BitmapEntry;
use qcow::format::feature::{Autoclear, Compatible, Incompatible};
use qcow::format::header::{CryptMethod, Header, Version};
use qcow::format::snapshot::{SnapshotEntry, as_shown};
use serde_json::{Map, Value, json};

use super::describe::Description;
use super::human::flag_names;
use super::{encryption, sealed};

/// All of it.
pub fn to_json(image: &Description) -> Value {
    let info = &image.info;
    let filename = image.path.to_string_lossy();
    let mut object = object(json!({
        "filename": filename,
        "format": image.format_name(),
        "virtual-size": info.virtual_size,
        "actual-size": info.allocated_len,
        "dirty-flag": false,
        "children": [{
            "name": "file",
            "info": {
                "children": [],
                "virtual-size": image.file_size(),
                "filename": filename,
                "format": "file",
                "actual-size": info.allocated_len,
                "format-specific": { "type": "file", "data": {} },
                "dirty-flag": false,
            },
        }],
    }));
    if let Some(header) = image.qcow2() {
        add_qcow2(&mut object, image, header);
    }
    if let Some(sealed) = &info.sealed {
        add_sealed(&mut object, image, sealed);
    }
    if let Some(header) = image.luks() {
        let data = encryption::luks_properties(header, None).to_json();
        object.insert("format-specific".to_owned(), json!({ "type": "luks", "data": data }));
        object.insert("encrypted".to_owned(), true.into());
    }
    Value::Object(object)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn add_qcow2(object: &mut Map<String, Value>, image: &Description, header: &Header) {
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    put("cluster-size", header.geometry().cluster_size().into());
    put("dirty-flag", header.incompatible.contains(Incompatible::DIRTY).into());
    if header.crypt_method != CryptMethod::None {
        put("encrypted", true.into());
    }
    add_backing(object, image);
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    let data = format_specific(header, image.info.luks.as_ref(), &image.bitmaps);
    put("format-specific", json!({ "type": "qcow2", "data": data }));
}

fn add_sealed(object: &mut Map<String, Value>, image: &Description, info: &SealedInfo) {
    object.insert("cluster-size".to_owned(), info.header.cluster_len().into());
    if info.header.kind == SealKind::Aes256Gcm {
        object.insert("encrypted".to_owned(), true.into());
    }
    add_backing(object, image);
    let properties = sealed::properties(info).into_iter();
    let mut data: Map<String, Value> =
        properties.map(|(name, value)| (name.replace(' ', "-"), value.into())).collect();
    if let Some(state) = &info.state {
        data.insert("closed".to_owned(), state.is_closed.into());
    }
    let specific = json!({ "type": "qcow2", "data": data });
    object.insert("format-specific".to_owned(), specific);
}

/// Backing file and snapshots.
fn add_backing(object: &mut Map<String, Value>, image: &Description) {
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    if let Some(backing) = &image.backing {
        put("backing-filename", backing.name.as_str().into());
        put("full-backing-filename", backing.full_name.as_str().into());
        if let Some(format) = &backing.format {
            put("backing-filename-format", format.as_str().into());
        }
    }
    if !image.info.snapshots.is_empty() {
        put("snapshots", image.info.snapshots.iter().map(snapshot).collect());
    }
}

/// An internal snapshot, with the keys that `info` uses.
pub fn snapshot(entry: &SnapshotEntry) -> Value {
    let mut object = object(json!({
        "id": as_shown(&entry.id).to_string_lossy(),
        "name": as_shown(&entry.name).to_string_lossy(),
        "vm-state-size": entry.vm_state_size,
        "date-sec": entry.date_seconds,
        "date-nsec": entry.date_nanoseconds,
        "vm-clock-sec": entry.vm_clock_nanoseconds / 1_000_000_000,
        "vm-clock-nsec": entry.vm_clock_nanoseconds % 1_000_000_000,
    }));
    if let Some(icount) = entry.icount {
        object.insert("icount".to_owned(), icount.into());
    }
    Value::Object(object)
}

fn format_specific(header: &Header, luks: Option<&LuksHeader>, bitmaps: &[BitmapEntry]) -> Value {
    let mut data = Map::new();
    let mut put = |key: &str, value: Value| data.insert(key.to_owned(), value);
    let v3 = header.version == Version::V3;
    put("compat", if v3 { "1.1" } else { "0.10" }.into());
    put("compression-type", header.compression.name().into());
    put("refcount-bits", header.geometry().refcount_bits().into());
    if let Some(properties) = encryption::properties(header, luks) {
        put("encrypt", properties.to_json());
    }
    if let Some(file) = &header.extensions.data_file {
        put("data-file", file.to_string_lossy().into());
    }
    if v3 {
        put("lazy-refcounts", header.compatible.contains(Compatible::LAZY_REFCOUNTS).into());
        put("corrupt", header.incompatible.contains(Incompatible::CORRUPT).into());
        put("extended-l2", header.incompatible.contains(Incompatible::EXTENDED_L2).into());
        if header.incompatible.contains(Incompatible::EXTERNAL_DATA) {
            let raw = header.autoclear.contains(Autoclear::RAW_EXTERNAL_DATA);
            put("data-file-raw", raw.into());
        }
        if !bitmaps.is_empty() {
            put("bitmaps", bitmaps.iter().map(bitmap).collect());
        }
    }
    Value::Object(data)
}

fn bitmap(entry: &BitmapEntry) -> Value {
    json!({
        "name": entry.name.to_string_lossy(),
        "granularity": 1_u64 << entry.granularity_bits,
        "flags": flag_names(entry.flags),
    })
}
