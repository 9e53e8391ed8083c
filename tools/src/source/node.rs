//! What a block node's options ask for, as far as this program serves them.

use std::path::{Path, PathBuf};

use qcow::engine::{DetectZeroes, Discard, Format};

use super::options::{Options, Value};
use super::{blkdebug, qcow2, to_path};
use crate::image;
use crate::keyval;

/// An image that the command line names, and how it is to be opened.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Its file. Only a backing image may be without: the image above it then names it.
    pub path: Option<PathBuf>,
    /// Its format; to be found out where it is not given.
    pub format: Option<Format>,
    /// Nobody else is asked about the file.
    pub unlocked: bool,
    /// The driver that wants it to be a device, if one does.
    pub device: Option<&'static str>,
    /// The part of the file that the image is, for raw ones: offset and, if it is not the rest, length.
    pub window: Option<(u64, Option<u64>)>,
    /// Options that all nodes have.
    pub common: Common,
    /// The image below it.
    pub below: Below,
    /// Bytes of L2 tables that are to be cached as one: at most a cluster.
    pub l2_cache_entry_len: Option<u64>,
    /// What is said about its encryption.
    pub encrypt: Encrypt,
    /// The file that has its data, in the place of the one that it names.
    pub data_file: Option<PathBuf>,
}

impl Source {
    /// Its file; nothing where it has none of its own.
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// What is said of the image `depth` places below, if anything is.
    pub fn layer(&self, depth: usize) -> Option<&Self> {
        match (&self.below, depth) {
            (_, 0) => Some(self),
            (Below::Like(below), _) => below.layer(depth - 1),
            (Below::AsNamed | Below::Nothing, _) => None,
        }
    }
}

/// What is said about an image's encryption.
#[derive(Clone, Debug, Default)]
pub struct Encrypt {
    /// Which it is to be, if that is said.
    pub format: Option<String>,
    /// The name of the secret with the key.
    pub key_secret: Option<String>,
    /// It is named as for a file that is encrypted as a whole.
    pub is_of_file: bool,
}

/// What is said about the backing image.
#[derive(Clone, Debug, Default)]
pub enum Below {
    /// Nothing: it is what the image names.
    #[default]
    AsNamed,
    /// There is none, whatever the image names.
    Nothing,
    /// It is opened like this.
    Like(Box<Source>),
}

/// Options that all nodes have.
#[derive(Clone, Debug, Default)]
pub struct Common {
    /// For reading only.
    pub read_only: Option<bool>,
    /// Whatever other programs do with the file.
    pub force_share: Option<bool>,
    /// Past the page cache.
    pub direct: Option<bool>,
    /// Without flushes.
    pub no_flush: Option<bool>,
    /// What discards do.
    pub discard: Option<Discard>,
    /// What writes of zeros do.
    pub detect_zeroes: Option<DetectZeroes>,
}

/// The image in `path`, if that was given as a name, with `options`.
pub fn top(path: Option<PathBuf>, mut options: Options) -> Result<Source, String> {
    let source = node(path, &mut options)?;
    match source.path {
        Some(_) => Ok(source),
        None if source.format.is_none() => Err("Must specify either driver or file".to_owned()),
        None => Err("A block device must be specified for \"file\"".to_owned()),
    }
}

/// A format node; it has no path where nothing says one.
fn node(path: Option<PathBuf>, options: &mut Options) -> Result<Source, String> {
    blkdebug::take_out(options)?;
    take_raw_out(options);
    let driver = options.take_text("driver");
    if let Some(leaf) = driver.as_deref().and_then(leaf_driver) {
        return leaf_alone(leaf, path, options);
    }
    let format = driver.as_deref().map(image::parse_format).transpose()?;
    let mut source = Source { format, ..Source::default() };
    let file = file_child(path, options)?;
    source.common = Common::take(options)?;
    if let Some(file) = file {
        source.path = Some(file.path);
        source.common.add(&file.common);
        source.unlocked = file.unlocked;
        source.device = file.device;
    }
    if let Some(Value::Text(name)) = options.take("data-file") {
        return Err(no_such_node(&name));
    }
    let data_file = options.take_child("data-file");
    if !data_file.is_empty() {
        source.data_file = Some(protocol(None, data_file)?.path);
    }
    source.below = below(options)?;
    match format {
        Some(Format::Raw) => source.window = window(options)?,
        Some(Format::Luks) => source.encrypt = key_of_file(options),
        Some(Format::Qcow2) => {
            (source.l2_cache_entry_len, source.encrypt) = qcow2::check(options)?;
        }
        None => {
            let whole = key_of_file(options);
            (source.l2_cache_entry_len, source.encrypt) = qcow2::check(options)?;
            if whole.is_of_file {
                source.encrypt = whole;
            }
        }
    }
    match options.first_name() {
        None => Ok(source),
        Some(name) => {
            let format = format.unwrap_or(Format::Raw);
            Err(format!("Block format '{format}' does not support the option '{name}'"))
        }
    }
}

/// What is said about the encryption of a file as a whole.
fn key_of_file(options: &mut Options) -> Encrypt {
    let key_secret = options.take_text("key-secret");
    Encrypt { is_of_file: key_secret.is_some(), key_secret, format: None }
}

/// Raw on top of another format, of all its disk, shows that disk as it is: the node below stands in its place.
fn take_raw_out(options: &mut Options) {
    let below =
        options.get("file.driver").is_some_and(|driver| ["qcow2", "luks"].contains(&driver));
    let whole = options.get("offset").or(options.get("size")).is_none();
    if options.get("driver") == Some("raw") && below && whole {
        options.take("driver");
        let mut file = options.take_child("file");
        file.add_missing(std::mem::take(options));
        *options = file;
    }
}

/// The file of a format node.
struct File {
    path: PathBuf,
    /// Options that count for the format node, too.
    common: Common,
    unlocked: bool,
    device: Option<&'static str>,
}

/// The driver called `name`, if it is one of those for files.
fn leaf_driver(name: &str) -> Option<&'static str> {
    ["file", "host_device", "host_cdrom"].into_iter().find(|driver| *driver == name)
}

/// The file of a format node, if options or a name say which it is.
fn file_child(path: Option<PathBuf>, options: &mut Options) -> Result<Option<File>, String> {
    if let Some(name) = options.take_text("file") {
        return Err(no_such_node(&name));
    }
    let file = options.take_child("file");
    if path.is_none() && file.is_empty() {
        return Ok(None);
    }
    protocol(path, file).map(Some)
}

/// A node that stands where a file is meant.
fn protocol(path: Option<PathBuf>, mut file: Options) -> Result<File, String> {
    blkdebug::take_out(&mut file)?;
    let driver = file.take_text("driver").unwrap_or_else(|| "file".to_owned());
    match leaf_driver(&driver) {
        Some(driver) => leaf(driver, path, &mut file),
        None if driver == "raw" => raw_inside(path, &mut file),
        None => match image::parse_format(&driver) {
            Ok(format) => Err(format!("format '{format}' is not supported inside another image")),
            Err(message) => Err(message),
        },
    }
}

/// Raw in the place of a file: the file below it once more.
fn raw_inside(path: Option<PathBuf>, options: &mut Options) -> Result<File, String> {
    let inner = file_child(path, options)?;
    let common = Common::take(options)?;
    if let Some(name) = options.first_name() {
        return Err(format!("option 'file.{name}' is not supported"));
    }
    let Some(mut file) = inner else {
        return Err("A block device must be specified for \"file\"".to_owned());
    };
    file.common.add(&common);
    Ok(file)
}

/// A file that is looked at as it is.
fn leaf_alone(
    driver: &'static str,
    path: Option<PathBuf>,
    options: &mut Options,
) -> Result<Source, String> {
    let File { path, common, unlocked, device } = leaf(driver, path, options)?;
    let (path, format) = (Some(path), Some(Format::Raw));
    Ok(Source { path, format, common, unlocked, device, ..Source::default() })
}

/// A node of a driver for files.
fn leaf(
    driver: &'static str,
    path: Option<PathBuf>,
    options: &mut Options,
) -> Result<File, String> {
    let named = options.take_text("filename");
    let path = match (path, named) {
        (Some(_), Some(_)) => {
            return Err("Can't specify 'file' and 'filename' options at the same time".to_owned());
        }
        (Some(path), None) => path,
        (None, named) => to_path(&named.unwrap_or_default()),
    };
    if path.as_os_str().is_empty() {
        return Err(format!("The '{driver}' block driver requires a file name"));
    }
    let common = Common::take(options)?;
    // Ways of doing I/O: there is one here, which keeps what they promise.
    for name in ["aio", "aio-max-batch", "drop-cache", "x-check-cache-dropped"] {
        options.take(name);
    }
    let unlocked = match options.take_text("locking").as_deref() {
        None | Some("on" | "auto") => false,
        Some("off") => true,
        Some(other) => return Err(format!("invalid parameter value: {other}")),
    };
    match options.first_name() {
        None => Ok(File { path, common, unlocked, device: (driver != "file").then_some(driver) }),
        Some(name) => Err(format!("Block protocol '{driver}' doesn't support the option '{name}'")),
    }
}

/// What options say about the backing image.
fn below(options: &mut Options) -> Result<Below, String> {
    match options.take("backing") {
        Some(Value::Text(name)) if !name.is_empty() => return Err(no_such_node(&name)),
        Some(_) => return Ok(Below::Nothing),
        None => {}
    }
    let mut backing = options.take_child("backing");
    if backing.is_empty() {
        return Ok(Below::AsNamed);
    }
    Ok(Below::Like(Box::new(node(None, &mut backing)?)))
}

fn window(options: &mut Options) -> Result<Option<(u64, Option<u64>)>, String> {
    let mut take = |name| {
        let text = options.take_text(name);
        text.map(|text| keyval::size_value(name, &text)).transpose()
    };
    let (offset, size) = (take("offset")?, take("size")?);
    if size.is_some_and(|size| size % 512 != 0) {
        return Err("Specified size is not multiple of 512".to_owned());
    }
    Ok((offset.is_some() || size.is_some()).then(|| (offset.unwrap_or(0), size)))
}

impl Common {
    /// Takes what belongs here out of `options`.
    fn take(options: &mut Options) -> Result<Self, String> {
        let mut switch = |name| {
            let text = options.take_text(name);
            text.map(|text| keyval::bool_value(name, &text)).transpose()
        };
        let read_only = switch("read-only")?;
        let force_share = switch("force-share")?;
        let (direct, no_flush) = (switch("cache.direct")?, switch("cache.no-flush")?);
        switch("auto-read-only")?;
        let discard = match options.take_text("discard").as_deref() {
            None => None,
            Some("ignore" | "off") => Some(Discard::Ignore),
            Some("unmap" | "on") => Some(Discard::Unmap),
            Some(_) => return Err("Invalid discard option".to_owned()),
        };
        let detect_zeroes = match options.take_text("detect-zeroes").as_deref() {
            None => None,
            Some("off") => Some(DetectZeroes::Off),
            Some("on") => Some(DetectZeroes::On),
            Some("unmap") if discard == Some(Discard::Ignore) => {
                return Err(
                    "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap"
                        .to_owned(),
                );
            }
            Some("unmap") => Some(DetectZeroes::Unmap),
            Some(other) => return Err(format!("invalid parameter value: {other}")),
        };
        // There is nobody who would ask for a node by its name.
        options.take("node-name");
        Ok(Self { read_only, force_share, direct, no_flush, discard, detect_zeroes })
    }

    /// What `file`, a child's options, say where these say nothing. Its discards and zeros are its own affair.
    fn add(&mut self, file: &Self) {
        self.read_only = self.read_only.or(file.read_only);
        self.force_share = self.force_share.or(file.force_share);
        self.direct = self.direct.or(file.direct);
        self.no_flush = self.no_flush.or(file.no_flush);
    }
}

fn no_such_node(name: &str) -> String {
    format!("Cannot find device='{name}' nor node-name='{name}'")
}
