//! Serving one virtqueue on one thread and one io_uring: kicks, requests, completions and commands.
//!
//! All of it happens in turns. A turn takes what has come, starts requests, returns what has ended in one batch with at
//! most one interrupt. Then the thread looks again for a while if that has paid lately ([`Poller`]), and sleeps in its ring
//! until something more comes. Between two turns the ring takes what was queued for the kernel, and what has ended there.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::task::{Context, Poll};
use std::time::Instant;

use qcow::disk::uring::{self, Readiness};
use qcow::exec::SlotPool;

use crate::bell::Bell;
use crate::chain::{Chain, Indirect};
use crate::command::{Command, Start};
use crate::device::Device;
use crate::execute::execute;
use crate::image::DiskImage;
use crate::memory::{Buffers, QueueMemory};
use crate::poller::Poller;
use crate::request::{Done, Operation, Refusal, Request};
use crate::virtqueue::{Virtqueue, VirtqueueBroken};

/// Requests that a turn takes. What the page cache has is read as soon as it is handed to the kernel, so all of a turn ends
/// at once: were it all that the guest has offered, the guest would wait while we work and we would wait while it does.
/// A guest that offers faster than we take does not keep the thread from everything else, either.
const TURN_REQUESTS_MAX: u16 = 16;

/// Carries out the commands from `inbox`, which `bell` announces, until their sender is gone.
pub fn serve(image: &DiskImage, device: &Device, inbox: Receiver<Command>, bell: &Bell) {
    uring::block_on(async {
        let mut requests = SlotPool::new(device.shape().queue_size.into());
        let mut server = Server {
            device,
            inbox,
            rung: Readiness::watch(bell.watched()),
            queue: None,
            stopping: None,
            closed: false,
        };
        let start = |request| execute(image, device, request);
        poll_fn(|context| server.turn(context, &mut requests, &start)).await;
    });
}

struct Server<'a> {
    device: &'a Device,
    inbox: Receiver<Command>,
    /// Ready when there is a command.
    rung: Readiness,
    queue: Option<Queue>,
    /// Who waits for the queue to stop.
    stopping: Option<Sender<u16>>,
    /// Whether no more commands will come.
    closed: bool,
}

impl Server<'_> {
    /// Does all there is to do now; ready when the worker is to end.
    fn turn<F: Future<Output = Done>>(
        &mut self,
        context: &mut Context<'_>,
        requests: &mut SlotPool<F>,
        start: &impl Fn(Request) -> F,
    ) -> Poll<()> {
        if self.rung.poll_ready(context).is_ready() {
            // Armed anew before the inbox is emptied, so that no command slips through.
            while self.rung.poll_ready(context).is_ready() {}
            self.take_commands();
        }
        if let Some(queue) = &mut self.queue {
            queue.listen(context);
            while let Poll::Ready(done) = requests.poll_next(context) {
                queue.ring.put_used(done.head, done.written);
            }
            let ending = self.stopping.is_some() || self.closed;
            if ending {
                queue.fetch_unfinished(self.device, requests, start);
            } else {
                queue.fetch(self.device, requests, start);
            }
            let busy = queue.publish() || queue.taken > 0;
            if !ending && queue.wants_turn(busy, requests) {
                // By way of the ring, so that I/O and commands have their turn.
                context.waker().wake_by_ref();
            }
        }
        let idle = requests.is_empty() && !self.queue.as_ref().is_some_and(Queue::has_unfinished);
        if idle && (self.stopping.is_some() || self.closed) {
            self.finish();
        }
        if self.closed && idle { Poll::Ready(()) } else { Poll::Pending }
    }

    fn take_commands(&mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Start(start)) => {
                    self.pin(&start.memory);
                    self.queue = Some(Queue::new(*start));
                }
                Ok(Command::SetCall(call)) => {
                    if let Some(queue) = &mut self.queue {
                        queue.call = call;
                        queue.interrupt();
                    }
                }
                Ok(Command::Stop(reply)) => self.stopping = Some(reply),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    /// Pins the guest's memory if that is wanted and the host allows it.
    fn pin(&self, memory: &Arc<QueueMemory>) {
        if !self.device.shape().pin_memory {
            return;
        }
        if let Err(e) = uring::pin_memory(Buffers::whole_memory(memory)) {
            let (name, why) = (self.device.name(), qcow::error::reason(&e));
            tracing::warn!("{name}: the guest's memory is not pinned: {why} (see 'ulimit -l')");
        }
    }

    /// Nothing is in flight: lets go of the queue and its memory, then says so.
    fn finish(&mut self) {
        uring::unpin_memory();
        let next = self.queue.take().map_or(0, |queue| queue.ring.next_available());
        if let Some(reply) = self.stopping.take() {
            // It fails only while the process ends.
            let _ = reply.send(next);
        }
    }
}

/// A queue that is being served.
struct Queue {
    ring: Virtqueue,
    memory: Arc<QueueMemory>,
    indirect: Indirect,
    /// `None`: the guest does not kick, so the ring is looked at all the time.
    kick: Option<Readiness>,
    call: Option<Arc<File>>,
    error: Option<Arc<File>>,
    /// Requests that the last turn has taken.
    taken: u16,
    poller: Poller,
    /// Set once the guest has broken the ring; what is in flight is still finished.
    broken: bool,
}

impl Queue {
    fn new(start: Start) -> Self {
        let Start { ring, memory, indirect, kick, call, error } = start;
        let kick = kick.map(Readiness::watch);
        let (taken, poller, broken) = (0, Poller::default(), false);
        let queue = Self { ring, memory, indirect, kick, call, error, taken, poller, broken };
        // A guest that waits for an interrupt which the last backend owed it looks at its ring again.
        queue.interrupt();
        queue
    }

    /// Arranges to be woken for the next kick. What a kick says is not remembered: every turn looks at the ring.
    fn listen(&mut self, context: &mut Context<'_>) {
        if let Some(kick) = &mut self.kick {
            while kick.poll_ready(context).is_ready() {}
        }
    }

    /// Starts the requests that the guest has offered. None of them kicks until [`Self::wants_turn`] says that the thread
    /// may sleep.
    fn fetch<F: Future<Output = Done>>(
        &mut self,
        device: &Device,
        requests: &mut SlotPool<F>,
        start: &impl Fn(Request) -> F,
    ) {
        self.taken = 0;
        if self.broken {
            return;
        }
        self.ring.disable_kicks();
        self.fetch_unfinished(device, requests, start);
        while !requests.is_full() && self.taken < TURN_REQUESTS_MAX {
            match self.ring.take() {
                Ok(None) => break,
                Ok(Some(head)) => self.begin(head, device, requests, start),
                Err(broken) => return self.give_up(device, broken),
            }
            self.taken += 1;
        }
    }

    /// Starts what was taken before the ring started, and has to be done in any case.
    fn fetch_unfinished<F: Future<Output = Done>>(
        &mut self,
        device: &Device,
        requests: &mut SlotPool<F>,
        start: &impl Fn(Request) -> F,
    ) {
        while !requests.is_full()
            && let Some(head) = self.ring.take_unfinished()
        {
            self.begin(head, device, requests, start);
            self.taken += 1;
        }
    }

    fn has_unfinished(&self) -> bool {
        self.ring.has_unfinished()
    }

    /// Whether to look at the ring again before sleeping, after a turn that was `busy` or not; the guest kicks otherwise.
    fn wants_turn<F: Future>(&mut self, busy: bool, requests: &SlotPool<F>) -> bool {
        // With all slots taken, the end of a request leads back here.
        if self.broken || requests.is_full() {
            return false;
        }
        if busy {
            self.poller.busy(Instant::now);
            return true;
        }
        // What is in flight wakes the thread when it ends; looking for that would only take time from who works on it.
        let looks = requests.is_empty() && self.poller.looks_again(Instant::now);
        // The ring is looked at once more after kicks are asked for.
        self.kick.is_none() || looks || self.ring.enable_kicks()
    }

    fn begin<F: Future<Output = Done>>(
        &mut self,
        head: u16,
        device: &Device,
        requests: &mut SlotPool<F>,
        start: &impl Fn(Request) -> F,
    ) {
        let chain = Chain::walk(&self.ring, head, &self.memory, self.indirect);
        let Some(status) = chain.status() else {
            let why = chain.fault.map_or("there is no writable byte".to_owned(), |f| f.to_string());
            device.report(format_args!("a request without a place for its status: {why}"));
            return self.ring.put_used(head, 0);
        };
        match Operation::parse(&chain, device) {
            Ok(operation) => {
                if let Some(done) = requests.insert(start(Request { head, status, operation })) {
                    self.ring.put_used(done.head, done.written);
                }
            }
            Err(Refusal { status: answer, why }) => {
                device.report(format_args!("request refused: {why}"));
                status.copy_from(0, &[answer.byte()]);
                self.ring.put_used(head, 1);
            }
        }
    }

    /// Shows the guest what has ended; whether anything has.
    fn publish(&mut self) -> bool {
        let any = self.ring.has_unpublished();
        if self.ring.publish() {
            self.interrupt();
        }
        any
    }

    fn interrupt(&self) {
        signal(self.call.as_deref());
    }

    fn give_up(&mut self, device: &Device, broken: VirtqueueBroken) {
        tracing::warn!("{}: a queue is served no more: {broken}", device.name());
        self.broken = true;
        signal(self.error.as_deref());
    }
}

/// Adds one to an eventfd of the frontend.
fn signal(event: Option<&File>) {
    if let Some(mut event) = event {
        // Where the frontend does not empty it, it is not waiting for it either.
        let _ = event.write(&1u64.to_ne_bytes());
    }
}
