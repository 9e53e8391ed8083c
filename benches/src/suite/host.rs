//! Where a run was made, and with what.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use nix::sys::statfs;
use serde::Serialize;

use super::Programs;

/// What somebody else has to know to make sense of the numbers. What cannot be found out is "unknown".
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// Day of the run, UTC.
    pub date: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the CPUs.
    pub cpu: String,
    /// Number of CPUs.
    pub cpus: usize,
    /// Memory.
    pub memory: String,
    /// File system of the images.
    pub file_system: String,
    /// Version of our daemon.
    pub ours: String,
    /// Version of QEMU's.
    pub peer: String,
}

impl Host {
    /// Looks around.
    pub fn look(programs: &Programs, work_dir: &Path) -> Self {
        Self {
            date: Timestamp::now().strftime("%Y-%m-%d").to_string(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: value_of(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory: value_of(&read("/proc/meminfo"), "MemTotal"),
            file_system: file_system(work_dir),
            ours: programs.ours.version(),
            peer: programs.peer.version(),
        }
    }

    /// For people: what, and the value.
    pub fn lines(&self) -> [(&'static str, String); 7] {
        [
            ("date", self.date.clone()),
            ("ours", self.ours.clone()),
            ("QEMU", self.peer.clone()),
            ("CPU", format!("{} x {}", self.cpus, self.cpu)),
            ("memory", self.memory.clone()),
            ("kernel", self.kernel.clone()),
            ("file system", self.file_system.clone()),
        ]
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|_| unknown())
}

/// Behind the first `name:` of a file of such lines.
fn value_of(text: &str, name: &str) -> String {
    let value = |line: &str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    };
    text.lines().find_map(value).unwrap_or_else(unknown)
}

fn file_system(path: &Path) -> String {
    let names = [
        (statfs::EXT4_SUPER_MAGIC, "ext4"),
        (statfs::XFS_SUPER_MAGIC, "XFS"),
        (statfs::BTRFS_SUPER_MAGIC, "btrfs"),
        (statfs::TMPFS_MAGIC, "tmpfs"),
        (statfs::OVERLAYFS_SUPER_MAGIC, "overlayfs"),
    ];
    let Ok(found) = statfs::statfs(path) else { return unknown() };
    let name = names.iter().find(|(magic, _)| *magic == found.filesystem_type());
    name.map_or_else(|| format!("{:#x}", found.filesystem_type().0), |(_, name)| (*name).to_owned())
}

fn unknown() -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    use super::value_of;

    #[test]
    fn the_first_line_of_a_name_counts() {
        let text = "processor\t: 0\nmodel name\t: Some CPU\nmodel name\t: Other\n";
        assert_eq!(value_of(text, "model name"), "Some CPU");
        assert_eq!(value_of(text, "model"), "unknown");
    }
}
