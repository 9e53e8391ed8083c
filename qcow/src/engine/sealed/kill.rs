//! What a kill loses, and that nobody is told otherwise.
//!
//! The tree is in memory until a flush, so a process that is killed loses what has been written since the last one, as a power
//! cut does. A guest that outlives the process has been told that these writes had ended; one that goes on without them would
//! flush and be told that they are durable. There is no redo log for authenticated images. So the memory that would hold one
//! says which session of an image it was given to, from then until that session has closed the image, and any other session
//! refuses it. Whether another one has closed the image since is no matter: what was lost stays lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Sealed;
use crate::disk::Disk;
use crate::engine::redo::FoundRedo;
use crate::error::{Error, ErrorKind, Result};
use crate::meta::redo::SharedWords;
use crate::sync::lock;

/// "qcowsea" and the version of the layout.
const MAGIC: u64 = u64::from_be_bytes(*b"qcowsea\x01");

impl<D: Disk> Sealed<D> {
    /// Takes note of memory that outlives this process.
    ///
    /// # Errors
    /// It was given to a session that ended without a close, so that what it had said was written may be lost (`Stale`); or it
    /// is too small (`Invalid`).
    pub fn note_memory(&self, memory: Arc<dyn SharedWords>, found: FoundRedo) -> Result<()> {
        let words = memory.words();
        // The first word has the magic, the second the session.
        let [magic, session, ..] = words else {
            let what = format!("{} words hold no session", words.len());
            return Err(self.named(Error::invalid(what)));
        };
        let before = magic.load(Ordering::Acquire);
        let is_own = before == MAGIC && session.load(Ordering::Acquire) == self.session;
        if before != 0 && !is_own && matches!(found, FoundRedo::Replay) {
            return Err(self.named(Error::new(
                ErrorKind::Stale,
                "the process that served this authenticated image was killed, and what the guest had written since its last \
                 flush is lost: the guest has to start anew, as after a power cut",
            )));
        }
        session.store(self.session, Ordering::Release);
        magic.store(MAGIC, Ordering::Release);
        lock(&self.state).memory = Some(memory);
        Ok(())
    }

    /// All is durable: whoever keeps that memory has lost nothing.
    pub(super) fn release_memory(&self) {
        let memory = lock(&self.state).memory.take();
        if let Some(magic) = memory.as_ref().and_then(|memory| memory.words().first()) {
            magic.store(0, Ordering::Release);
        }
    }
}
