//! A deterministic, in-memory [`Disk`]: same seed, same order of completions, same bytes.
//!
//! A [`World`] holds the files and everything that is under way. When the engine waits, [`World::block_on`] picks one
//! pending operation by the seed, lets it take effect, and wakes whoever waits for it; so operations that overlap in time
//! complete in every order that a real disk might show. If nothing is pending and nobody was woken, a wake-up was lost,
//! and the world says so.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use crate::addr::HostOffset;
use crate::disk::{Disk, FileExtent, Identity, Payload};
use crate::exec::{Park, Unpark};
use crate::sync::lock;

mod content;
mod random;

pub use content::Content;
pub use random::Random;

/// All files of one simulation and the operations under way on them.
#[derive(Clone, Debug)]
pub struct World {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: Random,
    files: Vec<Content>,
    pending: Vec<Pending>,
    results: BTreeMap<u64, io::Result<()>>,
    next_id: u64,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    file: usize,
    effect: Effect,
    waker: Waker,
}

#[derive(Clone, Debug)]
enum Effect {
    Read { at: u64, into: Payload },
    Write { at: u64, from: Payload },
    Zero { at: u64, len: u64 },
    Punch { at: u64, len: u64 },
    Grow { len: u64 },
    SetLen { len: u64 },
    Sync,
}

impl World {
    /// An empty world whose order of events follows `seed`.
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: Random::new(seed),
            files: Vec::new(),
            pending: Vec::new(),
            results: BTreeMap::new(),
            next_id: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A new file that holds `bytes`.
    pub fn add_file(&self, bytes: &[u8]) -> SimDisk {
        let mut state = lock(&self.state);
        state.files.push(Content::from_bytes(bytes));
        SimDisk { world: self.clone(), file: state.files.len() - 1 }
    }

    /// Runs `root` to its end, choosing the order of all I/O by the seed.
    pub fn block_on<T>(&self, root: impl Future<Output = T>) -> T {
        crate::exec::block_on(self, root)
    }

    /// Completes one pending operation, chosen by the seed. Says whether there was one.
    fn step(&self) -> bool {
        let mut state = lock(&self.state);
        if state.pending.is_empty() {
            return false;
        }
        let count = state.pending.len() as u64;
        let chosen = state.random.below(count) as usize;
        let Pending { id, file, effect, waker } = state.pending.swap_remove(chosen);
        let result = state.files[file].apply(&effect);
        state.results.insert(id, result);
        drop(state);
        waker.wake();
        true
    }
}

impl Park for World {
    fn park(&self, woken: &AtomicBool) {
        assert!(
            self.step() || woken.load(Ordering::SeqCst),
            "a lost wake-up: nothing is pending and nobody was woken"
        );
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        struct Nobody;
        impl Unpark for Nobody {
            fn unpark(&self) {}
        }
        Arc::new(Nobody)
    }
}

/// One file of a [`World`].
#[derive(Clone, Debug)]
pub struct SimDisk {
    world: World,
    file: usize,
}

impl SimDisk {
    /// Lets writes that need more than `bytes` of space fail, as on a full file system.
    pub fn set_capacity(&self, bytes: u64) {
        lock(&self.world.state).files[self.file].set_capacity(bytes);
    }

    /// A copy of the file's bytes as they are now.
    pub fn to_vec(&self) -> Vec<u8> {
        lock(&self.world.state).files[self.file].to_vec()
    }

    fn submit(&self, effect: Effect) -> Submitted<'_> {
        Submitted { disk: self, state: SubmittedState::New(Some(effect)) }
    }
}

struct Submitted<'a> {
    disk: &'a SimDisk,
    state: SubmittedState,
}

enum SubmittedState {
    New(Option<Effect>),
    Waiting(u64),
}

impl Future for Submitted<'_> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let file = self.disk.file;
        let mut state = lock(&self.disk.world.state);
        let waker = context.waker().clone();
        match &mut self.state {
            SubmittedState::New(effect) => {
                let effect = effect.take().expect("an operation is submitted once");
                let id = state.next_id;
                state.next_id += 1;
                state.pending.push(Pending { id, file, effect, waker });
                drop(state);
                self.state = SubmittedState::Waiting(id);
                Poll::Pending
            }
            SubmittedState::Waiting(id) => {
                if let Some(result) = state.results.remove(id) {
                    return Poll::Ready(result);
                }
                if let Some(pending) = state.pending.iter_mut().find(|p| p.id == *id) {
                    pending.waker = waker;
                }
                Poll::Pending
            }
        }
    }
}

impl Disk for SimDisk {
    async fn read(&self, at: HostOffset, into: &Payload) -> io::Result<()> {
        assert!(into.is_writable(), "a read into a read-only payload");
        self.submit(Effect::Read { at: at.get(), into: into.clone() }).await
    }

    async fn write(&self, at: HostOffset, from: &Payload) -> io::Result<()> {
        self.submit(Effect::Write { at: at.get(), from: from.clone() }).await
    }

    async fn write_zeroes(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.submit(Effect::Zero { at: at.get(), len }).await
    }

    async fn punch_hole(&self, at: HostOffset, len: u64) -> io::Result<bool> {
        self.submit(Effect::Punch { at: at.get(), len }).await.map(|()| false)
    }

    async fn allocate(&self, at: HostOffset, len: u64) -> io::Result<()> {
        self.submit(Effect::Grow { len: at.get() + len }).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.submit(Effect::SetLen { len }).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.submit(Effect::Sync).await
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.world.state).files[self.file].len())
    }

    fn allocated_len(&self) -> io::Result<u64> {
        Ok(lock(&self.world.state).files[self.file].allocated_len())
    }

    fn extent_at(&self, at: HostOffset) -> io::Result<FileExtent> {
        Ok(lock(&self.world.state).files[self.file].extent_at(at.get()))
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn identity(&self) -> Identity {
        Identity { device: 0, inode: self.file as u64 }
    }
}
