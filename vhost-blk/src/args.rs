//! The command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{ArgAction, Parser, ValueEnum};
use qcow::crypt::Passphrase;
use tracing::Level;

use crate::sandbox::Sandbox;
use crate::settings::{Cache, DetectZeroes, Discard, DiskSettings, Format, SocketSettings};
use crate::{config_file, inherited};
use qcow::size::parse_size;

const ABOUT: &str = "Serves disk images as vhost-user-blk devices.";

const AFTER_HELP: &str = "\
Several disks: give --blk-file and --socket-path (or --fd) several times, in the same order; the other options hold \
for all of them. Or name them in a file:

  # vhost-blk --config FILE.toml; 'file' and 'socket' are needed, everything else has the default of its option
  [[disk]]
  file = \"/srv/a.qcow2\"
  socket = \"/run/a.sock\"
  format = \"qcow2\"           # or \"raw\"
  read-only = false
  num-queues = 2
  queue-size = 256
  cache = \"writeback\"        # or \"none\", \"unsafe\"
  discard = \"unmap\"          # or \"ignore\"
  detect-zeroes = \"off\"      # or \"on\", \"unmap\"
  l2-cache-size = \"32M\"
  allow-backing = [\"/srv/base\"]
  pin-memory = false
  encrypt-key-file = \"/etc/keys/a\"

SIGTERM and SIGINT finish what is in flight, write everything back and close the images.

All disks of one process share its fate: a frontend whose guest memory is a file that it can shrink (QEMU's \
memory-backend-file, or a memfd without seals) can end the process. Run one vhost-blk per trust domain; QEMU's \
memory-backend-memfd seals its memory by default.
Exit codes: 0 clean, 1 cannot start, 2 wrong usage, 3 an image was lost while it was served.";

/// What was asked for on the command line.
#[derive(Debug, Parser)]
#[command(name = "vhost-blk", version, about = ABOUT, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Args {
    /// Make and listen on a UNIX socket at PATH; a stale one is replaced
    #[arg(long, value_name = "PATH")]
    socket_path: Vec<PathBuf>,

    /// Listen on the UNIX socket that was inherited as descriptor N
    #[arg(
        long, value_name = "N", conflicts_with = "socket_path",
        value_parser = clap::value_parser!(i32).range(0..)
    )]
    fd: Vec<RawFd>,

    /// The image to serve
    #[arg(long, value_name = "PATH")]
    blk_file: Vec<PathBuf>,

    /// Serve the disks that a file names (see below)
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "socket_path", "fd", "blk_file", "format", "read_only", "num_queues", "queue_size",
        "cache", "discard", "detect_zeroes", "l2_cache_size", "allow_backing", "pin_memory",
        "encrypt_key_file", "encrypt_key_fd",
    ])]
    config: Option<PathBuf>,

    /// Format of the image. Without it qcow2 is recognised, and anything else is refused unless --read-only is given
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Never write to the image
    #[arg(long)]
    read_only: bool,

    /// Queues, each with a thread of its own (1 to 256)
    #[arg(long, value_name = "N", default_value_t = 1)]
    num_queues: u16,

    /// Most entries of a queue (a power of two, 4 to 1024)
    #[arg(long, value_name = "N", default_value_t = 256)]
    queue_size: u16,

    /// How the host caches the image
    #[arg(long, value_name = "MODE", default_value = "writeback")]
    cache: Cache,

    /// What happens to space that the guest discards
    #[arg(long, value_name = "MODE", default_value = "unmap")]
    discard: Discard,

    /// What happens to writes of nothing but zeros
    #[arg(long, value_name = "MODE", default_value = "off")]
    detect_zeroes: DetectZeroes,

    /// Most memory for L2 tables in bytes, per image of the chain, taken as they are read (suffixes K, M, G, T) [default:
    /// what maps the disk, or 4 Mi clusters of it: 256 GiB in clusters of 64 KiB take 32M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    l2_cache_size: Option<u64>,

    /// Let images name backing files in DIR, too, and not only beside themselves; may be repeated
    #[arg(long, value_name = "DIR")]
    allow_backing: Vec<PathBuf>,

    /// The passphrase of images that are encrypted with LUKS is all that FILE holds, a line feed at its end too (for several
    /// disks with several passphrases see --config)
    #[arg(long, value_name = "FILE", conflicts_with = "encrypt_key_fd")]
    encrypt_key_file: Option<PathBuf>,

    /// As --encrypt-key-file, from a descriptor that the program was started with
    #[arg(long, value_name = "N")]
    encrypt_key_fd: Option<RawFd>,

    /// Register the guest's memory with the kernel: pays a little with --cache=none, and pins all of it, so that the host
    /// can neither overcommit nor reclaim it
    #[arg(long)]
    pin_memory: bool,

    /// Give up files, system calls and privileges that are not needed, before any guest is served. What is not expected
    /// ends the program with one line. Turn it off to trace or debug, or where the kernel has no seccomp
    #[arg(long, value_name = "MODE", default_value = "on")]
    sandbox: Sandbox,

    /// How to log to stderr
    #[arg(long, value_name = "FORMAT", default_value = "plain")]
    log: LogFormat,

    /// Log more; twice for everything
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,

    /// Log errors only
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,

    /// Print what this backend can do as JSON, and exit
    #[arg(long)]
    print_capabilities: bool,

    #[command(flatten)]
    unbuilt: Unbuilt,
}

/// Options that are settled but not built yet. They are known here to be refused in plain words.
#[derive(Debug, clap::Args)]
struct Unbuilt {
    #[arg(long, hide = true)]
    control_socket: Option<OsString>,
}

/// What log lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text each
    Plain,
    /// One JSON object per line
    Json,
}

impl Args {
    /// What kind of log lines to write.
    pub fn log_format(&self) -> LogFormat {
        self.log
    }

    /// From which level on to log.
    pub fn log_level(&self) -> Level {
        match self.verbose {
            _ if self.quiet => Level::ERROR,
            0 => Level::INFO,
            1 => Level::DEBUG,
            _ => Level::TRACE,
        }
    }

    /// Whether to confine the daemon.
    pub fn sandbox(&self) -> Sandbox {
        self.sandbox
    }

    /// Whether only the capabilities are wanted.
    pub fn wants_capabilities(&self) -> bool {
        self.print_capabilities
    }

    /// Refuses what makes no sense or is not built; the message is a sentence.
    pub fn check(&self) -> Result<(), String> {
        if let Some(option) = self.unbuilt.given() {
            return Err(format!("--{option} is not built yet"));
        }
        if self.config.is_some() || self.print_capabilities {
            return Ok(());
        }
        let sockets = self.socket_path.len() + self.fd.len();
        if self.blk_file.is_empty() || sockets == 0 {
            return Err("--blk-file and --socket-path (or --fd) are needed, or --config".to_owned());
        }
        if self.blk_file.len() != sockets {
            let files = self.blk_file.len();
            return Err(format!("{files} images and {sockets} sockets: each image needs its own"));
        }
        let mut numbers = self.fd.clone();
        numbers.extend(self.encrypt_key_fd);
        numbers.sort_unstable();
        if numbers.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("--fd: the same descriptor twice".to_owned());
        }
        let sample = self.disk(PathBuf::new(), SocketSettings::Path(PathBuf::new()), None);
        sample.check().map_err(|e| format!("--{e}"))
    }

    /// The disks to serve. Takes inherited descriptors over: call it once, before anything is opened.
    pub fn disks(&self) -> Result<Vec<DiskSettings>> {
        if let Some(config) = &self.config {
            return config_file::read(config);
        }
        let paths = self.socket_path.iter().cloned().map(|path| Ok(SocketSettings::Path(path)));
        let inherited = self
            .fd
            .iter()
            .map(|&number| Ok(SocketSettings::Inherited(number, inherited::take_socket(number)?)));
        let sockets = paths.chain(inherited).collect::<Result<Vec<_>>>()?;
        let key = self.key()?;
        let disk = |(file, socket)| self.disk(file, socket, key.clone());
        Ok(self.blk_file.iter().cloned().zip(sockets).map(disk).collect())
    }

    /// The passphrase, if there is one.
    fn key(&self) -> Result<Option<Arc<Passphrase>>> {
        let key = match (&self.encrypt_key_file, self.encrypt_key_fd) {
            (Some(path), _) => Passphrase::from_file(path)?,
            (None, Some(number)) => {
                let read = Passphrase::read(inherited::take_file(number)?);
                read.with_context(|| format!("descriptor {number}"))?
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Arc::new(key)))
    }

    fn disk(
        &self,
        file: PathBuf,
        socket: SocketSettings,
        key: Option<Arc<Passphrase>>,
    ) -> DiskSettings {
        DiskSettings {
            file,
            socket,
            format: self.format,
            read_only: self.read_only,
            num_queues: self.num_queues,
            queue_size: self.queue_size,
            cache: self.cache,
            discard: self.discard,
            detect_zeroes: self.detect_zeroes,
            l2_cache_size: self.l2_cache_size,
            allow_backing: self.allow_backing.clone(),
            pin_memory: self.pin_memory,
            key,
        }
    }
}

impl Unbuilt {
    fn given(&self) -> Option<&'static str> {
        let options = [("control-socket", &self.control_socket)];
        options.into_iter().find(|(_, value)| value.is_some()).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn images_and_sockets_come_in_pairs() {
        let parse = |args: &str| Args::try_parse_from(args.split(' ')).unwrap().check();
        assert!(parse("x --blk-file a --socket-path s").is_ok());
        assert!(parse("x --blk-file a --blk-file b --socket-path s").is_err());
        assert!(parse("x --blk-file a --blk-file b --fd 3 --fd 3").is_err());
        assert!(parse("x --blk-file a --socket-path s --queue-size 100").is_err());
        assert!(
            parse("x --blk-file a --socket-path s --control-socket c")
                .unwrap_err()
                .contains("not built")
        );
    }
}
