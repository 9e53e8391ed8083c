//! Where on a disk it says what is booted.

use anyhow::{Result, bail};

use super::bls;
use super::file_system::{Content, FileSystem, recognise};
use super::found::Entry;
use super::grub::{Menu, Variables, parse_environment};
use super::partitions::{Partition, find};
use super::view::View;

/// Where /boot is: in the root's file system, or one of its own.
const PREFIXES: [&str; 2] = ["/boot", ""];
const GRUB_FOLDERS: [&str; 2] = ["grub", "grub2"];

/// What is booted, and the file system that has it.
pub struct Chosen {
    /// The partition's name.
    pub partition: String,
    /// Where the files are.
    pub files: FileSystem,
    /// Which.
    pub entry: Entry,
}

/// Finds what `disk` boots.
///
/// # Errors
/// There is nothing, or it cannot be read: then what there is.
pub fn choose(disk: &View) -> Result<Chosen> {
    let mut readable = Vec::new();
    let mut unreadable = Vec::new();
    for Partition { name, view } in find(disk) {
        match recognise(&view) {
            Content::Readable(files) => readable.push((name, files)),
            Content::Unreadable(kind) => unreadable.push(format!("{name} is {kind}")),
            Content::Unknown => {}
        }
    }
    // A menu anywhere is better than kernels that lie about.
    for look in [from_menus, from_names] {
        for at in 0..readable.len() {
            let Some(entry) = look(&readable[at].1) else { continue };
            // A menu may name files of another partition.
            let has = |(_, files): &(String, FileSystem)| has_kernel(files, &entry);
            let Some(at) = [at].into_iter().chain(0..readable.len()).find(|at| has(&readable[*at]))
            else {
                continue;
            };
            let (partition, files) = readable.swap_remove(at);
            return Ok(Chosen { partition, files, entry });
        }
    }
    match (unreadable.as_slice(), readable.as_slice()) {
        ([], []) => bail!("no partition with a file system that can be read (ext4 or FAT)"),
        ([], _) => bail!("no kernel in /boot; name one with --kernel"),
        (others, _) => bail!(
            "no /boot that can be read: {}, and only ext4 and FAT can be; name a kernel with --kernel",
            others.join(", ")
        ),
    }
}

fn has_kernel(files: &FileSystem, entry: &Entry) -> bool {
    matches!(files.read(&entry.kernel, super::KERNEL_LEN_MAX), Ok(Some(_)))
}

fn from_menus(files: &FileSystem) -> Option<Entry> {
    PREFIXES.iter().find_map(|prefix| {
        let folders = GRUB_FOLDERS.iter().map(|folder| format!("{prefix}/{folder}"));
        let texts = folders.map(|folder| {
            let environment = files.read_text(&format!("{folder}/grubenv")).unwrap_or_default();
            (files.read_text(&format!("{folder}/grub.cfg")), parse_environment(&environment))
        });
        let mut entries_of_their_own = Variables::new();
        for (text, environment) in texts {
            let Some(text) = text else {
                entries_of_their_own.extend(environment);
                continue;
            };
            let menu = Menu::parse(&text, environment.clone());
            entries_of_their_own.extend(environment);
            if !menu.has_bls
                && let Some(entry) = menu.chosen()
            {
                return Some(entry);
            }
        }
        bls::choose(files, &format!("{prefix}/loader/entries"), &entries_of_their_own)
    })
}

/// The newest kernel by its name, with the initramfs that has the same version in its name.
fn from_names(files: &FileSystem) -> Option<Entry> {
    PREFIXES.iter().find_map(|prefix| {
        let names = files.names(if prefix.is_empty() { "/" } else { prefix });
        let versions = names.iter().filter_map(|name| name.strip_prefix("vmlinuz-"));
        let version = versions.max_by(|a, b| bls::compare(a, b))?;
        let candidates = [
            format!("initrd.img-{version}"),
            format!("initramfs-{version}.img"),
            format!("initrd-{version}"),
        ];
        let initramfs = candidates.into_iter().find(|name| names.contains(name));
        Some(Entry {
            title: format!("Linux {version}"),
            id: version.to_owned(),
            kernel: format!("{prefix}/vmlinuz-{version}"),
            initramfs: initramfs.map(|name| format!("{prefix}/{name}")).into_iter().collect(),
            command_line: files.root_argument().filter(|_| !prefix.is_empty()).unwrap_or_default(),
        })
    })
}
