//! The layers as a table: a line for each image and each internal snapshot.

use qcow::engine::check::Usage;

use super::survey::Layer;
use crate::info::human::local_time;
use crate::output::say;
use crate::size::human;

/// Prints the table, the top image first.
pub fn print(layers: &[Layer]) {
    row(["KIND", "SIZE", "EXCLUSIVE", "SHARED", "DATE"], "NAME");
    for (depth, layer) in layers.iter().enumerate() {
        let kind = if depth == 0 { "image" } else { "backing" };
        let name = layer.image.path.display().to_string();
        state(kind, layer.image.info.virtual_size, layer.active(), "", &name);
        for (snapshot, usage) in layer.snapshots() {
            let name = format!("{} ({})", snapshot.name.display(), snapshot.id.display());
            let date = local_time(snapshot.date_seconds);
            state("snapshot", snapshot.disk_size, *usage, &date, &name);
        }
    }
}

fn state(kind: &str, size: u64, usage: Usage, date: &str, name: &str) {
    row([kind, &human(size), &human(usage.exclusive), &human(usage.shared), date], name);
}

fn row([kind, size, exclusive, shared, date]: [&str; 5], name: &str) {
    say!("{kind:<9} {size:>9} {exclusive:>10} {shared:>10} {date:<19} {name}");
}
