//! Code where a PC's processor starts after a reset, in real mode: it resets the machine.
//!
//! A kernel that is told of hardware-reduced ACPI leaves its reset register alone: it expects UEFI to reset the machine, and
//! where there is none it goes to real mode and jumps here.

use anyhow::{Context, Result};
use vm_memory::{Bytes, GuestAddress};

use crate::acpi::RESET_VALUE;
use crate::layout;
use crate::ram::GuestMemory;

/// Writes the code.
pub fn write(memory: &GuestMemory) -> Result<()> {
    let [low, high] = layout::RESET_PORT.to_le_bytes();
    // mov dx, port; mov al, value; out dx, al; then, should that have been too little: hlt; jmp back to the hlt.
    let code = [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd];
    memory
        .write_slice(&code, GuestAddress(layout::RESET_VECTOR))
        .context("cannot write the reset vector")
}
