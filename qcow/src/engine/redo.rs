//! Going on where a process was killed: carrying out what its redo log says and no flush has written.
//!
//! ```text
//! read the log                 once, from memory that others may change; nothing is believed
//! hold it against the image    the session in its mark, and each entry against tables, counts and all other references;
//!                              up to here a refusal leaves everything as it was
//! the mark                     unclean, with the session of the log: whoever is killed now leaves it to be replayed again
//! counts, in memory            before anything is claimed, which might be what the log names
//! mappings, in memory          as any other change of them; tables are made as they are needed
//! a flush                      in its usual order: data and counts, barrier, entries
//! a new log                    with the same session, which the file's mark has
//! ```
//!
//! So a replay is, to the disk, a flush of changes that some requests have made; a power cut leaves what it leaves of any.
//! What the entries replaced goes its usual way to being free. What the killed process had claimed and the log does not name
//! is leaked, as after every crash, and found by [`Image::recover_leaks`], to be started after this.
//!
//! A host cluster may be mapped by an entry if nobody names it. Where its count is zero, nobody does: counts are never too
//! low. Else it may be counted for this very entry, because the killed process had written the count already, or for
//! somebody else; then all references of the image are collected, as a check would, to see that there are none to it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Image;
use super::check::live::LiveReferences;
use super::layer::{Layer, Qcow2};
use super::options::Discard;
use super::write::Hold;
use crate::addr::{ClusterCount, HostCluster};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::mark::{MarkState, Session};
use crate::meta::plan::ChangeStep;
use crate::meta::redo::replay::{HostState, Redone, new_hosts};
use crate::meta::redo::{Contents, Redo, SharedWords};
use crate::meta::span::Span;
use crate::seeded_bugs::Bug;
use crate::sync::lock;

/// What to do about the records that are found in the memory of a redo log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundRedo {
    /// They are of the process before, which was killed: carry them out.
    Replay,
    /// Drop them.
    Discard,
}

impl<D: Disk> Image<D> {
    /// Records every change of the disk that is acknowledged from now on and that no flush has written yet in `memory`, which
    /// somebody keeps when this process is killed; before that, carries out what a process that was killed has left there,
    /// if `found` says so. How many clusters that changed.
    ///
    /// To be called after the open, before anything else changes the image or [`Self::recover_leaks`] runs, and with no
    /// request in flight. Called later, it replaces the log by another one. Where the image cannot have a log, because it is
    /// raw or read-only, nothing happens; an authenticated image has none either, and refuses memory of a session that was not
    /// closed; one whose header has no room for a mark gets one in vain, which is logged.
    ///
    /// # Errors
    /// The records are not of this image as it is now (`Stale`), or damaged (`Corrupt`), or the memory is too small
    /// (`Invalid`): nothing has been changed, and no log is attached. Or the host failed, after which the image takes no more
    /// writes; the records are as they were, for the next process.
    pub async fn attach_redo_log(
        &self,
        memory: Arc<dyn SharedWords>,
        found: FoundRedo,
    ) -> Result<ClusterCount> {
        if !self.is_writable() {
            return Ok(0);
        }
        let qcow2 = match self.top() {
            Layer::Qcow2(qcow2) => qcow2,
            Layer::Sealed(sealed) => return sealed.note_memory(memory, found).map(|()| 0),
            Layer::Raw(_) | Layer::Luks(_) => return Ok(0),
        };
        let contents = match found {
            FoundRedo::Replay => Contents::read(&*memory).map_err(|e| qcow2.named(e))?,
            FoundRedo::Discard => Contents::default(),
        };
        let punch = self.inner.options.discard == Discard::Unmap;
        let replayed = Box::pin(qcow2.replay(&contents, punch)).await?;
        if qcow2.marked.load(Ordering::Acquire) {
            // What has changed up to here is in no log, or in one that is left now.
            qcow2.flush_metadata().await?;
        }
        lock(&qcow2.meta).void_redo();
        let redo = Redo::start(memory, qcow2.session()).map_err(|e| qcow2.named(e))?;
        lock(&qcow2.meta).attach_redo(redo);
        qcow2.records.store(true, Ordering::Release);
        if qcow2.marked.load(Ordering::Acquire) {
            qcow2.leave_untied_redo();
        }
        Ok(replayed)
    }
}

impl<D: Disk> Qcow2<D> {
    /// Carries out what a log holds; how many clusters that changed.
    async fn replay(&self, contents: &Contents, punch: bool) -> Result<ClusterCount> {
        let Some(session) = contents.session() else { return Ok(0) };
        let is_marked = self.marked.load(Ordering::Acquire);
        if is_marked && session == self.session() {
            // It is this process's own, and says nothing that is not in memory.
            return Ok(0);
        }
        self.check_tied(session, is_marked).map_err(|e| self.named(e))?;
        let all = self.plan_redo(contents).await?;
        let hosts = new_hosts(&all).map_err(|e| self.named(e))?;
        let blocks = self.judge_hosts(&hosts).await?;
        if !Bug::ReplayForgetsSession.is_seeded() {
            *lock(&self.session) = Some(session);
        }
        let replayed = self.carry_out_redo(&all, &hosts, &blocks, punch);
        replayed.await.map_err(|e| {
            let lost = e.context("a redo log could not be replayed, the image is read-only now");
            let lost = self.named(lost);
            lock(&self.meta).fail(lost.clone());
            lost
        })?;
        Ok(all.len() as ClusterCount)
    }

    /// Fails unless the image is as the session left it that the log is of.
    fn check_tied(&self, session: Session, is_marked: bool) -> Result<()> {
        if Bug::StaleRedoIsReplayed.is_seeded() {
            return Ok(());
        }
        if is_marked {
            return Err(stale("the image has been changed since it was opened"));
        }
        let header = lock(&self.header);
        let mark = header.extensions.mark.as_ref();
        let Some(mark) = mark.filter(|mark| mark.state() != MarkState::Clean) else {
            return Err(stale("the image was closed since"));
        };
        if mark.session() != Some(session) {
            return Err(stale("somebody else has changed the image since"));
        }
        Ok(())
    }

    /// What is to be changed, in the order of the disk.
    async fn plan_redo(&self, contents: &Contents) -> Result<Vec<Redone>> {
        let mut all = Vec::new();
        let entries = contents.last_entries(self.geometry).map_err(|e| self.named(e))?;
        for (guest, entry) in entries {
            all.extend(self.ask(|meta| meta.plan_redo(self.geometry, guest, entry)).await?);
        }
        Ok(all)
    }

    /// Sees to it that nobody names `hosts`; the indices of refcount blocks that are missing for them.
    async fn judge_hosts(&self, hosts: &BTreeSet<HostCluster>) -> Result<BTreeSet<u64>> {
        let (mut counted, mut blocks) = (Vec::new(), BTreeSet::new());
        for &host in hosts {
            match self.ask(|meta| meta.host_of_redo(self.geometry, host)).await? {
                HostState::Free => {}
                HostState::Counted => counted.push(host),
                HostState::MissingBlock(index) => drop(blocks.insert(index)),
            }
        }
        if !counted.is_empty() && !Bug::ReplayTakesWhatIsNamed.is_seeded() {
            self.check_unnamed(&counted).await.map_err(|e| self.named(e))?;
        }
        Ok(blocks)
    }

    /// Fails where anything in the file names one of `hosts`.
    async fn check_unnamed(&self, hosts: &[HostCluster]) -> Result<()> {
        let header = lock(&self.header).clone();
        let mut fault = None;
        let mut report = |finding: &super::check::Finding| {
            fault.get_or_insert_with(|| finding.to_string());
        };
        let references = LiveReferences::collect(&self.disk, header, &mut report).await?;
        if let Some(fault) = fault {
            return Err(Error::corrupt(format!(
                "not clean, and so no redo log is replayed: {fault}"
            )));
        }
        match hosts.iter().find(|host| references.count(**host) > 0) {
            None => Ok(()),
            Some(host) => {
                let number = host.get();
                Err(Error::corrupt(format!("a redo log names cluster {number}, which is in use")))
            }
        }
    }

    async fn carry_out_redo(
        &self,
        all: &[Redone],
        hosts: &BTreeSet<HostCluster>,
        blocks: &BTreeSet<u64>,
        punch: bool,
    ) -> Result<()> {
        self.prepare_for_change().await?;
        {
            // So that nothing is freed meanwhile.
            let _inside = self.drain.enter();
            for &index in blocks {
                self.grow_refcounts(index).await?;
            }
            for &host in hosts {
                self.ask(|meta| meta.count_for_redo(host)).await?;
            }
            for redone in all {
                self.redo(redone, punch).await?;
                if lock(&self.meta).wants_flush() {
                    self.flush_metadata().await?;
                }
            }
        }
        self.flush_metadata().await
    }

    /// Maps one cluster.
    async fn redo(&self, redone: &Redone, punch: bool) -> Result<()> {
        let span = Span::of_clusters(self.geometry, redone.guest, 1);
        loop {
            match self.ask(|meta| meta.plan_change(self.geometry, span)).await? {
                ChangeStep::Busy(busy) => self.wait_until_free(busy).await,
                ChangeStep::Table(l1) => self.make_table(l1).await?,
                ChangeStep::NoTable { .. } => {
                    self.make_table(self.geometry.l1_index(redone.guest)).await?;
                }
                ChangeStep::Indivisible { .. } => unreachable!("a cluster is changed as a whole"),
                ChangeStep::Held(held) => {
                    let hold = Hold { image: self, held };
                    let mut meta = lock(&self.meta);
                    return meta.link_redone(self.geometry, &hold.held, redone, punch);
                }
            }
        }
    }

    /// Writes what found no room in the redo log, before anybody hears of it. Its clusters are still held: nobody can build on
    /// what the log does not have. Where that fails, the log is void, because the change stays in memory.
    pub(super) async fn make_up_for_redo(&self) -> Result<()> {
        let records = self.records.load(Ordering::Acquire);
        if !records || !lock(&self.meta).is_redo_lacking() {
            return Ok(());
        }
        let written = Box::pin(self.flush_metadata()).await;
        if written.is_err() {
            lock(&self.meta).void_redo();
        }
        written
    }

    /// Leaves the log where the header has no mark that ties it to the image.
    pub(super) fn leave_untied_redo(&self) {
        let has_redo = lock(&self.meta).has_redo();
        if has_redo && !self.states_session() {
            let path = self.path.display();
            tracing::warn!(
                "{path}: its header has no room for a session: what is written and not flushed does not survive a kill"
            );
            lock(&self.meta).void_redo();
        }
    }
}

fn stale(why: &str) -> Error {
    Error::new(ErrorKind::Stale, format!("the redo log is not of this image as it is now: {why}"))
}
