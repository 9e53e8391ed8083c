//! Booting from a disk alone: kernel, initramfs and command line are read out of the guest's own disk.
//!
//! What a disk holds is the guest's to choose, so nothing of it is parsed in the monitor. A child, which is this program once
//! more, opens the image, gives up everything else, reads partitions, file systems and boot menus, and hands over what it
//! found in two files in memory. What it says is believed as little as the disk: a file that is no kernel is found out when it
//! is loaded, and the rest is text of bounded length.

mod bls;
mod file_system;
mod found;
mod grub;
mod menu;
mod parent;
mod partitions;
mod reader;
mod view;

pub use parent::find;
pub use reader::{SUBCOMMAND, run as run_reader};

/// Most bytes of a boot menu, and of its environment.
const MENU_LEN_MAX: u64 = 1 << 20;
/// Most bytes of a kernel.
const KERNEL_LEN_MAX: u64 = 256 << 20;
/// Most bytes of all parts of an initramfs.
const INITRAMFS_LEN_MAX: u64 = 1 << 30;
