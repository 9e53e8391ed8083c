//! The file behind `--config`: several disks with their settings, in TOML.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use qcow::crypt::Passphrase;
use serde::Deserialize;

use crate::settings::{Cache, DetectZeroes, Discard, DiskSettings, Format, SocketSettings};
use qcow::size::parse_size;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    #[serde(default)]
    disk: Vec<ConfigDisk>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigDisk {
    file: PathBuf,
    socket: PathBuf,
    format: Option<Format>,
    #[serde(default)]
    read_only: bool,
    #[serde(default = "one")]
    num_queues: u16,
    #[serde(default = "default_queue_size")]
    queue_size: u16,
    #[serde(default)]
    cache: Cache,
    #[serde(default)]
    discard: Discard,
    #[serde(default)]
    detect_zeroes: DetectZeroes,
    l2_cache_size: Option<String>,
    #[serde(default)]
    allow_backing: Vec<PathBuf>,
    #[serde(default)]
    pin_memory: bool,
    encrypt_key_file: Option<PathBuf>,
}

fn one() -> u16 {
    1
}

fn default_queue_size() -> u16 {
    256
}

/// The disks that the file at `path` names.
pub fn read(path: &Path) -> Result<Vec<DiskSettings>> {
    read_unnamed(path).with_context(|| path.display().to_string())
}

fn read_unnamed(path: &Path) -> Result<Vec<DiskSettings>> {
    let text = fs::read_to_string(path).map_err(|e| anyhow!("{}", qcow::error::reason(&e)))?;
    let file: ConfigFile = toml::from_str(&text).map_err(|e| {
        let before = &text[..e.span().map_or(0, |span| span.start)];
        anyhow!("line {}: {}", before.matches('\n').count() + 1, e.message().replace('\n', " "))
    })?;
    if file.disk.is_empty() {
        bail!("it names no disk; each needs a section [[disk]] with 'file' and 'socket'");
    }
    file.disk.into_iter().map(ConfigDisk::into_settings).collect()
}

impl ConfigDisk {
    fn into_settings(self) -> Result<DiskSettings> {
        let l2_cache_size = self.l2_cache_size.as_deref().map(parse_size).transpose();
        let key = self.encrypt_key_file.as_deref().map(Passphrase::from_file).transpose()?;
        let settings = DiskSettings {
            file: self.file,
            socket: SocketSettings::Path(self.socket),
            format: self.format,
            read_only: self.read_only,
            num_queues: self.num_queues,
            queue_size: self.queue_size,
            cache: self.cache,
            discard: self.discard,
            detect_zeroes: self.detect_zeroes,
            l2_cache_size: l2_cache_size.map_err(|e| anyhow!("l2-cache-size: {e}"))?,
            allow_backing: self.allow_backing,
            pin_memory: self.pin_memory,
            key: key.map(Arc::new),
        };
        let checked = settings.check();
        checked.map_err(|e| anyhow!("disk '{}': {e}", settings.file.display()))?;
        Ok(settings)
    }
}
