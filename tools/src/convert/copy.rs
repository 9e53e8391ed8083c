//! Carrying out a conversion: several workers take parts from one [`Cursor`], read them at the same time, and write them
//! one after the other, or in any order where that is allowed.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use qcow::disk::{Buffer, Payload};
use qcow::exec::{join_all, try_join_all};
use qcow::limits::IN_FLIGHT_MAX;
use qcow::sync::{Exclusive, WaitQueue};

use super::args::Job;
use super::compress::Compress;
use super::offload::Offload;
use super::plan::{Content, Cursor, PART_LEN, Part, Piece, Rules, ZeroRule};
use super::sources::Sources;
use super::{reading, writing};
use crate::failure::{Failure, Outcome};
use crate::image::HostImage;
use crate::progress::Progress;
use crate::rate::Rate;

/// A conversion under way.
pub struct Copy<'a> {
    job: &'a Job,
    sources: &'a Sources,
    target: &'a HostImage,
    rules: Rules,
    how: How<'a>,
    cursor: RefCell<Cursor<'a>>,
    /// Held while a part is taken from the cursor.
    taking: Exclusive,
    turns: Turns,
}

/// How a conversion writes.
pub struct How<'a> {
    /// Every write is flushed.
    pub writethrough: bool,
    /// How fast it may write.
    pub rate: Option<RefCell<Rate>>,
    /// Writes the target's clusters in compressed form.
    pub compress: Option<Compress<'a>>,
    /// Lets the host copy.
    pub offload: Option<Offload>,
}

/// A stretch of a buffer that is all data or all zeros.
#[derive(Clone, Copy)]
struct Run {
    zero: bool,
    start: u64,
    end: u64,
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
    /// A conversion that has not begun; of a target that shows the source as it was `before`, only the changes since.
    pub fn new(
        job: &'a Job,
        sources: &'a Sources,
        target: &'a HostImage,
        rules: Rules,
        how: How<'a>,
        before: Option<&'a HostImage>,
    ) -> Self {
        let cursor = RefCell::new(Cursor::new(sources, target, rules, before));
        let (taking, turns) = (Exclusive::default(), Turns::default());
        Self { job, sources, target, rules, how, cursor, taking, turns }
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
        while let Some((turn, part)) = self.take().await? {
            let offload = self.how.offload.as_ref().filter(|offload| offload.works());
            if let (Part::Copy { at, pieces }, None) = (&part, offload) {
                self.read(*at, pieces, buffer).await?;
            }
            if self.job.in_order && !self.turns.wait_for(turn).await {
                return Ok(());
            }
            let work = part.work(self.rules.zeros);
            match (part, offload) {
                (Part::Zero { at, len }, _) => self.write_zeroes(at, len).await?,
                (Part::Copy { at, pieces }, Some(offload)) => {
                    self.offload(at, &pieces, buffer, offload).await?;
                }
                (Part::Copy { at, pieces }, None) => self.write(at, &pieces, buffer).await?,
            }
            self.turns.pass();
            progress.borrow_mut().advance(work);
        }
        Ok(())
    }

    /// The next part, with its number; `None` at the end, and after another worker has failed.
    #[expect(
        clippy::await_holding_refcell_ref,
        reason = "`taking` lets only one worker at a time come here"
    )]
    async fn take(&self) -> Outcome<Option<(u64, Part)>> {
        let _alone = self.taking.acquire().await;
        if self.turns.failed.get() {
            return Ok(None);
        }
        let part = self.cursor.borrow_mut().next().await?;
        Ok(part.map(|part| (self.turns.next(), part)))
    }

    /// Fills `buffer` with the part at `at`; what is inherited stays undefined.
    async fn read(&self, at: u64, pieces: &[Piece], buffer: &Payload) -> Outcome {
        let zeros = pieces.iter().filter(|piece| piece.content == Content::Zeros);
        zeros.for_each(|piece| buffer.zero(piece.at - at, piece.len));
        let data = pieces.iter().filter(|piece| piece.content == Content::Data);
        let reads =
            data.map(|piece| self.read_piece(piece, buffer.slice(piece.at - at, piece.len)));
        // So that failed reads are told in their order.
        let limit = if self.rules.salvage.is_some() { 1 } else { IN_FLIGHT_MAX };
        try_join_all(limit, reads).await
    }

    async fn read_piece(&self, piece: &Piece, into: Payload) -> Outcome {
        let source = &self.sources.list[piece.source];
        let from = piece.at - source.start;
        if let Some(salvage) = self.rules.salvage {
            salvage.read(&source.image, from, &into).await;
            return Ok(());
        }
        source.image.read(from, &into).await.map_err(|e| reading(piece.at, &e))
    }

    /// Writes the part at `at`.
    async fn write(&self, at: u64, pieces: &[Piece], buffer: &Payload) -> Outcome {
        for run in pieces.chunk_by(|one, next| is_inherited(one) == is_inherited(next)) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            if !is_inherited(first) {
                let len = last.at + last.len - first.at;
                let zeros = self.known_zeros(run);
                self.write_range(first.at, &buffer.slice(first.at - at, len), &zeros).await?;
            }
        }
        Ok(())
    }

    /// Lets the host copy the part at `at`; the rest of it that it does not copy is read and written.
    async fn offload(
        &self,
        at: u64,
        pieces: &[Piece],
        buffer: &Payload,
        offload: &Offload,
    ) -> Outcome {
        for piece in pieces {
            let from = piece.at - self.sources.list[piece.source].start;
            if piece.content == Content::Data {
                self.wait_for_rate(piece.len);
                if offload.copy(piece.source, from, piece.at, piece.len) {
                    continue;
                }
            }
            let pieces = std::slice::from_ref(piece);
            self.read(at, pieces, buffer).await?;
            self.write(at, pieces, buffer).await?;
        }
        self.flush_if_writethrough().await
    }

    /// The stretches of the target that are zeros without a look at the bytes, as far as they are whole units of it; none
    /// where zeros are not told from data.
    fn known_zeros(&self, pieces: &[Piece]) -> Vec<Range<u64>> {
        if !self.rules.finds_zeros {
            return Vec::new();
        }
        let unit = self.rules.unit;
        let runs = pieces.chunk_by(|one, next| one.content == next.content);
        let zeros = runs.filter_map(|run| {
            let (first, last) = (run.first()?, run.last()?);
            let (start, end) = (first.at.next_multiple_of(unit), last.at + last.len);
            let end = if end == self.sources.total { end } else { end / unit * unit };
            (first.content == Content::Zeros && start < end).then_some(start..end)
        });
        zeros.collect()
    }

    /// Writes `data` at `at`, told apart into data and zeros, some of which are known.
    async fn write_range(&self, at: u64, data: &Payload, zeros: &[Range<u64>]) -> Outcome {
        // Compressed clusters are stored in the order of the disk, and a write that is flushed at once comes alone.
        let alone = self.how.compress.is_some() || self.how.writethrough;
        let limit = if alone { 1 } else { IN_FLIGHT_MAX };
        let writes =
            self.runs(at, data, zeros).into_iter().map(|run| self.write_run(at, data, run));
        try_join_all(limit, writes).await
    }

    /// The stretches of `data`, which goes to `at`, that are all data or all zeros; without zeros that need nothing.
    fn runs(&self, at: u64, data: &Payload, zeros: &[Range<u64>]) -> Vec<Run> {
        let (mut runs, mut start) = (Vec::new(), 0);
        while start < data.len() {
            let known = zeros.iter().find(|zeros| at + start < zeros.end);
            let (zero, end) = match known {
                Some(known) if known.start <= at + start => (true, known.end - at),
                Some(known) => self.run_at(at, start, &data.slice(0, known.start - at)),
                None => self.run_at(at, start, data),
            };
            if !zero || self.rules.zeros != ZeroRule::Skip {
                runs.push(Run { zero, start, end });
            }
            start = end;
        }
        runs
    }

    async fn write_run(&self, at: u64, data: &Payload, run: Run) -> Outcome {
        let Run { zero, start, end } = run;
        if zero {
            return self.write_zeroes(at + start, end - start).await;
        }
        self.wait_for_rate(end - start);
        self.write_data(at + start, &data.slice(start, end - start)).await?;
        self.flush_if_writethrough().await
    }

    async fn write_data(&self, at: u64, data: &Payload) -> Outcome {
        match &self.how.compress {
            Some(compress) => compress.write(at, data).await,
            None => self.target.write(at, data).await.map_err(|e| writing(at, &e)),
        }
    }

    /// Whether the blocks of `data`, which goes to `at`, are zero from `from` on, and where the run of such blocks ends.
    fn run_at(&self, at: u64, from: u64, data: &Payload) -> (bool, u64) {
        if !self.rules.finds_zeros {
            return (false, data.len());
        }
        let block_len = self.rules.block_len;
        let block_end = |from: u64| data.len().min(from + block_len - (at + from) % block_len);
        let is_zero = |from: u64| data.slice(from, block_end(from) - from).is_zero();
        let zero = is_zero(from);
        let mut run_end = block_end(from);
        while run_end < data.len() && is_zero(run_end) == zero {
            run_end = block_end(run_end);
        }
        (zero, run_end)
    }

    async fn write_zeroes(&self, at: u64, len: u64) -> Outcome {
        let zeroed = self.target.write_zeroes(at, len, true).await;
        zeroed.map_err(|e| writing(at, &e))?;
        self.flush_if_writethrough().await
    }

    fn wait_for_rate(&self, bytes: u64) {
        if let Some(rate) = &self.how.rate {
            rate.borrow_mut().wait_for(bytes);
        }
    }

    async fn flush_if_writethrough(&self) -> Outcome {
        match self.how.writethrough {
            true => self.target.flush().await.map_err(Failure::from),
            false => Ok(()),
        }
    }
}

fn is_inherited(piece: &Piece) -> bool {
    piece.content == Content::Inherited
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
