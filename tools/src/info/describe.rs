//! Reading what an image and the images below it say about themselves.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use qcow::Error;
use qcow::crypt::luks::LuksHeader;
use qcow::disk::uring::block_on;
use qcow::disk::{Disk, Identity};
use qcow::engine::Format;
use qcow::engine::bitmap::read_directory;
use qcow::engine::info::ImageInfo;
use qcow::format::bitmap::BitmapEntry;
use qcow::format::header::Header;
use qcow::limits::CHAIN_DEPTH_MAX;

use crate::failure::{Failure, Outcome};
use crate::image::{self, Opening};
use crate::source::{Below, Source};

/// One image of a chain.
#[derive(Debug)]
pub struct Description {
    /// Its file, as the user or the image above names it.
    pub path: PathBuf,
    /// What it says.
    pub info: ImageInfo,
    /// Its persistent bitmaps.
    pub bitmaps: Vec<BitmapEntry>,
    /// What it is stacked on.
    pub backing: Option<Backing>,
}

/// The backing file that an image names.
#[derive(Debug)]
pub struct Backing {
    /// The name in the image.
    pub name: String,
    /// Where that is, unless it is no plain path.
    pub path: Option<PathBuf>,
    /// The same for people and programs: a name that is no plain path stands for itself.
    pub full_name: String,
    /// Its format, if the image tells.
    pub format: Option<String>,
}

/// Describes the image that the command line calls `name`, opened as `opening` says, and, if `whole`, those below it.
pub fn chain(name: &Path, opening: &Opening<'_>, whole: bool) -> Outcome<Vec<Description>> {
    opening.check_options()?;
    let top = opening.source(name).and_then(|source| {
        let described = describe(&source, opening)?;
        match source.below {
            Below::Like(_) => {
                Err("Block format 'qcow2' does not support the option 'backing'".to_owned())
            }
            Below::AsNamed | Below::Nothing => Ok(described),
        }
    });
    let (identity, top) = top.map_err(|reason| image::could_not_open(name, &reason))?;
    let mut found = vec![top];
    let mut seen: Vec<Identity> = vec![identity];
    while whole && let Some(backing) = found.last().and_then(|image| image.backing.as_ref()) {
        let path = backing.path.clone().ok_or_else(|| not_a_path(&backing.name))?;
        let (identity, below) = describe_backing(&path, backing.format.as_deref(), opening)
            .map_err(|reason| image::could_not_open(&path, &reason))?;
        if seen.contains(&identity) {
            let path = path.display();
            return Err(Failure::new(format!("Backing file '{path}' creates an infinite loop.")));
        }
        if seen.len() == CHAIN_DEPTH_MAX {
            let path = path.display();
            let message =
                format!("{path}: the backing chain is longer than {CHAIN_DEPTH_MAX} images");
            return Err(Failure::new(message));
        }
        seen.push(identity);
        found.push(below);
    }
    Ok(found)
}

fn not_a_path(name: &str) -> Failure {
    let reason = "only plain local paths are opened";
    image::could_not_open(Path::new(name), reason)
}

fn describe_backing(
    path: &Path,
    format: Option<&str>,
    opening: &Opening<'_>,
) -> Result<(Identity, Description), String> {
    let format = format.map(image::parse_format).transpose()?;
    let source = Source { path: Some(path.to_owned()), format, ..Source::default() };
    describe(&source, opening)
}

/// Describes the image that `source` is; the error is the reason why that does not work.
pub fn describe(source: &Source, opening: &Opening<'_>) -> Result<(Identity, Description), String> {
    let path = unmistakable(source.path());
    let unusable = |e: Error| image::reason_not_open(&path, &e);
    let disk = opening.open_file_of(source)?;
    let key = opening.key_of(source)?;
    let info = ImageInfo::read_with(&disk, &path, source.format, key.as_deref());
    let info = block_on(info).map_err(unusable)?;
    let bitmaps = match &info.header {
        Some(header) => block_on(read_directory(&disk, header)).map_err(unusable)?,
        None => Vec::new(),
    };
    let backing = named_backing(&info).and_then(|(name, format)| backing_of(&path, name, format));
    Ok((disk.identity(), Description { path, info, bitmaps, backing }))
}

/// `path`, so written that what stands before a colon in it is not taken for a protocol.
fn unmistakable(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    match bytes.iter().find(|byte| b":/".contains(byte)) {
        Some(b':') => Path::new(".").join(path),
        _ => path.to_owned(),
    }
}

/// The backing file that an image names, and its format.
fn named_backing(info: &ImageInfo) -> Option<(&OsStr, Option<String>)> {
    let sealed = info.sealed.as_ref().and_then(|sealed| sealed.state.as_ref());
    if let Some((name, format)) = sealed.and_then(|state| state.details.backing.as_ref()) {
        return Some((name, format.clone()));
    }
    let header = info.header.as_ref()?;
    Some((header.backing_name.as_ref()?, header.extensions.backing_format.clone()))
}

fn backing_of(path: &Path, name: &OsStr, format: Option<String>) -> Option<Backing> {
    let path = qcow::gate::resolve_name(path, name).ok();
    let full_name = path.as_ref().map_or(name.to_string_lossy(), |path| path.to_string_lossy());
    Some(Backing {
        name: name.to_string_lossy().into_owned(),
        full_name: full_name.into_owned(),
        path,
        format,
    })
}

impl Description {
    /// The format's name.
    pub fn format_name(&self) -> String {
        self.info.format.to_string()
    }

    /// Bytes of the file in whole sectors, as QEMU counts files.
    pub fn file_size(&self) -> u64 {
        qcow::addr::sector_ceil(self.info.file_len).unwrap_or(self.info.file_len)
    }

    /// The header, of a file that is LUKS and nothing else.
    pub fn luks(&self) -> Option<&LuksHeader> {
        self.info.luks.as_ref().filter(|_| self.info.format == Format::Luks)
    }

    /// The header, of a qcow2 image.
    pub fn qcow2(&self) -> Option<&Header> {
        self.info.header.as_ref().filter(|_| self.info.format == Format::Qcow2)
    }
}
