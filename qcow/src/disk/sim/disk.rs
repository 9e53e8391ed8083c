//! The [`Disk`] of a simulation: a handle on one file of a [`World`].

use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::World;
use super::content::Content;
use super::effect::Effect;
use super::power_cut::PowerCut;
use super::random::Random;
use crate::addr::HostOffset;
use crate::disk::{Disk, FileExtent, Identity, Payload};
use crate::sync::lock;

/// One file of a [`World`].
#[derive(Clone, Debug)]
pub struct SimDisk {
    world: World,
    file: usize,
}

impl SimDisk {
    pub(super) fn new(world: World, file: usize) -> Self {
        Self { world, file }
    }

    /// Lets writes that need more than `bytes` of space fail, as on a full file system.
    pub fn set_capacity(&self, bytes: u64) {
        lock(&self.world.state).files[self.file].set_capacity(bytes);
    }

    /// A copy of the file as it reads now.
    pub fn content(&self) -> Content {
        lock(&self.world.state).files[self.file].visible().clone()
    }

    /// A copy of the file's bytes as they are now.
    pub fn to_vec(&self) -> Vec<u8> {
        self.content().to_vec()
    }

    /// What the file reads as if the process that drives it is killed at this moment: what is under way happens in part.
    pub fn killed(&self, random: &mut Random) -> Content {
        let state = lock(&self.world.state);
        let in_flight = state.pending.iter().filter(|p| p.file == self.file);
        state.files[self.file].killed(in_flight.map(|p| &p.effect), random)
    }

    /// What a power cut at this moment may leave of the file.
    pub fn power_cut(&self) -> PowerCut {
        let state = lock(&self.world.state);
        let in_flight = state.pending.iter().filter(|p| p.file == self.file);
        state.files[self.file].power_cut(in_flight.map(|p| &p.effect))
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
        let waker = context.waker();
        match &mut self.state {
            SubmittedState::New(effect) => {
                let effect = effect.take().expect("an operation is submitted once");
                let id = state.submit(file, effect, waker.clone());
                drop(state);
                self.state = SubmittedState::Waiting(id);
                Poll::Pending
            }
            SubmittedState::Waiting(id) => {
                if let Some(result) = state.results.remove(id) {
                    return Poll::Ready(result);
                }
                if let Some(pending) = state.pending.iter_mut().find(|p| p.id == *id) {
                    pending.waker.clone_from(waker);
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
        let junk = self.world.toss();
        self.submit(Effect::Punch { at: at.get(), len, junk }).await.map(|()| !junk)
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

    fn drop_cache(&self, bytes: Range<u64>) -> io::Result<()> {
        lock(&self.world.state).files[self.file].drop_cache(bytes);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.world.state).files[self.file].visible().len())
    }

    fn allocated_len(&self) -> io::Result<u64> {
        Ok(lock(&self.world.state).files[self.file].visible().allocated_len())
    }

    fn extent_at(&self, at: HostOffset) -> io::Result<FileExtent> {
        Ok(lock(&self.world.state).files[self.file].visible().extent_at(at.get()))
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn identity(&self) -> Identity {
        Identity { device: 0, inode: self.file as u64 }
    }

    fn random_number(&self) -> u64 {
        lock(&self.world.state).numbers.draw()
    }
}
