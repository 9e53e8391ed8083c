//! Another backing file for an image, or none.
//!
//! What the disk shows must not change with it: whoever rebases writes what differs into the image first. That is made
//! durable before the header names the other file, which happens in one sector.

use std::ffi::OsString;
use std::sync::atomic::Ordering;

use super::Image;
use super::layer::{Layer, Qcow2};
use crate::disk::{Disk, Payload};
use crate::error::{Error, Result};
use crate::format::header::Header;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// Zeros that one write carries.
const ZERO_WRITE_LEN: u64 = 1 << 20;

impl<D: Disk> Image<D> {
    /// Gets the image ready for a backing file that it does not name yet: from now on zeros are said where they are written,
    /// even where nothing shows through as long as there is no such file. No request may be in flight.
    pub fn expect_backing(&self) {
        match self.top() {
            Layer::Qcow2(qcow2) => qcow2.names_backing.store(true, Ordering::Release),
            Layer::Sealed(sealed) => sealed.expect_backing(),
            Layer::Raw(_) | Layer::Luks(_) => {}
        }
    }

    /// Makes `len` bytes at `at`, of which the image has nothing yet, read as zeros whatever backing file it gets.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn write_lasting_zeroes(&self, at: u64, len: u64) -> Result<()> {
        let end = at + len;
        let qcow2 = match self.top() {
            Layer::Qcow2(qcow2) => qcow2,
            Layer::Sealed(sealed) => {
                return self.write_lasting_zeroes_sealed(sealed, at, len).await;
            }
            Layer::Raw(_) | Layer::Luks(_) => return self.write_zeroes(at, len, false).await,
        };
        let whole = match qcow2.can_map_zeros() && qcow2.has_backing() {
            true => {
                let unit = qcow2.geometry.cluster_size();
                qcow2.whole_parts(at, len, self.virtual_size(), unit)
            }
            false => None,
        };
        // What no mapping can say is said in bytes.
        let (mapped, behind) = whole.map_or((end, end), |whole| {
            let mapped = qcow2.geometry.subcluster_start(whole.first).get();
            (mapped, whole.end_offset(qcow2.geometry).get().min(end))
        });
        self.write_zeros_as_bytes(at, mapped - at).await?;
        if behind > mapped {
            self.write_zeroes(mapped, behind - mapped, false).await?;
        }
        self.write_zeros_as_bytes(behind, end - behind).await
    }

    async fn write_zeros_as_bytes(&self, at: u64, len: u64) -> Result<()> {
        let mut done = 0;
        while done < len {
            let zeros = Payload::zeros(ZERO_WRITE_LEN.min(len - done));
            self.write(at + done, &zeros).await?;
            done += zeros.len();
        }
        Ok(())
    }

    /// Makes the image name another backing file, with its format, or none. The images that are open below this one stay
    /// what they are: the image has to be opened anew to show the other file. All that completed before is durable then, and
    /// so is the name; a crash leaves the old name or the new one. No request may be in flight.
    ///
    /// # Errors
    /// The image is raw (`Unsupported`) or read-only; the name is too long, or the image's data file has to show the disk
    /// by itself (`Invalid`); there is no room for the name in the header (`Limit`); or the host failed.
    pub async fn set_backing(&self, backing: Option<(OsString, Option<String>)>) -> Result<()> {
        self.check_change(0, 0)?;
        let qcow2 = match self.top() {
            Layer::Qcow2(qcow2) => qcow2,
            Layer::Sealed(sealed) => return sealed.set_backing(backing).await,
            Layer::Raw(_) | Layer::Luks(_) => {
                let what = "a raw image has no backing file";
                return Err(Error::unsupported(what).in_file(self.top().path()));
            }
        };
        qcow2.prepare_for_change().await?;
        if !Bug::BackingBeforeData.is_seeded() {
            qcow2.write_back().await?;
        }
        qcow2.switch_backing(backing).await
    }
}

impl<D: Disk> Qcow2<D> {
    async fn switch_backing(&self, backing: Option<(OsString, Option<String>)>) -> Result<()> {
        let _structure = self.structure.acquire().await;
        let mut header: Header = lock(&self.header).clone();
        if backing.is_some() && header.has_raw_external_data() {
            let what = "an image whose data file shows the disk by itself has no backing file";
            return Err(self.named(Error::invalid(what)));
        }
        let (name, format) = backing.unzip();
        let names_backing = name.is_some();
        header.backing_name = name;
        header.extensions.backing_format = format.flatten();
        self.replace_header(header).await?;
        self.names_backing.store(names_backing, Ordering::Release);
        Ok(())
    }
}
