//! The images of the suite.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use tempfile::TempDir;

use super::text;
use crate::compare::daemon::{Settings, Template};
use crate::compare::image;
use crate::load::Limit;

/// What an image holds. All clusters are of 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// All blocks written, in order.
    Full {
        /// Bytes of the disk.
        size: u64,
    },
    /// All blocks written, in order, encrypted with LUKS; in clear, too, beside it.
    Encrypted {
        /// Bytes of the disk.
        size: u64,
    },
    /// Nothing.
    Thin {
        /// Bytes of the disk.
        size: u64,
        /// With subclusters.
        extended_l2: bool,
    },
    /// Nothing, over a backing file whose blocks are all written.
    Overlay {
        /// Bytes of the disk.
        size: u64,
    },
    /// A block of 4 KiB at the start of each stretch.
    Spots {
        /// Bytes of the disk.
        size: u64,
        /// Bytes of a stretch.
        every: u64,
    },
    /// Text in compressed clusters.
    Compressed {
        /// Bytes of the disk.
        size: u64,
        /// How it is compressed.
        codec: Codec,
    },
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Codec {
    /// Deflate.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// An image of some kind, for both formats if asked for, in a directory that goes away with it.
#[derive(Debug)]
pub struct Images {
    dir: TempDir,
    /// The file under the image, by format.
    backing: BTreeMap<&'static str, PathBuf>,
}

impl Images {
    /// Makes the image in a directory inside of `work_dir`, through our daemon where a daemon is
    /// needed. `raw`: as a raw image too, which `Full`, `Thin` and `Overlay` have.
    pub fn make(kind: ImageKind, raw: bool, work_dir: &Path, ours: &Template) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("images-")
            .tempdir_in(work_dir)
            .with_context(|| work_dir.display().to_string())?;
        let mut images = Self { dir, backing: BTreeMap::new() };
        let (qcow2, settings) = (images.source("qcow2"), settings("qcow2"));
        match kind {
            ImageKind::Full { size } => image::make_full(&qcow2, size, ours, &settings)?,
            ImageKind::Thin { size, extended_l2 } => {
                let extended_l2 = if extended_l2 { "extended_l2=on" } else { "extended_l2=off" };
                image::create(&qcow2, "qcow2", size, &["-o", extended_l2])?;
            }
            ImageKind::Encrypted { size } => images.make_encrypted(size, ours)?,
            ImageKind::Overlay { size } => images.make_overlay(size, ours)?,
            ImageKind::Spots { size, every } => {
                image::create(&qcow2, "qcow2", size, &[])?;
                image::fill(&qcow2, ours, &settings, |job| {
                    job.stretch = Some(every);
                    job.limit = Limit::Requests(size / every);
                })?;
            }
            ImageKind::Compressed { size, codec } => images.make_compressed(size, codec)?,
        }
        if raw {
            images.make_raw(kind, ours)?;
        }
        Ok(images)
    }

    /// The image in a format. Not to be written to.
    pub fn source(&self, format: &str) -> PathBuf {
        self.dir.path().join("source").with_extension(format)
    }

    /// A copy, beside which its backing file is found.
    pub fn copy(&self, format: &str) -> Result<Copy> {
        let copy = Copy(self.dir.path().join("copy").with_extension(format));
        image::copy(&self.source(format), &copy.0)?;
        Ok(copy)
    }

    /// The raw file that holds what is under the image.
    pub fn backing_raw(&self) -> Option<&Path> {
        self.backing.get("raw").map(PathBuf::as_path)
    }

    /// `image`, a copy of ours, and the file under it.
    pub fn below<'a>(&'a self, image: &'a Path) -> impl Iterator<Item = &'a Path> {
        let format = image.extension().and_then(|format| format.to_str()).unwrap_or_default();
        self.backing.get(format).map(PathBuf::as_path).into_iter().chain([image])
    }

    /// The file with the passphrase, of an encrypted image.
    pub fn key(&self) -> Option<PathBuf> {
        Some(self.dir.path().join("key")).filter(|key| key.exists())
    }

    /// Where a daemon may listen.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("disk.sock")
    }

    fn make_encrypted(&self, size: u64, ours: &Template) -> Result<()> {
        image::make_full(&self.source("plain"), size, ours, &settings("qcow2"))?;
        let key = self.dir.path().join("key");
        fs::write(&key, "no secret").with_context(|| key.display().to_string())?;
        let (encrypted, secret) =
            (self.source("qcow2"), format!("secret,id=key,file={}", key.display()));
        let luks = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
        image::create(&encrypted, "qcow2", size, &["--object", &secret, "-o", luks])?;
        let settings = Settings { key: Some(key), ..settings("qcow2") };
        image::fill(&encrypted, ours, &settings, |job| {
            job.block_size = 1 << 20;
            job.limit = Limit::Requests(size >> 20);
        })
    }

    fn make_overlay(&mut self, size: u64, ours: &Template) -> Result<()> {
        let backing = self.dir.path().join("backing.qcow2");
        image::make_full(&backing, size, ours, &settings("qcow2"))?;
        let options = ["-b", "backing.qcow2", "-F", "qcow2"];
        self.backing.insert("qcow2", backing);
        image::create(&self.source("qcow2"), "qcow2", size, &options)
    }

    fn make_compressed(&self, size: u64, codec: Codec) -> Result<()> {
        let raw = self.source("txt");
        text::write(&raw, size)?;
        let compression = match codec {
            Codec::Deflate => "zlib",
            Codec::Zstd => "zstd",
        };
        image::compress(&raw, &self.source("qcow2"), compression)?;
        fs::remove_file(&raw).with_context(|| raw.display().to_string())
    }

    fn make_raw(&mut self, kind: ImageKind, ours: &Template) -> Result<()> {
        let raw = self.source("raw");
        match kind {
            ImageKind::Full { size } => image::make_full(&raw, size, ours, &settings("raw")),
            ImageKind::Thin { size, .. } => image::create(&raw, "raw", size, &[]),
            ImageKind::Overlay { size } => {
                let backing = self.dir.path().join("backing.raw");
                image::make_full(&backing, size, ours, &settings("raw"))?;
                self.backing.insert("raw", backing);
                image::create(&raw, "raw", size, &[])
            }
            _ => anyhow::bail!("{kind:?} has no raw image"),
        }
    }
}

/// A copy of an image, removed when it is dropped.
#[derive(Debug)]
pub struct Copy(PathBuf);

impl Copy {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // What cannot be removed goes with the directory.
        let _ = fs::remove_file(&self.0);
    }
}

/// For filling an image.
fn settings(format: &str) -> Settings {
    Settings { format: format.to_owned(), direct: false, queues: 1, l2_cache: 0, key: None }
}
