//! Carrying out a conversion: several workers take parts from one [`Cursor`], read them at the same time, and write them
//! one after the other, or in any order where that is allowed.

use std::cell::{Cell, RefCell};

use qcow::disk::{Buffer, Payload};
use qcow::exec::join_all;
use qcow::sync::{Exclusive, WaitQueue};

use super::args::Job;
use super::compress::Compress;
use super::plan::{Content, Cursor, PART_LEN, Part, Piece, Source, ZeroRule};
use super::{reading, writing};
use crate::failure::{Failure, Outcome};
use crate::image::HostImage;
use crate::progress::Progress;

/// A conversion under way.
pub struct Copy<'a> {
    sources: &'a [Source],
    target: &'a HostImage,
    rule: ZeroRule,
    job: &'a Job,
    /// Writes the target's clusters in compressed form.
    compress: Option<Compress<'a>>,
    /// Zeros are told from data in blocks of so many bytes.
    block_len: u64,
    cursor: RefCell<Cursor<'a>>,
    /// Held while a part is taken from the cursor.
    taking: Exclusive,
    turns: Turns,
}

/// Lets the workers write in the order in which they took their parts.
#[derive(Default)]
struct Turns {
    taken: Cell<u64>,
    written: Cell<u64>,
    failed: Cell<bool>,
    changed: WaitQueue,
}

impl<'a> Copy<'a> {
    /// A conversion that has not begun.
    pub fn new(
        sources: &'a [Source],
        target: &'a HostImage,
        rule: ZeroRule,
        job: &'a Job,
        compress: Option<Compress<'a>>,
    ) -> Self {
        // A cluster that holds any data is stored whole: writing it in one piece saves filling up its rest.
        let cluster = target.cluster_size().unwrap_or(512);
        let block_len = job.granularity.max(cluster).next_multiple_of(cluster);
        let cursor = RefCell::new(Cursor::new(sources, target, rule, block_len));
        let (taking, turns) = (Exclusive::default(), Turns::default());
        Self { sources, target, rule, job, compress, block_len, cursor, taking, turns }
    }

    /// Runs it to its end.
    pub async fn run(&self, progress: &mut Progress) -> Outcome {
        let progress = RefCell::new(progress);
        let workers = (0..self.job.parallel).map(|_| self.work(&progress));
        join_all(workers).await.into_iter().collect()
    }

    async fn work(&self, progress: &RefCell<&mut Progress>) -> Outcome {
        let buffer = Buffer::zeroed(PART_LEN as usize).payload();
        let done = self.work_through(&buffer, progress).await;
        if done.is_err() {
            self.turns.failed.set(true);
            self.turns.changed.wake_all();
        }
        done
    }

    async fn work_through(&self, buffer: &Payload, progress: &RefCell<&mut Progress>) -> Outcome {
        while let Some((turn, part)) = self.take(progress).await? {
            if let Part::Copy { source, at, pieces, .. } = &part {
                self.read(*source, *at, pieces, buffer).await?;
            }
            if self.job.in_order && !self.turns.wait_for(turn).await {
                return Ok(());
            }
            let len = self.write(&part, buffer).await?;
            self.turns.pass();
            progress.borrow_mut().advance(len);
        }
        Ok(())
    }

    /// The next part, with its number; `None` at the end, and after another worker has failed.
    #[expect(
        clippy::await_holding_refcell_ref,
        reason = "`taking` lets only one worker at a time come here"
    )]
    async fn take(&self, progress: &RefCell<&mut Progress>) -> Outcome<Option<(u64, Part)>> {
        let _alone = self.taking.acquire().await;
        if self.turns.failed.get() {
            return Ok(None);
        }
        let mut advance = |len| progress.borrow_mut().advance(len);
        let part = self.cursor.borrow_mut().next(&mut advance).await?;
        Ok(part.map(|part| (self.turns.next(), part)))
    }

    /// Fills `buffer` with the part at `at` of a source; what is inherited stays undefined.
    async fn read(&self, source: usize, at: u64, pieces: &[Piece], buffer: &Payload) -> Outcome {
        let source = &self.sources[source];
        for piece in pieces {
            match piece.content {
                Content::Data => {
                    let into = buffer.slice(piece.offset, piece.len);
                    let from = at + piece.offset;
                    let read = source.image.read(from, &into).await;
                    read.map_err(|e| reading(source.start + from, &e))?;
                }
                Content::Zeros => buffer.zero(piece.offset, piece.len),
                Content::Inherited => {}
            }
        }
        Ok(())
    }

    /// Writes a part; its length in bytes.
    async fn write(&self, part: &Part, buffer: &Payload) -> Outcome<u64> {
        match part {
            Part::Zero { at, len } => {
                self.write_zeroes(*at, *len).await?;
                Ok(*len)
            }
            Part::Copy { source, at, len, pieces } => {
                let target_at = self.sources[*source].start + at;
                if self.rule == ZeroRule::Overlay {
                    for piece in pieces.iter().filter(|p| p.content != Content::Inherited) {
                        self.write_range(target_at, piece.offset, piece.len, buffer).await?;
                    }
                } else {
                    self.write_range(target_at, 0, *len, buffer).await?;
                }
                Ok(*len)
            }
        }
    }

    /// Writes `len` bytes of the buffer from `offset` on, told apart into data and zeros.
    async fn write_range(&self, base: u64, offset: u64, len: u64, buffer: &Payload) -> Outcome {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (zero, run_end) = self.run_at(base, at, end, buffer);
            match (zero, self.rule) {
                (true, ZeroRule::Skip) => {}
                (true, ZeroRule::Write | ZeroRule::Overlay) => {
                    self.write_zeroes(base + at, run_end - at).await?;
                }
                (true, ZeroRule::Store) | (false, _) => {
                    self.write_data(base + at, &buffer.slice(at, run_end - at)).await?;
                    self.flush_if_writethrough().await?;
                }
            }
            at = run_end;
        }
        Ok(())
    }

    async fn write_data(&self, at: u64, data: &Payload) -> Outcome {
        match &self.compress {
            Some(compress) => compress.write(at, data).await,
            None => self.target.write(at, data).await.map_err(|e| writing(at, &e)),
        }
    }

    /// Whether the blocks from `at` on are zero, and where the run of such blocks ends.
    fn run_at(&self, base: u64, at: u64, end: u64, buffer: &Payload) -> (bool, u64) {
        if self.rule == ZeroRule::Store {
            return (false, end);
        }
        let block_end = |at: u64| {
            let target_at = base + at;
            end.min(at + self.block_len - target_at % self.block_len)
        };
        let is_zero = |at: u64| buffer.slice(at, block_end(at) - at).is_zero();
        let zero = is_zero(at);
        let mut run_end = block_end(at);
        while run_end < end && is_zero(run_end) == zero {
            run_end = block_end(run_end);
        }
        (zero, run_end)
    }

    async fn write_zeroes(&self, at: u64, len: u64) -> Outcome {
        let zeroed = self.target.write_zeroes(at, len, true).await;
        zeroed.map_err(|e| writing(at, &e))?;
        self.flush_if_writethrough().await
    }

    async fn flush_if_writethrough(&self) -> Outcome {
        match self.job.target_cache.writethrough {
            true => self.target.flush().await.map_err(Failure::from),
            false => Ok(()),
        }
    }
}

impl Turns {
    /// The number of the part that is taken now.
    fn next(&self) -> u64 {
        self.taken.replace(self.taken.get() + 1)
    }

    /// Waits until all parts before number `turn` are written; false if that will never be.
    async fn wait_for(&self, turn: u64) -> bool {
        let ready = || {
            if self.failed.get() {
                return Some(false);
            }
            (self.written.get() == turn).then_some(true)
        };
        self.changed.until(ready).await
    }

    /// A part is written.
    fn pass(&self) {
        self.written.set(self.written.get() + 1);
        self.changed.wake_all();
    }
}
