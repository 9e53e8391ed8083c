//! Reading: each byte from the topmost image of the chain that has it.

use std::sync::atomic::Ordering;

use super::Image;
use super::layer::{Layer, Qcow2};
use crate::addr::{GuestOffset, HostOffset};
use crate::disk::{Disk, Payload};
use crate::encrypted::DataPlace;
use crate::error::Result;
use crate::exec::try_join_all;
use crate::format::entry::CompressedExtent;
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::drain::Inside;
use crate::meta::lookaside::Right;
use crate::meta::map::Extent;
use crate::seeded_bugs::Bug;

/// Where a stretch of the virtual disk comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// The image that has it; the last one of the chain where none has.
    pub depth: usize,
    /// What that image says.
    pub content: Content,
    /// How many bytes are alike.
    pub len: u64,
}

/// What a stretch of the virtual disk is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No image has anything here: zeros. Where the last one that was asked has a place all the same, with nothing there.
    Nothing { host: Option<HostOffset> },
    /// Zeros that an image says are there, and where it keeps space for them.
    Zeros { host: Option<HostOffset> },
    /// Bytes of the image's file.
    Bytes(HostOffset),
    /// A compressed cluster or a part of it.
    Compressed { extent: CompressedExtent, skip: u64 },
    /// Sealed clusters, compressed or not.
    Sealed { compressed: bool },
}

impl Content {
    const NOTHING: Self = Self::Nothing { host: None };

    pub fn reads_as_zeros(self) -> bool {
        matches!(self, Self::Nothing { .. } | Self::Zeros { .. })
    }
}

impl<D: Disk> Image<D> {
    /// Fills `into` with the disk's bytes from `at` on.
    ///
    /// # Errors
    /// The range does not lie inside the disk, the image is damaged there, or the host failed. The content of `into` is
    /// then undefined.
    pub async fn read(&self, at: u64, into: &Payload) -> Result<()> {
        self.check_transfer(at, into.len())?;
        self.read_from(0, at, into).await
    }

    /// Keeps clusters that are freed from now on from being reused while the request that holds this runs. Only the top
    /// image is ever changed.
    pub(super) fn enter(&self) -> Option<Inside<'_>> {
        match self.top() {
            Layer::Qcow2(qcow2) => Some(qcow2.drain.enter()),
            Layer::Sealed(sealed) => Some(sealed.drain.enter()),
            Layer::Raw(_) | Layer::Luks(_) => None,
        }
    }

    /// As [`Self::read`], of the chain from `depth` down.
    pub(super) async fn read_from(&self, depth: usize, at: u64, into: &Payload) -> Result<()> {
        let _inside = self.enter();
        let source = self.resolve(depth, at, into.len()).await?;
        if source.len == into.len() {
            self.fill(source, at, into).await?;
        } else {
            Box::pin(self.read_pieces(depth, at, into, source)).await?;
        }
        match self.top() {
            Layer::Qcow2(qcow2) if depth == 0 && qcow2.flush_lost.load(Ordering::Acquire) => {
                Box::pin(self.check_survived(at, into.len())).await
            }
            _ => Ok(()),
        }
    }

    /// Fills `into` from several places, of which `first` is where it begins.
    async fn read_pieces(
        &self,
        depth: usize,
        at: u64,
        into: &Payload,
        first: Source,
    ) -> Result<()> {
        let mut pieces = vec![(first, at, into.slice(0, first.len))];
        let mut done = first.len;
        while done < into.len() {
            let source = self.resolve(depth, at + done, into.len() - done).await?;
            pieces.push((source, at + done, into.slice(done, source.len)));
            done += source.len;
        }
        let reads = pieces.iter().map(|(source, at, part)| self.fill(*source, *at, part));
        try_join_all(IN_FLIGHT_MAX, reads).await
    }

    /// Fills `into`, the disk from `at` on, all of which comes from `source`.
    async fn fill(&self, source: Source, at: u64, into: &Payload) -> Result<()> {
        let is_nothing = matches!(source.content, Content::Nothing { .. });
        if is_nothing && Bug::ShortBackingRead.is_seeded() {
            return Ok(());
        }
        if source.content.reads_as_zeros() {
            into.zero(0, into.len());
            return Ok(());
        }
        self.fetch(source, at, into).await
    }

    /// Fails where what has just been read may have been lost meanwhile, with a flush that failed.
    async fn check_survived(&self, at: u64, len: u64) -> Result<()> {
        let (depth, mut done) = (0, 0);
        while done < len {
            done += self.resolve(depth, at + done, len - done).await?.len;
        }
        Ok(())
    }

    /// Says where the bytes from `at` on come from, for at most `len` and at least one byte; the top image's tables reach
    /// that far. The caller is inside the drain of each image.
    pub(super) async fn resolve(&self, depth: usize, at: u64, len: u64) -> Result<Source> {
        if len == 0 {
            return Ok(Source { depth, content: Content::NOTHING, len });
        }
        let (mut depth, mut len) = (depth, len);
        loop {
            let layer = &self.layers_from(depth)[0];
            let last = depth + 1 == self.layer_count();
            // Where the top image ends is the caller's business: a resize looks behind that end before it moves it.
            if depth > 0 {
                let Some(left) = layer.virtual_size().checked_sub(at).filter(|&left| left > 0)
                else {
                    // A short image in the middle of a chain ends what lies below it, too: the one above it has the zeros.
                    return Ok(Source { depth: depth - 1, content: Content::NOTHING, len });
                };
                len = len.min(left);
            }
            let (content, reach) = match layer {
                Layer::Raw(_) => (Content::Bytes(HostOffset::new(at)), len),
                Layer::Luks(luks) => (Content::Bytes(luks.raw().place_of(at)), len),
                Layer::Qcow2(qcow2) => qcow2.resolve(at, len).await?,
                Layer::Sealed(sealed) => sealed.resolve(at, len).await?,
            };
            len = reach;
            match content {
                Content::Nothing { .. } if !last => depth += 1,
                content => return Ok(Source { depth, content, len }),
            }
        }
    }

    async fn fetch(&self, source: Source, at: u64, into: &Payload) -> Result<()> {
        let layer = &self.layers_from(source.depth)[0];
        match (layer, source.content) {
            (Layer::Raw(raw), Content::Bytes(_)) => raw.read(at, into).await,
            (Layer::Luks(luks), Content::Bytes(_)) => luks.read(at, into).await,
            (Layer::Sealed(sealed), Content::Sealed { .. }) => sealed.read(at, into).await,
            (Layer::Qcow2(qcow2), Content::Bytes(host)) => {
                qcow2.read_data(DataPlace { host, guest: at }, into).await
            }
            (Layer::Qcow2(qcow2), Content::Compressed { extent, skip }) => {
                Box::pin(qcow2.read_compressed(extent, skip, into)).await
            }
            (_, content) => unreachable!("{content:?} is not fetched"),
        }
    }
}

impl<D: Disk> Qcow2<D> {
    async fn resolve(&self, at: u64, len: u64) -> Result<(Content, u64)> {
        let at = GuestOffset::new(at);
        if let Some(host) = self.known_place(at, len, Right::Read) {
            return Ok((Content::Bytes(host), len));
        }
        let is_inside_cluster = self.geometry.is_inside_cluster(at, len);
        self.ask(|meta| {
            let (extent, len) = match meta.map.resolve(at, len)? {
                Ok(found) => found,
                Err(e) => return Ok(Err(e)),
            };
            if let Err(e) = meta.check_survived(at, len) {
                return Ok(Err(e));
            }
            let content = match extent {
                Extent::Unallocated { host } => Content::Nothing { host },
                Extent::Zero { host } => Content::Zeros { host },
                Extent::Data(host) => match meta.check_data(self.geometry, host, len) {
                    Ok(()) => {
                        if is_inside_cluster {
                            meta.note_place(self.geometry, at, host, Right::Read);
                        }
                        Content::Bytes(host)
                    }
                    Err(e) => return Ok(Err(e)),
                },
                Extent::Compressed { extent, skip } => Content::Compressed { extent, skip },
            };
            Ok(Ok((content, len)))
        })
        .await
    }
}
