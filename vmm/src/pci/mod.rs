//! The PCI bus (PCI Local Bus 3.0, PCI Express 6.0): one bus, whose functions interrupt by MSI-X only.

mod bus;
mod config_space;
mod host_bridge;
mod msix;

pub use bus::{Bus, Function};
pub use config_space::ConfigSpace;
pub use host_bridge::HostBridge;
pub use msix::{CONTROL_AT as MSIX_CONTROL_AT, Msix, VECTOR_COUNT_MAX, VECTOR_LEN};

/// Offsets in a function's configuration space.
pub mod offset {
    /// Who made it, and what it is.
    pub const VENDOR: usize = 0x00;
    /// See [`VENDOR`].
    pub const DEVICE: usize = 0x02;
    /// Whether it answers where its registers are.
    pub const COMMAND: usize = 0x04;
    /// Whether it has capabilities.
    pub const STATUS: usize = 0x06;
    /// Of the function.
    pub const REVISION: usize = 0x08;
    /// Three bytes: interface, kind, class.
    pub const CLASS: usize = 0x09;
    /// The first of six base address registers.
    pub const BAR_0: usize = 0x10;
    /// Of the device that the function is a part of.
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    /// See [`SUBSYSTEM_VENDOR`].
    pub const SUBSYSTEM: usize = 0x2e;
    /// The first capability.
    pub const CAPABILITIES: usize = 0x34;
}

/// Command: the function answers to memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may write to memory by itself.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Status: there is a list of capabilities.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
