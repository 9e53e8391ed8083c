//! All processors of a machine: running, held, or stopped together.
//!
//! A thread in the guest sees nothing of this program. A signal makes KVM return from there; one that comes a moment before
//! the thread enters the guest gets lost, so it is repeated until the thread has seen what is wanted.

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::Signal;
use qcow::sync::lock;

use super::{Exits, Vcpu};
use crate::devices::Devices;
use crate::outcome::Event;
use crate::ram::GuestMemory;

/// Makes KVM return; it means nothing else.
const KICK: Signal = Signal::SIGUSR1;
/// How long to wait before a signal is repeated.
const PATIENCE: Duration = Duration::from_millis(1);

/// What the processors are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Run,
    Hold,
    Stop,
}

/// Where processors learn what they are to do.
#[derive(Debug)]
pub struct Gate {
    /// Whether it is anything but running: to be looked at often.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    wish: Wish,
    /// Processors that are not in the guest, and will not go there before the wish changes.
    outside: usize,
}

impl Gate {
    fn new() -> Self {
        let state = State { wish: Wish::Run, outside: 0 };
        Self { closed: AtomicBool::new(false), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A processor is about to enter the guest: waits while it is to be held. Whether it may go on.
    pub fn pass(&self) -> bool {
        if !self.closed.load(Ordering::Acquire) {
            return true;
        }
        let mut state = lock(&self.state);
        state.outside += 1;
        self.changed.notify_all();
        let held = self.changed.wait_while(state, |state| state.wish == Wish::Hold);
        let mut state = held.unwrap_or_else(std::sync::PoisonError::into_inner);
        let may_run = state.wish == Wish::Run;
        if may_run {
            state.outside -= 1;
        }
        may_run
    }

    /// A processor has ended by itself.
    pub fn leave(&self) {
        lock(&self.state).outside += 1;
        self.changed.notify_all();
    }
}

/// See the module.
#[derive(Debug)]
pub struct Processors {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

impl Processors {
    /// Runs each of `vcpus` on a thread of its own.
    pub fn start(
        vcpus: Vec<Vcpu>,
        memory: &GuestMemory,
        devices: &Arc<Devices>,
        exits: &Arc<Exits>,
        end: &Sender<Event>,
    ) -> Result<Self> {
        // The flag is of no use: that there is a handler makes the signal harmless.
        signal_hook::flag::register(KICK as i32, Arc::default()).context("cannot catch signals")?;
        let gate = Arc::new(Gate::new());
        let run = |vcpu: Vcpu| {
            vcpu.run(
                memory.clone(),
                Arc::clone(devices),
                Arc::clone(&gate),
                Arc::clone(exits),
                end.clone(),
            )
        };
        let threads = vcpus.into_iter().map(run).collect::<Result<_>>()?;
        Ok(Self { gate, threads })
    }

    /// Holds all processors; none is in the guest when this returns.
    pub fn hold(&self) {
        self.wish(Wish::Hold);
        self.wait_outside();
    }

    /// Whether they are held.
    pub fn are_held(&self) -> bool {
        lock(&self.gate.state).wish == Wish::Hold
    }

    /// Lets held processors go on.
    pub fn go_on(&self) {
        self.wish(Wish::Run);
    }

    /// Stops all processors for good.
    pub fn stop(self) {
        self.wish(Wish::Stop);
        self.wait_outside();
        for thread in self.threads {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }

    fn wish(&self, wish: Wish) {
        let mut state = lock(&self.gate.state);
        // One that is stopped stays so.
        if state.wish != Wish::Stop {
            state.wish = wish;
        }
        self.gate.closed.store(wish != Wish::Run, Ordering::Release);
        self.gate.changed.notify_all();
    }

    fn wait_outside(&self) {
        let mut state = lock(&self.gate.state);
        while state.outside < self.threads.len() {
            for thread in &self.threads {
                // One that has ended needs no signal.
                let _ = pthread_kill(thread.as_pthread_t(), KICK);
            }
            let waited = self.gate.changed.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}
