//! Virtio over PCI (Virtual I/O Device 1.2, 4.1): functions whose queues are served by somebody else.

mod common;
mod function;
mod kind;
mod queue;

pub use function::VirtioFunction;
pub use kind::DeviceKind;
pub use queue::QUEUE_SIZE_MAX;

/// Bits of the device status (2.1).
pub mod status {
    /// The driver has accepted features, and will not change them.
    pub const FEATURES_OK: u8 = 8;
    /// The driver is ready: the queues may be used.
    pub const DRIVER_OK: u8 = 4;
    /// The device cannot go on before it is reset.
    pub const NEEDS_RESET: u8 = 64;
}

/// No vector: what this belongs to does not interrupt.
pub const NO_VECTOR: u16 = 0xffff;
