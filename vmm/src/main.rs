//! `vmm`, the KVM monitor: not built yet. The program says so, and what boots a disk meanwhile.

use std::env;
use std::process::ExitCode;

const NOT_BUILT: &str = "vmm: the monitor is not built yet; meanwhile serve the disk with \
     `vhost-blk` and boot it with QEMU's `-device vhost-user-blk-pci` (`make demo` shows how)";

const USAGE: &str = "Usage: vmm\n\nThere are no options yet; every call ends with exit code 1.";

fn main() -> ExitCode {
    eprintln!("{NOT_BUILT}");
    if env::args_os().skip(1).any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
    }
    ExitCode::FAILURE
}
