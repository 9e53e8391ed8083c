//! The command line.

#![expect(
    rustdoc::broken_intra_doc_links,
    reason = "in help texts, brackets mean what may be left out"
)]

use std::path::PathBuf;

use clap::Parser;

use crate::boot::Boot;
use crate::devices::SerialTarget;
use crate::disks::{DiskSpec, VhostUserSpec};
use crate::machine::Settings;
use crate::sizing::{CpuSpec, MemorySpec};

const ABOUT: &str = "Boots Linux in a virtual machine on KVM.";

const AFTER_HELP: &str = "\
The guest has memory, processors, a serial line (its console is ttyS0), and disks on a PCI bus: first those of --disk, then \
those of --vhost-user. A disk whose daemon dies waits for the next one, however long that takes. A guest that resets its \
machine boots anew.
Exit codes: 0 the guest powered off, 1 cannot start, 2 wrong usage, 3 the guest crashed.";

/// What was asked for on the command line.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Args {
    /// The kernel: a bzImage, or an ELF file with a PVH entry. Without it, kernel, initramfs and command line are read out of
    /// the first disk of --disk: by GRUB's menu or BLS entries in a /boot on ext4 or FAT
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// The initramfs
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,

    /// The kernel's command line [default: console=ttyS0]; without --kernel it is added to what the disk says
    #[arg(long, value_name = "S")]
    cmdline: Option<String>,

    /// Processors: N[,affinity=LIST], the list naming the host's processors that they stay on, in turn (0,2-3)
    #[arg(long, value_name = "PROCESSORS", default_value = "1")]
    cpus: CpuSpec,

    /// Memory: SIZE[,hugepages][,prefault][,numa=N], the size being a multiple of 2M (suffixes K, M, G, T); from the host's
    /// huge pages of 2M; all set aside before the guest starts; from the host's NUMA node N
    #[arg(long, value_name = "MEMORY", default_value = "512M")]
    memory: MemorySpec,

    /// A disk image, for which a vhost-blk of its own is started: PATH[,readonly][,queues=N][,cache=writeback|none|unsafe]
    /// [,format=qcow2|raw]; one queue per processor if nothing is said, two commas for one in the path; may be repeated
    #[arg(long, value_name = "DISK")]
    disk: Vec<DiskSpec>,

    /// A vhost-user backend that runs already: SOCKET[,queues=N][,device=N], the virtio device number being that of a disk (2)
    /// if nothing is said; may be repeated
    #[arg(long, value_name = "BACKEND")]
    vhost_user: Vec<VhostUserSpec>,

    /// The serial line: tty, off, file=PATH, or socket=PATH, where one client after the other may listen and type
    #[arg(long, value_name = "WHERE", default_value = "tty")]
    serial: SerialTarget,

    /// Listen here for pause, resume, shutdown and info: HTTP/1.1 and JSON (curl --unix-socket PATH http://x/v1/info)
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,

    /// At the end, tell in a line of JSON on standard error what it has cost: time to the first instruction, exits, memory
    #[arg(long)]
    report: bool,
}

impl Args {
    /// The machine that is wanted; in one line why there can be none.
    pub fn settings(self) -> Result<Settings, String> {
        let Self { kernel, initramfs, cmdline, cpus, memory, serial, .. } = self;
        let boot = match (kernel, self.disk.first()) {
            (Some(kernel), _) => {
                let command_line = cmdline.unwrap_or_else(|| "console=ttyS0".to_owned());
                Boot::Files { kernel, initramfs, command_line }
            }
            (None, _) if initramfs.is_some() => {
                return Err("--initramfs is for a kernel that --kernel names".to_owned());
            }
            (None, Some(disk)) => Boot::Disk { disk: disk.clone(), command_line: cmdline },
            (None, None) => {
                return Err("nothing to boot: say --disk, or --kernel (see --help)".to_owned());
            }
        };
        let queues = Some(cpus.count.into());
        let per_cpu = |disk: DiskSpec| DiskSpec { queues: disk.queues.or(queues), ..disk };
        Ok(Settings {
            boot,
            cpus,
            memory,
            disks: self.disk.into_iter().map(per_cpu).collect(),
            backends: self.vhost_user,
            serial,
            api_socket: self.api_socket,
            report: self.report,
        })
    }
}
