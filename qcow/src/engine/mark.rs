//! Keeping the close mark: unclean before an image's first change, clean after its last.
//!
//! All of it happens under `structure`, because the mark may share the header's first sector with other fields.

use std::sync::atomic::Ordering;

use super::layer::Qcow2;
use crate::disk::Disk;
use crate::error::{ErrorKind, Result};
use crate::format::header::Header;
use crate::format::mark::{MARK_TYPE, Mark, MarkState, Session};
use crate::meta::regions::Kind;
use crate::sync::lock;

impl<D: Disk> Qcow2<D> {
    /// Makes the mark say that the image is being changed; an image without one gets it, unless the caller of the open did
    /// not want that. Durable with the next barrier, which the answer says is needed. The caller holds `structure`.
    pub(super) async fn mark_unclean(&self) -> Result<bool> {
        let mark = lock(&self.header).extensions.mark.clone();
        let Some(mut mark) = mark else {
            if self.adds_mark {
                self.append_mark().await?;
            }
            return Ok(false);
        };
        // Also where it says so already: those who wrote it may have been killed before it was durable, or a write of
        // the opposite may have failed after it had reached the disk.
        mark.set(MarkState::Unclean);
        mark.set_session(Some(self.session()));
        self.write_mark(mark).await?;
        Ok(true)
    }

    /// The session that this opening of the image is: one of its own, unless it goes on with that of a process that was
    /// killed.
    pub(super) fn session(&self) -> Session {
        *lock(&self.session).get_or_insert_with(|| Session::of(self.disk.random_number()))
    }

    /// Whether the header's mark says which session changes the image.
    pub(super) fn states_session(&self) -> bool {
        let header = lock(&self.header);
        header.extensions.mark.as_ref().is_some_and(|mark| mark.session().is_some())
    }

    /// Gives the image a mark if it has none, durably: what comes next is only safe with one.
    pub(super) async fn require_mark(&self) -> Result<()> {
        let _structure = self.structure.acquire().await;
        if lock(&self.header).extensions.mark.is_none() {
            self.append_mark().await?;
        }
        Ok(())
    }

    /// Makes the mark say that counts and COPIED flags are behind each other. Durable with the next barrier. The caller holds
    /// `structure`.
    pub(super) async fn mark_unsettled(&self) -> Result<()> {
        let Some(mut mark) = lock(&self.header).extensions.mark.clone() else { return Ok(()) };
        mark.set(MarkState::Unsettled);
        self.write_mark(mark).await
    }

    /// Makes the mark say that the image was closed, unless it may hold leaks of an earlier crash. Everything else is
    /// durable by now.
    pub(super) async fn mark_clean(&self) -> Result<()> {
        let _structure = self.structure.acquire().await;
        // Without flushes nothing is known to be durable.
        if self.may_leak.load(Ordering::Acquire) || !self.flushes {
            return Ok(());
        }
        let Some(mut mark) = lock(&self.header).extensions.mark.clone() else { return Ok(()) };
        if !mark.set(MarkState::Clean) {
            return Ok(());
        }
        // Whoever changes the image after all has to mark it anew.
        self.prepared.store(false, Ordering::Release);
        self.marked.store(false, Ordering::Release);
        self.write_mark(mark).await?;
        self.barrier().await
    }

    async fn append_mark(&self) -> Result<()> {
        let mut mark = Mark::new(MarkState::Unclean);
        mark.set_session(Some(self.session()));
        if self.append_extension(MARK_TYPE, mark.as_bytes()).await? {
            lock(&self.header).extensions.mark = Some(mark);
        } else if !self.insert_mark(mark).await? {
            tracing::warn!(
                "{}: its header has no room for the mark of an unclean shutdown: after a crash, give leaked clusters \
                 back with 'qcow check -r leaks'",
                self.path.display()
            );
        }
        Ok(())
    }

    /// Makes room for the mark by writing all of the header anew; false where there is none.
    async fn insert_mark(&self, mark: Mark) -> Result<bool> {
        let mut header = lock(&self.header).clone();
        header.extensions.mark = Some(mark);
        match self.replace_header(header).await {
            Err(e) if e.kind() == ErrorKind::Limit => Ok(false),
            replaced => replaced.map(|()| lock(&self.header).extensions.mark.is_some()),
        }
    }

    async fn write_mark(&self, mark: Mark) -> Result<()> {
        let place = Header::find_mark(&self.read_header_cluster().await?);
        // It was there when the image was opened, and nobody else may write to the image.
        if let Some(at) = place.map_err(|e| self.named(e))? {
            self.write_metadata(Kind::Header, at, mark.head()).await?;
        }
        lock(&self.header).extensions.mark = Some(mark);
        Ok(())
    }

    /// Appends a header extension and makes it durable; false where there is no room. The caller holds `structure`.
    pub(super) async fn append_extension(&self, kind: u32, data: &[u8]) -> Result<bool> {
        let cluster0 = self.read_header_cluster().await?;
        let steps = Header::plan_append(&cluster0, kind, data).map_err(|e| self.named(e))?;
        let Some(steps) = steps else { return Ok(false) };
        self.write_header_steps(&steps).await?;
        Ok(true)
    }
}
