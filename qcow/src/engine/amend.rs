//! Changing what an image is: its version of the format, and its features.
//!
//! Whatever the new header relies on is made so, durably, before the header is replaced, which happens in one sector. The
//! width of its counts is changed without opening the image: see [`super::check::change_refcount_width`].

use std::ffi::OsString;

use super::Image;
use super::layer::{Layer, Qcow2};
use super::read::Content;
use super::zero::{Change, ZERO_WRITE_LEN};
use crate::addr::GuestOffset;
use crate::disk::{Disk, Payload};
use crate::error::{Error, Result};
use crate::format::compression::CompressionType;
use crate::format::feature::{Autoclear, Compatible, FeatureNames, Incompatible};
use crate::format::header::{HEADER_LENGTH_V2, HEADER_LENGTH_V3, Header, Version};
use crate::format::snapshot::{SnapshotEntry, encode_table};
use crate::meta::span::Span;
use crate::sync::lock;

/// Refcount width of version 2: `1 << 4` bits.
const REFCOUNT_ORDER_V2: u32 = 4;

impl<D: Disk> Image<D> {
    /// Makes it a version 3 image, unless it is one. No request may be in flight, and no other may follow: the image has to be
    /// closed, and opened anew.
    ///
    /// # Errors
    /// The image is raw (`Unsupported`) or read-only; a snapshot does not say its own size, which version 3 asks for
    /// (`Unsupported`); there is no room in the header (`Limit`); or the host failed.
    pub async fn upgrade(&self) -> Result<()> {
        let qcow2 = self.amendable().await?;
        let names = FeatureNames::for_new_image(qcow2.geometry.cluster_bits());
        qcow2.check_snapshots_of_version3().await?;
        qcow2
            .amend_header(|header| {
                if header.version == Version::V3 {
                    return;
                }
                header.version = Version::V3;
                header.header_length = HEADER_LENGTH_V3;
                header.extensions.feature_names = names;
            })
            .await
    }

    /// Fails where the image has what version 2 cannot express; its clusters are not looked at.
    ///
    /// # Errors
    /// As [`Self::downgrade`].
    pub async fn check_downgradable(&self) -> Result<()> {
        let qcow2 = self.amendable().await?;
        qcow2.check_downgradable(self.virtual_size()).await.map_err(|e| qcow2.named(e))
    }

    /// Makes it a version 2 image, unless it is one. What reads as zeros by its mapping alone is given zeros to read, or no
    /// mapping. As for [`Self::upgrade`], nothing may be in flight or follow.
    ///
    /// # Errors
    /// The image has what version 2 cannot express (`Unsupported`, with the reason in QEMU's words); it is raw or read-only;
    /// or the host failed.
    pub async fn downgrade(&self) -> Result<()> {
        let qcow2 = self.amendable().await?;
        qcow2.check_downgradable(self.virtual_size()).await.map_err(|e| qcow2.named(e))?;
        self.expand_zeros(qcow2).await?;
        qcow2.write_back().await?;
        qcow2
            .amend_header(|header| {
                header.version = Version::V2;
                header.header_length = HEADER_LENGTH_V2;
                header.incompatible = Incompatible(0);
                header.compatible = Compatible(0);
                header.autoclear = Autoclear(0);
                header.compression = CompressionType::Deflate;
                header.unknown_fields = Vec::new();
                header.extensions.feature_names = None;
            })
            .await
    }

    /// Lets other programs postpone counts, or not; this engine never does.
    ///
    /// # Errors
    /// The image is of version 2 (`Unsupported`), raw or read-only; or the host failed.
    pub async fn set_lazy_refcounts(&self, lazy: bool) -> Result<()> {
        let qcow2 = self.amendable().await?;
        if lazy && lock(&qcow2.header).version == Version::V2 {
            let what = "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)";
            return Err(qcow2.named(Error::unsupported(what)));
        }
        let flag = Compatible::LAZY_REFCOUNTS;
        qcow2
            .amend_header(|header| {
                header.compatible = match lazy {
                    true => header.compatible.with(flag),
                    false => header.compatible.without(flag),
                };
            })
            .await
    }

    /// Lets the external data file differ from the disk.
    ///
    /// # Errors
    /// The image is raw or read-only, or the host failed.
    pub async fn forget_raw_data_file(&self) -> Result<()> {
        let qcow2 = self.amendable().await?;
        qcow2
            .amend_header(|header| {
                header.autoclear = header.autoclear.without(Autoclear::RAW_EXTERNAL_DATA);
            })
            .await
    }

    /// Makes the image name another external data file, or none: then whoever opens it has to say which. The file that is
    /// open stays in use.
    ///
    /// # Errors
    /// The image is raw or read-only, its data lies in the image itself (`Invalid`), there is no room for the name in the
    /// header (`Limit`), or the host failed.
    pub async fn name_data_file(&self, name: Option<OsString>) -> Result<()> {
        let qcow2 = self.amendable().await?;
        if !lock(&qcow2.header).has_external_data() {
            return Err(qcow2.named(Error::invalid("the image has no external data file")));
        }
        qcow2.amend_header(|header| header.extensions.data_file = name).await
    }

    /// The image, about to be changed, with all that came before durable.
    async fn amendable(&self) -> Result<&Qcow2<D>> {
        self.check_change(0, 0)?;
        let Layer::Qcow2(qcow2) = self.top() else {
            let what = "a raw image has no options to amend";
            return Err(Error::unsupported(what).in_file(self.top().path()));
        };
        qcow2.prepare_for_change().await?;
        qcow2.write_back().await?;
        Ok(qcow2)
    }

    /// Gives what reads as zeros by its mapping no mapping, or, where a backing file would show through, zeros to read.
    async fn expand_zeros(&self, qcow2: &Qcow2<D>) -> Result<()> {
        let (size, cluster) = (self.virtual_size(), qcow2.geometry.cluster_size());
        let mut at = 0;
        while at < size {
            let source = {
                let _inside = self.enter();
                self.resolve(0, at, size - at).await?
            };
            let is_zeros = source.depth == 0 && matches!(source.content, Content::Zeros { .. });
            if is_zeros && qcow2.has_backing() {
                let len = source.len.min(ZERO_WRITE_LEN);
                self.write_clusters(qcow2, at, &Payload::zeros(len)).await?;
                at += len;
                continue;
            }
            if is_zeros {
                let first = qcow2.geometry.guest_cluster(GuestOffset::new(at));
                let span = Span::of_clusters(qcow2.geometry, first, source.len.div_ceil(cluster));
                self.change_span(qcow2, span, Change::Unlink).await?;
            }
            at += source.len;
        }
        Ok(())
    }
}

impl<D: Disk> Qcow2<D> {
    async fn amend_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let _structure = self.structure.acquire().await;
        let mut header = lock(&self.header).clone();
        change(&mut header);
        self.replace_header(header).await
    }

    /// Fails where an entry of the snapshot table is shorter than version 3 asks for.
    async fn check_snapshots_of_version3(&self) -> Result<()> {
        let (snapshots, len) = self.read_snapshot_table().await?;
        match encode_table(&snapshots)?.len() as u64 == len {
            true => Ok(()),
            false => {
                let what = "a snapshot does not say its own size, as version 3 asks for";
                Err(self.named(Error::unsupported(what)))
            }
        }
    }

    /// Fails where the image has what version 2 cannot express.
    async fn check_downgradable(&self, size: u64) -> Result<()> {
        let header = lock(&self.header).clone();
        if header.refcount_order != REFCOUNT_ORDER_V2 {
            return Err(Error::unsupported("compat=0.10 requires refcount_bits=16"));
        }
        if header.has_external_data() {
            return Err(Error::unsupported("Cannot downgrade an image with a data file"));
        }
        let (snapshots, _) = self.read_snapshot_table().await?;
        let is_new = |s: &SnapshotEntry| s.disk_size != size || s.vm_state_size > u32::MAX.into();
        if snapshots.iter().any(is_new) {
            return Err(Error::unsupported("Internal snapshots prevent downgrade of image"));
        }
        let incompatible = header.incompatible.without(Incompatible::COMPRESSION_TYPE);
        if !incompatible.is_empty() {
            let bits = incompatible.0;
            let what =
                format!("Cannot downgrade an image with incompatible features {bits:#x} set");
            return Err(Error::unsupported(what));
        }
        if header.extensions.bitmaps.is_some() {
            let what = "Cannot downgrade an image with persistent bitmaps: remove them first";
            return Err(Error::unsupported(what));
        }
        Ok(())
    }
}
