//! The file systems that a /boot may be on: ext2 to ext4, and FAT. Others are recognised, to be named.

use std::io::Read;

use anyhow::{Context, Result, anyhow, ensure};
use ext4_view::Ext4;

use super::view::View;

/// Most names of a directory that are looked at.
const NAME_COUNT_MAX: usize = 4096;

/// Where each kind has its magic: offset, bytes, name.
const OTHERS: [(u64, &[u8], &str); 6] = [
    (0, b"XFSB", "XFS"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (0x218, b"LVM2 001", "LVM"),
    (0x018, b"LVM2 001", "LVM"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0x400, b"\x10\x20\xf5\xf2", "F2FS"),
];

/// A file system that can be read.
pub enum FileSystem {
    /// ext2, ext3 or ext4.
    Ext4(Ext4),
    /// FAT12, FAT16 or FAT32.
    Fat(Box<fatfs::FileSystem<View>>),
}

/// What is in a partition.
pub enum Content {
    /// A file system that can be read.
    Readable(FileSystem),
    /// Something that cannot be read, and is called this.
    Unreadable(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// Finds out what is in `view`.
pub fn recognise(view: &View) -> Content {
    if let Ok(ext4) = Ext4::load(Box::new(view.clone())) {
        return Content::Readable(FileSystem::Ext4(ext4));
    }
    if let Ok(fat) = fatfs::FileSystem::new(view.clone(), fatfs::FsOptions::new()) {
        return Content::Readable(FileSystem::Fat(Box::new(fat)));
    }
    let is_there = |(at, magic, _): &&(u64, &[u8], &str)| {
        let mut bytes = vec![0; magic.len()];
        view.clone().read_at(*at, &mut bytes).is_ok() && bytes == *magic
    };
    OTHERS.iter().find(is_there).map_or(Content::Unknown, |(_, _, name)| Content::Unreadable(name))
}

impl FileSystem {
    /// How a kernel that has it as its root can find it, if it can.
    pub fn root_argument(&self) -> Option<String> {
        match self {
            Self::Ext4(ext4) => Some(format!("root=UUID={} ro", ext4.uuid())),
            Self::Fat(_) => None,
        }
    }

    /// The names in a directory; none if there is no such directory.
    pub fn names(&self, directory: &str) -> Vec<String> {
        match self {
            Self::Ext4(ext4) => {
                let Ok(entries) = ext4.read_dir(directory) else { return Vec::new() };
                let name =
                    |entry: ext4_view::DirEntry| entry.file_name().as_str().ok().map(str::to_owned);
                let entries = entries.take(NAME_COUNT_MAX).filter_map(Result::ok);
                entries.filter_map(name).collect()
            }
            Self::Fat(fat) => {
                let root = fat.root_dir();
                let path = directory.trim_matches('/');
                let opened = if path.is_empty() { Ok(root) } else { root.open_dir(path) };
                let Ok(directory) = opened else { return Vec::new() };
                let entries = directory.iter().take(NAME_COUNT_MAX).filter_map(Result::ok);
                entries.map(|entry| entry.file_name()).collect()
            }
        }
    }

    /// The file at `path`, links followed; `None` if there is none.
    ///
    /// # Errors
    /// It is longer than `len_max` bytes, or cannot be read.
    pub fn read(&self, path: &str, len_max: u64) -> Result<Option<Vec<u8>>> {
        let too_long = || format!("{path}: longer than {len_max} bytes");
        match self {
            Self::Ext4(ext4) => {
                let Ok(metadata) = ext4.metadata(path) else { return Ok(None) };
                if !metadata.file_type().is_regular_file() {
                    return Ok(None);
                }
                ensure!(metadata.len() <= len_max, too_long());
                let bytes = ext4.read(path).map_err(|e| anyhow!("{path}: {e}"))?;
                Ok(Some(bytes))
            }
            Self::Fat(fat) => {
                let Ok(file) = fat.root_dir().open_file(path.trim_start_matches('/')) else {
                    return Ok(None);
                };
                let mut bytes = Vec::new();
                file.take(len_max + 1).read_to_end(&mut bytes).context(path.to_owned())?;
                ensure!(bytes.len() as u64 <= len_max, too_long());
                Ok(Some(bytes))
            }
        }
    }

    /// The text file at `path`; `None` if there is none that can be read.
    pub fn read_text(&self, path: &str) -> Option<String> {
        let bytes = self.read(path, super::MENU_LEN_MAX).ok()??;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}
