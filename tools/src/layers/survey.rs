//! Measuring the layers of a chain.

use std::path::Path;

use qcow::Error;
use qcow::disk::uring::block_on;
use qcow::engine::check::{ImageUsage, Usage};
use qcow::format::snapshot::SnapshotEntry;
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::image::{self, Opening};
use crate::info::describe::{self, Description};

/// One image of the chain.
#[derive(Debug)]
pub struct Layer {
    /// What it says about itself.
    pub image: Description,
    /// What its states take, of a qcow2 image.
    pub usage: Option<ImageUsage>,
}

impl Layer {
    /// What the disk as it is takes: of an image without tables, all that the host stores.
    pub fn active(&self) -> Usage {
        let stored = Usage { exclusive: self.image.info.allocated_len, shared: 0 };
        self.usage.as_ref().map_or(stored, |usage| usage.active)
    }

    /// Its internal snapshots.
    pub fn snapshots(&self) -> &[(SnapshotEntry, Usage)] {
        self.usage.as_ref().map_or(&[], |usage| &usage.snapshots)
    }
}

/// The layers of the image at `path`, the top one first.
pub fn survey(path: &Path, format: Option<&str>, shared: bool) -> Outcome<Vec<Layer>> {
    let chain = describe::chain(path, &Opening { format, shared, ..Opening::default() }, true)?;
    chain.into_iter().map(|image| measure(image, shared)).collect()
}

fn measure(image: Description, shared: bool) -> Outcome<Layer> {
    if image.qcow2().is_none() {
        return Ok(Layer { image, usage: None });
    }
    let path = &image.path;
    let unusable = |e: Error| image::could_not_open(path, &image::reason_not_open(path, &e));
    let disk = Opening { shared, ..Opening::default() }.open_file(path)?;
    let usage = block_on(ImageUsage::read(&disk, path)).map_err(unusable)?;
    Ok(Layer { image, usage: Some(usage) })
}

/// The layers for programs; keys as in `info`, where it has them.
pub fn to_json(layers: &[Layer]) -> Value {
    layers.iter().map(layer_to_json).collect()
}

fn layer_to_json(layer: &Layer) -> Value {
    let info = &layer.image.info;
    let active = layer.active();
    let mut value = json!({
        "filename": layer.image.path.to_string_lossy(),
        "format": layer.image.format_name(),
        "virtual-size": info.virtual_size,
        "actual-size": info.allocated_len,
        "exclusive": active.exclusive,
        "shared": active.shared,
    });
    if layer.usage.is_some() {
        value["snapshots"] = layer.snapshots().iter().map(snapshot_to_json).collect();
    }
    value
}

fn snapshot_to_json((snapshot, usage): &(SnapshotEntry, Usage)) -> Value {
    json!({
        "id": snapshot.id.to_string_lossy(),
        "name": snapshot.name.to_string_lossy(),
        "date-sec": snapshot.date_seconds,
        "date-nsec": snapshot.date_nanoseconds,
        "disk-size": snapshot.disk_size,
        "vm-state-size": snapshot.vm_state_size,
        "exclusive": usage.exclusive,
        "shared": usage.shared,
    })
}
