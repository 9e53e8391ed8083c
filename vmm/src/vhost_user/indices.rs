//! How far a split ring has come, as it says itself (Virtual I/O Device 1.2, 2.7).

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use vm_memory::{Bytes, GuestAddress};

use super::Ring;
use crate::ram::GuestMemory;

/// Distance of the index from the start of the available and of the used ring.
const INDEX_AT: u64 = 2;

impl Ring {
    /// How many requests have been answered, modulo 65,536.
    pub fn used_index(&self, memory: &GuestMemory) -> Result<u16> {
        index(memory, self.used)
    }

    /// Whether every request has been answered.
    pub fn is_idle(&self, memory: &GuestMemory) -> Result<bool> {
        Ok(index(memory, self.available)? == self.used_index(memory)?)
    }
}

fn index(memory: &GuestMemory, ring: u64) -> Result<u16> {
    let at = ring.checked_add(INDEX_AT).map(GuestAddress);
    at.and_then(|at| memory.load(at, Ordering::Acquire).ok())
        .with_context(|| format!("a ring at {ring:#x}, which is not in the guest's memory"))
}
