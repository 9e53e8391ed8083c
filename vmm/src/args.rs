//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use qcow::size::parse_size;

use crate::boot::Boot;
use crate::devices::SerialTarget;
use crate::machine::Settings;

const ABOUT: &str = "Boots Linux in a virtual machine on KVM.";

const AFTER_HELP: &str = "\
The guest has memory, processors, a serial line (its console is ttyS0) and nothing else: disks are not built yet.
Exit codes: 0 the guest powered off, 1 cannot start, 2 wrong usage, 3 the guest crashed. A guest that resets its machine \
ends it, too, with 0.";

/// Most processors: as many as have a number in the MADT's short form.
const CPUS_MAX: i64 = 254;

/// What was asked for on the command line.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Args {
    /// The kernel: a bzImage, or an ELF file with a PVH entry
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// The initramfs
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,

    /// The kernel's command line
    #[arg(long, value_name = "S", default_value = "console=ttyS0")]
    cmdline: String,

    /// Processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=CPUS_MAX))]
    cpus: u8,

    /// Memory, a multiple of 2M (suffixes K, M, G, T)
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    memory: u64,

    /// The serial line: tty, off, or file=PATH
    #[arg(long, value_name = "WHERE", default_value = "tty")]
    serial: SerialTarget,

    #[command(flatten)]
    unbuilt: Unbuilt,
}

/// Options that are settled but not built yet. They are known here to be refused in plain words.
#[derive(Debug, clap::Args)]
struct Unbuilt {
    #[arg(long, hide = true)]
    disk: Vec<OsString>,
    #[arg(long, hide = true)]
    vhost_user: Vec<OsString>,
    #[arg(long, hide = true)]
    api_socket: Option<OsString>,
    #[arg(long, hide = true)]
    report: bool,
}

impl Unbuilt {
    fn given(&self) -> Option<&'static str> {
        let all = [
            (!self.disk.is_empty(), "--disk"),
            (!self.vhost_user.is_empty(), "--vhost-user"),
            (self.api_socket.is_some(), "--api-socket"),
            (self.report, "--report"),
        ];
        all.into_iter().find_map(|(given, name)| given.then_some(name))
    }
}

impl Args {
    /// The machine that is wanted; in one line why there can be none.
    pub fn settings(self) -> Result<Settings, String> {
        if let Some(name) = self.unbuilt.given() {
            return Err(format!("{name} is not built yet"));
        }
        let Some(kernel) = self.kernel else {
            return Err("--kernel is needed: booting from a disk is not built yet".to_owned());
        };
        let Self { initramfs, cmdline: command_line, cpus, memory, serial, .. } = self;
        Ok(Settings { boot: Boot { kernel, initramfs, command_line }, cpus, memory, serial })
    }
}
