//! How often the guest needs this program, and for what.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// Returns from the guest, of all processors of all machines since the start.
#[derive(Debug, Default)]
pub struct Exits {
    port: AtomicU64,
    memory: AtomicU64,
    other: AtomicU64,
}

impl Exits {
    /// The guest used a port.
    pub fn count_port(&self) {
        self.port.fetch_add(1, Ordering::Relaxed);
    }

    /// The guest used memory where there is none: a device's register.
    pub fn count_memory(&self) {
        self.memory.fetch_add(1, Ordering::Relaxed);
    }

    /// Anything else, such as a signal.
    pub fn count_other(&self) {
        self.other.fetch_add(1, Ordering::Relaxed);
    }

    /// All counts.
    pub fn to_json(&self) -> Value {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "port": count(&self.port),
            "memory": count(&self.memory),
            "other": count(&self.other),
        })
    }
}
