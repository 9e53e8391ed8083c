//! A deterministic, in-memory [`Disk`](super::Disk): same seed, same order of events, same bytes.
//!
//! A [`World`] holds the files and everything that is under way. While the engine waits, [`World::run`] picks one pending
//! operation by the seed, lets it take effect, and wakes whoever waits for it; so operations that overlap in time complete
//! in every order that a real disk might show. If nothing is pending and nobody was woken, a wake-up was lost, and the
//! world says so.
//!
//! The world knows what survives a power cut: what had completed before a sync was submitted that has succeeded. Of
//! everything else any part may survive, see [`PowerCut`]. Operations can be made to fail, see [`Fault`].

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use crate::sync::lock;

mod content;
mod disk;
mod effect;
mod fault;
mod file;
mod power_cut;
mod random;

pub use content::{BLOCK_BYTES, Block, Content};
pub use disk::SimDisk;
pub use fault::Fault;
pub use power_cut::{Fingerprints, Outcome, PowerCut};
pub use random::Random;

use effect::{Effect, some_of};
use file::{File, Moment};

/// One operation in so many is slow: others overtake it most of the time.
const SLOW_ONE_IN: u64 = 8;
/// How rarely a slow operation goes first all the same.
const SLOW_FIRST_ONE_IN: u64 = 16;

/// All files of one simulation and the operations under way on them.
#[derive(Clone, Debug)]
pub struct World {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: Random,
    /// Numbers for the engine: they change nothing about the order of events.
    numbers: Random,
    files: Vec<File>,
    pending: Vec<Pending>,
    results: BTreeMap<u64, io::Result<()>>,
    /// Operations submitted so far.
    submitted: u64,
    /// Operations that took effect so far.
    now: Moment,
    /// What is to go wrong, by the number of the operation.
    faults: BTreeMap<u64, Fault>,
    failed_syncs: u64,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    file: usize,
    effect: Effect,
    /// When it was submitted.
    since: Moment,
    pace: Pace,
    fault: Option<Fault>,
    waker: Waker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Usual,
    Slow,
    /// After everything else.
    Last,
    Never,
}

impl World {
    /// An empty world whose order of events follows `seed`.
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: Random::new(seed),
            numbers: Random::new(!seed),
            files: Vec::new(),
            pending: Vec::new(),
            results: BTreeMap::new(),
            submitted: 0,
            now: 0,
            faults: BTreeMap::new(),
            failed_syncs: 0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A new file that holds `bytes`, all of them durable.
    pub fn add_file(&self, bytes: &[u8]) -> SimDisk {
        self.add_content(Content::from_bytes(bytes))
    }

    /// A new file that holds `content`, all of it durable.
    pub fn add_content(&self, content: Content) -> SimDisk {
        let mut state = lock(&self.state);
        state.files.push(File::new(content));
        SimDisk::new(self.clone(), state.files.len() - 1)
    }

    /// Operations submitted so far, on all files: the number of the next one.
    pub fn operations(&self) -> u64 {
        lock(&self.state).submitted
    }

    /// Lets `fault` befall the operation with this number.
    pub fn inject(&self, operation: u64, fault: Fault) {
        lock(&self.state).faults.insert(operation, fault);
    }

    /// How many syncs have failed, each perhaps with data lost.
    pub fn failed_syncs(&self) -> u64 {
        lock(&self.state).failed_syncs
    }

    /// Runs `root` to its end, choosing the order of all I/O by the seed.
    pub fn block_on<T>(&self, root: impl Future<Output = T>) -> T {
        self.run(root, || {}).expect("nothing waits for an operation that never ends")
    }

    /// Runs `root` to its end, or until nothing can go on because of an operation that never ends. Calls `observe`
    /// whenever something has been submitted or has taken effect.
    pub fn run<T>(&self, root: impl Future<Output = T>, mut observe: impl FnMut()) -> Option<T> {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&flag));
        let mut root = pin!(root);
        loop {
            if flag.0.swap(false, Ordering::SeqCst) {
                let before = self.operations();
                if let Poll::Ready(value) = root.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return Some(value);
                }
                if self.operations() > before {
                    observe();
                }
            }
            // Whoever was woken may have to wait for its turn while more I/O completes.
            loop {
                if self.step() {
                    observe();
                } else if !flag.0.load(Ordering::SeqCst) {
                    return self.stuck();
                }
                if flag.0.load(Ordering::SeqCst) && self.toss() {
                    break;
                }
            }
        }
    }

    /// The process that drives all futures is gone: what it had asked for happens in part, and nobody hears of it.
    pub fn kill(&self) {
        let state = &mut *lock(&self.state);
        for pending in std::mem::take(&mut state.pending) {
            let file = &mut state.files[pending.file];
            let changes = pending.effect.changes(file.visible());
            state.now += 1;
            file.apply(some_of(changes, &mut state.random), state.now);
        }
        state.results.clear();
    }

    /// Nothing can go on.
    fn stuck<T>(&self) -> Option<T> {
        assert!(
            !lock(&self.state).pending.is_empty(),
            "a lost wake-up: nothing is pending and nobody was woken"
        );
        None
    }

    fn toss(&self) -> bool {
        lock(&self.state).random.below(2) == 0
    }

    /// Completes one pending operation, chosen by the seed. Says whether there was one that could.
    fn step(&self) -> bool {
        let woken = {
            let state = &mut *lock(&self.state);
            let Some(chosen) = state.choose() else { return false };
            let pending = state.pending.swap_remove(chosen);
            let result = state.complete(&pending);
            state.results.insert(pending.id, result);
            pending.waker
        };
        woken.wake();
        true
    }
}

impl State {
    fn submit(&mut self, file: usize, effect: Effect, waker: Waker) -> u64 {
        let id = self.submitted;
        self.submitted += 1;
        let fault = self.faults.remove(&id);
        let pace = match fault {
            Some(Fault::Never) => Pace::Never,
            Some(Fault::Late) => Pace::Last,
            _ if self.random.below(SLOW_ONE_IN) == 0 => Pace::Slow,
            _ => Pace::Usual,
        };
        self.pending.push(Pending { id, file, effect, since: self.now, pace, fault, waker });
        id
    }

    /// The next operation to complete.
    fn choose(&mut self) -> Option<usize> {
        let slow_first = self.random.below(SLOW_FIRST_ONE_IN) == 0;
        let paces = if slow_first {
            [Pace::Slow, Pace::Usual, Pace::Last]
        } else {
            [Pace::Usual, Pace::Slow, Pace::Last]
        };
        paces.into_iter().find_map(|pace| {
            let count = self.pending.iter().filter(|p| p.pace == pace).count() as u64;
            let nth = self.random.below(count.max(1)) as usize;
            let mut alike = self.pending.iter().enumerate().filter(|(_, p)| p.pace == pace);
            alike.nth(nth).map(|(index, _)| index)
        })
    }

    fn complete(&mut self, pending: &Pending) -> io::Result<()> {
        let file = &mut self.files[pending.file];
        let error = match pending.fault {
            Some(Fault::Io | Fault::Short) => Some(io::Error::from_raw_os_error(libc::EIO)),
            Some(Fault::NoSpace) => Some(io::ErrorKind::StorageFull.into()),
            Some(Fault::Late | Fault::Never) | None => None,
        };
        if let (Effect::Read { at, into }, None) = (&pending.effect, &error) {
            let mut bytes = vec![0; into.len() as usize];
            file.visible().read(*at, &mut bytes);
            into.copy_from(0, &bytes);
        }
        if matches!(pending.effect, Effect::Sync) {
            match &error {
                None => file.sync(pending.since),
                Some(_) => {
                    file.fail_sync(pending.since, &mut self.random);
                    self.failed_syncs += 1;
                }
            }
        }
        if error.is_none() {
            file.reserve(&pending.effect)?;
        }
        let mut changes = pending.effect.changes(file.visible());
        match pending.fault {
            Some(Fault::Io) => changes = some_of(changes, &mut self.random),
            Some(Fault::NoSpace) => changes.clear(),
            Some(Fault::Short) => changes.truncate(changes.len() / 2),
            Some(Fault::Late | Fault::Never) | None => {}
        }
        self.now += 1;
        file.apply(changes, self.now);
        error.map_or(Ok(()), Err)
    }
}

/// Whether the root future has been woken.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}
