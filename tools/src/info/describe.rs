//! Reading what an image and the images below it say about themselves.

use std::path::{Path, PathBuf};

use qcow::Error;
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

/// Describes the image at `path` and, if `whole`, those below it.
pub fn chain(
    path: &Path,
    format: Option<&str>,
    shared: bool,
    whole: bool,
) -> Outcome<Vec<Description>> {
    let mut found: Vec<Description> = Vec::new();
    let mut seen: Vec<Identity> = Vec::new();
    let mut next = Some((path.to_owned(), format.map(str::to_owned)));
    while let Some((path, format)) = next.take() {
        let (identity, description) = describe(path, format.as_deref(), shared)?;
        if seen.contains(&identity) {
            let path = description.path.display();
            return Err(Failure::new(format!("Backing file '{path}' creates an infinite loop.")));
        }
        if seen.len() == CHAIN_DEPTH_MAX {
            let path = description.path.display();
            let message =
                format!("{path}: the backing chain is longer than {CHAIN_DEPTH_MAX} images");
            return Err(Failure::new(message));
        }
        seen.push(identity);
        if let Some(backing) = description.backing.as_ref().filter(|_| whole) {
            let below = backing.path.clone().ok_or_else(|| not_a_path(&backing.name))?;
            next = Some((below, backing.format.clone()));
        }
        found.push(description);
    }
    Ok(found)
}

fn not_a_path(name: &str) -> Failure {
    let reason = "only plain local paths are opened";
    image::could_not_open(Path::new(name), reason)
}

pub fn describe(
    path: PathBuf,
    format: Option<&str>,
    shared: bool,
) -> Outcome<(Identity, Description)> {
    let unusable = |e: Error| image::could_not_open(&path, &image::reason_not_open(&path, &e));
    let format = format.map(image::parse_format).transpose();
    let format = format.map_err(|reason| image::could_not_open(&path, &reason))?;
    let disk = Opening { shared, ..Opening::default() }.open_file(&path)?;
    let info = block_on(ImageInfo::read(&disk, &path, format)).map_err(unusable)?;
    let bitmaps = match &info.header {
        Some(header) => block_on(read_directory(&disk, header)).map_err(unusable)?,
        None => Vec::new(),
    };
    let backing = info.header.as_ref().and_then(|header| backing_of(&path, header));
    Ok((disk.identity(), Description { path, info, bitmaps, backing }))
}

fn backing_of(path: &Path, header: &Header) -> Option<Backing> {
    let name = header.backing_name.as_ref()?;
    let path = qcow::gate::resolve_name(path, name).ok();
    let full_name = path.as_ref().map_or(name.to_string_lossy(), |path| path.to_string_lossy());
    Some(Backing {
        name: name.to_string_lossy().into_owned(),
        full_name: full_name.into_owned(),
        path,
        format: header.extensions.backing_format.clone(),
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

    /// The header, of a qcow2 image.
    pub fn qcow2(&self) -> Option<&Header> {
        self.info.header.as_ref().filter(|_| self.info.format == Format::Qcow2)
    }
}
