//! The layers as a drawing: each image with its snapshots, and below it the image it is stacked on.

use qcow::engine::check::Usage;

use super::survey::Layer;
use crate::info::human::local_time;
use crate::output::say;
use crate::size::human;

/// Draws the chain, the top image first.
pub fn print(layers: &[Layer]) {
    for (depth, layer) in layers.iter().enumerate() {
        let indent = "   ".repeat(depth.saturating_sub(1));
        let branch = if depth == 0 { "" } else { "└─ " };
        let image = &layer.image;
        say!(
            "{indent}{branch}{} [{}, {}]: {}",
            image.path.display(),
            image.format_name(),
            human(image.info.virtual_size),
            told(layer.active()),
        );
        draw_snapshots(layer, &"   ".repeat(depth), depth + 1 == layers.len());
    }
}

fn draw_snapshots(layer: &Layer, indent: &str, last_image: bool) {
    let snapshots = layer.snapshots();
    for (index, (snapshot, usage)) in snapshots.iter().enumerate() {
        let last = last_image && index + 1 == snapshots.len();
        say!(
            "{indent}{} snapshot {} '{}' of {} [{}]: {}",
            if last { "└─" } else { "├─" },
            snapshot.id.display(),
            snapshot.name.display(),
            local_time(snapshot.date_seconds),
            human(snapshot.disk_size),
            told(*usage),
        );
    }
}

fn told(usage: Usage) -> String {
    format!("{} exclusive, {} shared", human(usage.exclusive), human(usage.shared))
}
