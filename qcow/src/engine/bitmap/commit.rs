//! Making bitmaps durable: bits and tables that have changed, and a new directory, are written where nothing points to them
//! yet; then the header is pointed to the directory in one sector, and what was replaced goes on its way to being free.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::{Bitmap, Content, OnDisk};
use crate::addr::HostOffset;
use crate::disk::Disk;
use crate::engine::claim::Claimed;
use crate::engine::layer::Qcow2;
use crate::error::Result;
use crate::format::bitmap::{BitmapCluster, BitmapFlags, encode_directory, encode_table};
use crate::format::extension::BitmapsExtension;
use crate::format::feature::Autoclear;
use crate::format::header::{Header, HeaderStep};
use crate::meta::bitmap::Stored;
use crate::meta::bitmap::place::{Place, bitmap_places, directory_place};
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// What the file is to say of each bitmap, in the order of the list, and the clusters that were claimed for it.
struct Next<'a, D: Disk> {
    claims: Vec<Claimed<'a, D>>,
    bitmaps: Vec<OnDisk>,
}

impl<D: Disk> Qcow2<D> {
    /// Makes the file say what memory says of the bitmaps, but for bits that are still being recorded (`in_session`).
    /// `leaving` is a bitmap that the file has and the list has not any more. The caller holds `Bitmaps::changing`.
    ///
    /// # Errors
    /// The file says what it said before; or the host failed, and the image takes no more writes.
    pub(super) async fn commit_bitmaps(
        &self,
        in_session: bool,
        leaving: Option<&Bitmap>,
    ) -> Result<()> {
        // So that a recovery of leaks waits until these claims are linked.
        let _inside = self.drain.enter();
        let committed = self.try_commit(in_session, leaving).await;
        if committed.is_err() {
            // What was taken out to be stored may be nowhere.
            for bitmap in lock(&self.bitmaps.list).iter_mut() {
                if let Content::Loaded(bits) = &mut bitmap.content {
                    bits.mark_changed();
                }
            }
        }
        committed
    }

    /// Makes the file say, of an image that is being closed, what the bitmaps have recorded.
    pub(in crate::engine) async fn store_bitmaps(&self) {
        let _changing = self.bitmaps.changing.acquire().await;
        // Whoever changes the disk after all has to say anew that they are in use.
        self.prepared.store(false, Ordering::Release);
        let is_used = |bitmap: &Bitmap| {
            let flags = bitmap.on_disk.as_ref().map_or(BitmapFlags::default(), |now| now.flags);
            flags.contains(BitmapFlags::IN_USE) && matches!(bitmap.content, Content::Loaded(_))
        };
        if !lock(&self.bitmaps.list).iter().any(is_used) {
            return;
        }
        if let Err(e) = self.guarded(self.commit_bitmaps(false, None)).await {
            tracing::error!("Lost persistent bitmaps, which stay in use: {e}");
        }
    }

    async fn try_commit(&self, in_session: bool, leaving: Option<&Bitmap>) -> Result<()> {
        let mut next = Next { claims: Vec::new(), bitmaps: Vec::new() };
        let count = lock(&self.bitmaps.list).len();
        for index in 0..count {
            let bitmap = self.store(index, in_session, &mut next.claims).await?;
            next.bitmaps.push(bitmap);
        }
        let extension = self.write_directory(&mut next).await?;
        let _structure = self.structure.acquire().await;
        if !Bug::NoBarrierBeforeBitmaps.is_seeded() {
            self.flush_metadata().await?;
        }
        let old = lock(&self.header).extensions.bitmaps;
        let pointed = self.point_to(extension).await;
        if pointed.is_ok() || lock(&self.meta).check_writable().is_err() {
            // The header names them, or may do so.
            next.claims.into_iter().for_each(Claimed::keep);
        }
        pointed?;
        self.exchange([old, extension], leaving, next.bitmaps)
    }

    /// Goes on with what the header names now.
    fn exchange(
        &self,
        directories: [Option<BitmapsExtension>; 2],
        leaving: Option<&Bitmap>,
        next: Vec<OnDisk>,
    ) -> Result<()> {
        let [mut old, mut new] = directories.map(|directory| self.directory_place(directory));
        let left = leaving.and_then(|bitmap| bitmap.on_disk.as_ref());
        old.extend(left.iter().flat_map(|left| self.places(left)));
        for (bitmap, next) in lock(&self.bitmaps.list).iter_mut().zip(next) {
            let now = bitmap.on_disk.replace(next);
            let next = bitmap.on_disk.iter();
            if now.as_ref().map(|now| now.table_offset)
                != next.clone().map(|next| next.table_offset).next()
            {
                old.extend(now.iter().flat_map(|now| self.places(now)));
                new.extend(next.flat_map(|next| self.places(next)));
            }
        }
        let came: Vec<Place> = new.difference(&old).copied().collect();
        let mut went: Vec<Place> = old.difference(&new).copied().collect();
        went.sort_unstable_by_key(|&(_, first, _)| first);
        let switched = lock(&self.meta).switch_bitmaps(self.geometry, &came, &went);
        switched.map_err(|e| self.named(e))
    }

    fn directory_place(&self, directory: Option<BitmapsExtension>) -> HashSet<Place> {
        let place = |e: BitmapsExtension| {
            directory_place(self.geometry, e.directory_offset, e.directory_size)
        };
        directory.map(place).into_iter().collect()
    }

    fn places(&self, bitmap: &OnDisk) -> Vec<Place> {
        bitmap_places(self.geometry, bitmap.table_offset, &bitmap.table).collect()
    }

    /// Writes what has changed of the bitmap at `index`; what the directory is to say of it.
    async fn store<'a>(
        &'a self,
        index: usize,
        in_session: bool,
        claims: &mut Vec<Claimed<'a, D>>,
    ) -> Result<OnDisk> {
        let (flags, now, chunks) = {
            let list = lock(&self.bitmaps.list);
            let bitmap = &list[index];
            let flags = bitmap.flags(in_session);
            let is_recorded = flags.contains(BitmapFlags::IN_USE) && bitmap.on_disk.is_some();
            let chunks = match &bitmap.content {
                Content::Loaded(bits) if !is_recorded => Some(bits.chunk_count()),
                _ => None,
            };
            (flags, bitmap.on_disk.clone(), chunks)
        };
        let (offset, table) = match now {
            Some(now) => (Some(now.table_offset), now.table),
            None => (None, Vec::new()),
        };
        let next = match chunks {
            Some(chunks) => self.store_chunks(index, chunks, &table, claims).await?,
            None => table.clone(),
        };
        let table_offset = match offset {
            Some(offset) if next == table => offset,
            _ => self.write_row(&encode_table(&next, self.geometry), claims).await?,
        };
        Ok(OnDisk { flags, table_offset, table: next })
    }

    /// Writes the chunks that differ from those in `table`; the new table.
    async fn store_chunks<'a>(
        &'a self,
        index: usize,
        chunks: usize,
        table: &[BitmapCluster],
        claims: &mut Vec<Claimed<'a, D>>,
    ) -> Result<Vec<BitmapCluster>> {
        let mut next = table.to_vec();
        next.resize(chunks, BitmapCluster::Zeros);
        for (number, cluster) in next.iter_mut().enumerate() {
            let changed = match &mut lock(&self.bitmaps.list)[index].content {
                Content::Loaded(bits) => bits.take_changed(number),
                _ => None,
            };
            *cluster = match changed {
                None => continue,
                Some(Stored::Zeros) => BitmapCluster::Zeros,
                Some(Stored::Ones) => BitmapCluster::Ones,
                Some(Stored::Bytes(bytes)) => {
                    let claimed = self.claim(1).await?;
                    let first = claimed.run().first;
                    claims.push(claimed);
                    self.write_new(first, &bytes).await?;
                    BitmapCluster::Data(first)
                }
            };
        }
        Ok(next)
    }

    /// Writes the directory; `None` where no bitmaps are left.
    async fn write_directory<'a>(
        &'a self,
        next: &mut Next<'a, D>,
    ) -> Result<Option<BitmapsExtension>> {
        let directory = {
            let list = lock(&self.bitmaps.list);
            let entries = list.iter().zip(&next.bitmaps);
            let entries: Vec<_> = entries
                .map(|(bitmap, next)| bitmap.entry(next.flags, next.table_offset, next.table.len()))
                .collect();
            encode_directory(&entries).map_err(|e| self.named(e))?
        };
        if directory.is_empty() {
            return Ok(None);
        }
        let directory_offset = self.write_row(&directory, &mut next.claims).await?;
        Ok(Some(BitmapsExtension {
            // Within a limit, as the directory was encoded.
            count: next.bitmaps.len() as u32,
            directory_size: directory.len() as u64,
            directory_offset,
        }))
    }

    /// Writes `bytes` to new clusters in a row; where they start.
    async fn write_row<'a>(
        &'a self,
        bytes: &[u8],
        claims: &mut Vec<Claimed<'a, D>>,
    ) -> Result<HostOffset> {
        let clusters = self.geometry.clusters_for(bytes.len() as u64);
        let claimed = self.claim_row(clusters).await?;
        let first = claimed.run().first;
        claims.push(claimed);
        let mut whole = bytes.to_vec();
        whole.resize(self.geometry.bytes(clusters) as usize, 0);
        self.write_new(first, &whole).await?;
        Ok(self.geometry.host_start(first))
    }

    /// Points the header to another directory, durably; the caller holds `structure`. Where it fails, which one the file
    /// has is not known.
    async fn point_to(&self, extension: Option<BitmapsExtension>) -> Result<()> {
        let mut header = lock(&self.header).clone();
        let (old, autoclear) = (header.extensions.bitmaps, header.autoclear);
        header.extensions.bitmaps = extension;
        header.autoclear = autoclear.without(Autoclear::BITMAPS);
        if extension.is_some() {
            header.autoclear = header.autoclear.with(Autoclear::BITMAPS);
        }
        if let (Some(_), Some(to), true) = (old, &extension, header.autoclear == autoclear) {
            let cluster0 = self.read_header_cluster().await?;
            let write = Header::plan_bitmaps(&cluster0, to).map_err(|e| self.named(e))?;
            if let Some(write) = write {
                return self.commit_header_step(HeaderStep { writes: vec![write] }, header).await;
            }
        }
        self.replace_header(header).await
    }

    async fn commit_header_step(&self, step: HeaderStep, header: Header) -> Result<()> {
        self.write_header_steps(&[step]).await.map_err(|e| {
            let lost = e.context("the header could not be replaced, the image is read-only now");
            let lost = self.named(lost);
            lock(&self.meta).fail(lost.clone());
            lost
        })?;
        *lock(&self.header) = header;
        Ok(())
    }
}
