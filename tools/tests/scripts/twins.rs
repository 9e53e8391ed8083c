//! Twin directories: ours and theirs, with the same names in both.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::run::Tool;

#[derive(Debug)]
pub struct Twins(TempDir);

impl Twins {
    /// Twins in memory, where the host has a file system for that: what is tested is not the disk.
    pub fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let root = tempfile::tempdir_in(parent).expect("a temporary directory");
        let twins = Self(root);
        for side in [Tool::Ours, Tool::Theirs] {
            std::fs::create_dir(twins.of(side)).expect("a directory");
        }
        twins
    }

    /// The directory that holds both.
    pub fn root(&self) -> &Path {
        self.0.path()
    }

    /// The directory of `side`.
    pub fn of(&self, side: Tool) -> PathBuf {
        self.root().join(match side {
            Tool::Ours => "ours",
            Tool::Theirs => "theirs",
        })
    }

    /// Both files called `name`.
    pub fn both(&self, name: &str) -> [PathBuf; 2] {
        [Tool::Ours, Tool::Theirs].map(|side| self.of(side).join(name))
    }

    /// The names of all files on either side.
    pub fn names(&self) -> BTreeSet<String> {
        let list = |side| std::fs::read_dir(self.of(side)).expect("the directory");
        let entries = [Tool::Ours, Tool::Theirs].into_iter().flat_map(list);
        entries.map(|entry| entry.expect("an entry").file_name().display().to_string()).collect()
    }

    pub fn remove(&self, name: &str) {
        for file in self.both(name) {
            // One side may have none.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Whether `file` begins like a qcow2 image.
pub fn is_qcow2(file: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"QFI\xfb"
}
