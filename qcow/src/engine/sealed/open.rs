//! Opening an authenticated image: header, key, root, details, and which blocks are in use.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::parts::{read_details, read_roots, read_sealed_header, sealer_of, write};
use super::{Sealed, State};
use crate::addr::HostBlock;
use crate::crypt::Passphrase;
use crate::crypt::seal::Sealer;
use crate::disk::Disk;
use crate::engine::OpenOptions;
use crate::engine::load::see_medium;
use crate::error::{Error, Result};
use crate::format::sealed::details::Details;
use crate::format::sealed::entry::{Entry, NODE_LEN};
use crate::format::sealed::header::SealedHeader;
use crate::format::sealed::root::{Root, RootTag, Roots};
use crate::format::sealed::{BLOCK_LEN, FIRST_BLOCK, SPACE_LEVEL, start_of};
use crate::limits::{SEALED_FILE_BYTES_MAX, SEALED_NODES_DEFAULT};
use crate::meta::drain::Drain;
use crate::meta::order::Sequencer;
use crate::meta::sealed::blocks::Blocks;
use crate::meta::sealed::pending::Pending;
use crate::meta::sealed::space::Space;
use crate::meta::sealed::tree::Tree;
use crate::meta::snapshot::SnapshotChoice;
use crate::sync::{Exclusive, WaitQueue, lock};

/// Fewest nodes that are kept in memory, whatever is asked for: a way down, and some beside it.
const RESIDENT_MIN: usize = 64;

impl<D: Disk> Sealed<D> {
    /// Opens the authenticated image in `disk`, as it was at `snapshot` if one is given.
    ///
    /// # Errors
    /// The key is missing or wrong; the header, the root or the details do not open; the file has been cut off; or the host
    /// failed.
    pub async fn open(
        disk: D,
        path: &Path,
        writable: bool,
        key: Option<&Passphrase>,
        snapshot: Option<&SnapshotChoice>,
        options: &OpenOptions,
    ) -> Result<Self> {
        let header = read_sealed_header(&disk).await?;
        let sealer = sealer_of(&disk, &header, key).await?;
        let mut roots = read_roots(&disk, &sealer).await?;
        if writable
            && options.flushes
            && !roots.newest().is_ok_and(|(root, _)| !root.space.is_void())
        {
            // It was not closed: what the cache shows may not be what a power cut would leave.
            see_medium(&disk).await?;
            roots = read_roots(&disk, &sealer).await?;
        }
        let (root, tag) = roots.newest()?;
        let file_blocks = file_blocks(&disk)?;
        check_root(&root, &header, file_blocks)?;
        let mut image = Self::of_root(disk, path, header, sealer, (&root, tag), options);
        let details = read_details(&image.disk, &image.sealer, &header, &root).await?;
        *image.names_backing.get_mut() = details.backing.is_some();
        lock(&image.state).details = details;
        if let Some(snapshot) = snapshot {
            image.show(snapshot, &root, options)?;
        } else if writable {
            image.learn_space(&root, file_blocks).await;
            image.mend_roots(&roots).await?;
        }
        Ok(image)
    }

    fn of_root(
        disk: D,
        path: &Path,
        header: SealedHeader,
        sealer: Sealer,
        (root, tag): (&Root, RootTag),
        options: &OpenOptions,
    ) -> Self {
        let nodes = options.l2_cache_bytes.map_or(SEALED_NODES_DEFAULT, |bytes| {
            usize::try_from(bytes / NODE_LEN as u64).unwrap_or(usize::MAX).max(RESIDENT_MIN)
        });
        let session = disk.random_number();
        let state = State {
            tree: Tree::new(root, nodes),
            space: Space::unknown(root.end),
            pending: Pending::default(),
            busy: Vec::new(),
            details: Details::default(),
            details_at: root.details,
            space_at: root.space,
            linked_end: root.end,
            newest_snapshot: root.newest_snapshot,
            has_older: root.has_older,
            root: tag,
            rooted: (root.top, root.levels),
            flush: Sequencer::default(),
            has_strays: false,
            sweeping: false,
            memory: None,
            failure: None,
        };
        Self {
            disk,
            path: path.to_owned(),
            header,
            sealer,
            size: AtomicU64::new(root.size),
            names_backing: AtomicBool::new(false),
            flushes: options.flushes,
            session,
            state: Mutex::new(state),
            changed: WaitQueue::default(),
            drain: Drain::default(),
            rooting: Exclusive::default(),
        }
    }

    /// Makes copies of roots anew that were being written when everything ended, or were damaged.
    async fn mend_roots(&self, roots: &Roots) -> Result<()> {
        let to_mend = roots.to_mend();
        for (at, sector) in &to_mend {
            tracing::info!("{}: the copy of a root at {at} is made anew", self.path.display());
            write(&self.disk, *at, sector).await?;
        }
        if to_mend.is_empty() { Ok(()) } else { self.barrier().await }
    }

    /// Shows the disk as it was at a snapshot.
    fn show(&mut self, which: &SnapshotChoice, root: &Root, options: &OpenOptions) -> Result<()> {
        let mut state = lock(&self.state);
        let found = super::snapshot::find(&state.details, which)
            .map_err(|e| e.context(crate::engine::snapshot::NOT_LOADED))?;
        let snapshot = state.details.snapshots[found].clone();
        let (top, levels, size) = (snapshot.top, snapshot.levels, snapshot.entry.disk_size);
        let then = Root { top, levels, size, ..*root };
        let nodes = options.l2_cache_bytes.map_or(SEALED_NODES_DEFAULT, |_| RESIDENT_MIN);
        state.tree = Tree::new(&then, nodes);
        drop(state);
        *self.size.get_mut() = size;
        Ok(())
    }

    /// Finds out which blocks are in use, where that was written down.
    async fn learn_space(&mut self, root: &Root, file_blocks: HostBlock) {
        let map = match &root.space {
            Entry::Stored(stored) => self.read_blob(SPACE_LEVEL, stored).await,
            _ => Err(Error::invalid("the image was not closed")),
        };
        let map = map.and_then(|bytes| Blocks::parse(&bytes, file_blocks));
        let mut state = lock(&self.state);
        match map {
            Ok(used) => state.space = Space::known(used),
            Err(e) => {
                if !root.space.is_void() {
                    tracing::warn!("{}: the map of blocks is made anew: {e}", self.path.display());
                }
                state.space = Space::unknown(file_blocks);
                state.has_strays = true;
            }
        }
    }
}

fn file_blocks<D: Disk>(disk: &D) -> Result<HostBlock> {
    let len = disk.len().map_err(|e| Error::io("find the length", &e))?;
    if len > SEALED_FILE_BYTES_MAX {
        return Err(Error::limit(format!(
            "a file of {len} bytes: that of an authenticated image has {SEALED_FILE_BYTES_MAX} at most"
        )));
    }
    Ok(HostBlock::new(len.div_ceil(BLOCK_LEN)).max(FIRST_BLOCK))
}

fn check_root(root: &Root, header: &SealedHeader, file_blocks: HostBlock) -> Result<()> {
    if root.cluster_bits != header.cluster_bits {
        return Err(Error::corrupt(format!(
            "clusters of 2^{} bytes in the root, 2^{} in the header",
            root.cluster_bits, header.cluster_bits
        )));
    }
    if root.end > file_blocks {
        return Err(Error::corrupt(format!(
            "the file has been cut off: it ends at {}, and the disk reaches to {}",
            start_of(file_blocks),
            start_of(root.end)
        )));
    }
    Ok(())
}
