//! What a machine has cost (`--report`): one line of JSON on standard error at its end.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::ram;
use crate::vcpu::Exits;
use crate::vhost_user::Backend;

/// What is noted while it runs.
#[derive(Debug)]
pub struct Report {
    began: Instant,
    /// Microseconds until the first processor was about to enter the guest.
    until_first_run: Option<u128>,
    /// Bytes, when the last machine ended: of guest memory that was used, and of all else.
    memory: Option<(u64, u64)>,
}

impl Report {
    /// The program has begun.
    pub fn begin() -> Self {
        Self { began: Instant::now(), until_first_run: None, memory: None }
    }

    /// The processors are about to run.
    pub fn note_first_run(&mut self) {
        self.until_first_run.get_or_insert(self.began.elapsed().as_micros());
    }

    /// The machine has ended; its memory is still there.
    pub fn note_memory(&mut self) {
        self.memory = resident().or(self.memory);
    }

    /// All of it.
    pub fn to_json(&self, exits: &Exits, backends: &[Arc<Backend>]) -> Value {
        let device = |backend: &Arc<Backend>| {
            json!({
                "name": backend.name(),
                "resumed": backend.resumed(),
                "wake_ups": backend.wake_ups(),
            })
        };
        json!({
            "until_first_run_us": self.until_first_run.map(|us| us as u64),
            "run_us": self.began.elapsed().as_micros() as u64,
            "exits": exits.to_json(),
            "guest_memory_resident": self.memory.map(|(guest, _)| guest),
            "memory_overhead": self.memory.map(|(_, own)| own),
            "devices": backends.iter().map(device).collect::<Vec<_>>(),
        })
    }
}

/// Bytes in memory: of the guest's, and of all else that this process alone has or shares with others.
fn resident() -> Option<(u64, u64)> {
    let maps = fs::read_to_string("/proc/self/smaps").ok()?;
    let (mut guest, mut own) = (0, 0);
    let mut is_guest = false;
    for line in maps.lines() {
        match line.strip_prefix("Rss:") {
            Some(rest) => {
                let bytes = rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10;
                *(if is_guest { &mut guest } else { &mut own }) += bytes;
            }
            // A mapping begins with its addresses, and says at the end of that line what it is of.
            None if line.split(' ').next().is_some_and(|word| word.contains('-')) => {
                is_guest = line.contains(ram::FILE_NAME);
            }
            None => {}
        }
    }
    Some((guest, own))
}
