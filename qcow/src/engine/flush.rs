//! Making writes durable: carrying out the order that `meta::order` lays down.

use super::Image;
use super::layer::{Layer, Qcow2};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::exec::try_join_all;
use crate::limits::IN_FLIGHT_MAX;
use crate::meta::Meta;
use crate::meta::order::{Barrier, FlushPlan, Stage, Turn};
use crate::seeded_bugs::Bug;
use crate::sync::lock;

impl<D: Disk> Image<D> {
    /// Makes every write, zeroing and discard that completed before this call durable.
    ///
    /// # Errors
    /// After a failed flush of the host file nothing more is promised: the image takes no more writes.
    pub async fn flush(&self) -> Result<()> {
        match self.top() {
            Layer::Raw(raw) => raw.flush().await,
            Layer::Luks(luks) => luks.raw().flush().await,
            // Where flushes do not reach the disk, this is still how freed clusters come to be free.
            Layer::Qcow2(qcow2) if self.is_writable() => qcow2.write_back().await,
            Layer::Sealed(sealed) if self.is_writable() => sealed.flush().await,
            Layer::Qcow2(_) | Layer::Sealed(_) => Ok(()),
        }
    }
}

impl<D: Disk> Qcow2<D> {
    /// Writes all metadata back, and frees what may be freed after that. To be called outside of the drain.
    pub(super) async fn write_back(&self) -> Result<()> {
        self.guarded(async {
            if Bug::ReusedBeforeUnlinkIsDurable.is_seeded() {
                self.reclaim().await?;
            }
            self.flush_metadata().await?;
            self.reclaim().await?;
            self.punch_data().await;
            Ok(())
        })
        .await
    }

    /// Writes all metadata back in order; whoever asks while that is under way shares the next round.
    pub(super) async fn flush_metadata(&self) -> Result<()> {
        match self.flush_turn().await {
            Turn::Done(result) => result,
            Turn::Lead | Turn::Wait => self.lead(|_| ()).await.result.clone(),
        }
    }

    /// As [`Self::flush_metadata`], and nobody else flushes until the guard is dropped. What `look` sees of the metadata is
    /// durable then.
    pub(super) async fn flush_alone(&self, look: impl FnOnce(&Meta)) -> Result<Lead<'_, D>> {
        while let Turn::Done(_) = self.flush_turn().await {}
        let lead = self.lead(look).await;
        lead.result.clone().map(|()| lead)
    }

    /// Waits until a flush from now on is done, or up to the caller.
    async fn flush_turn(&self) -> Turn {
        let ticket = lock(&self.meta).flush.ticket();
        let turn = self.wait(|meta| match meta.flush.turn(ticket) {
            Turn::Wait => None,
            turn => Some(turn),
        });
        turn.await
    }

    async fn lead(&self, look: impl FnOnce(&Meta)) -> Lead<'_, D> {
        let mut lead = Lead { image: self, plan: None, result: Err(cut_short()) };
        lead.result = lead.run(look).await;
        lead
    }

    async fn carry_out(&self, plan: &FlushPlan) -> Result<()> {
        if !Bug::DataFileNotSynced.is_seeded() {
            self.sync_data().await?;
        }
        let stages = plan.stages(self.geometry);
        if stages.is_empty() {
            return self.barrier().await;
        }
        for stage in &stages {
            self.write_stage(stage).await?;
            if !forgotten(stage.barrier) {
                self.barrier().await?;
            }
        }
        Ok(())
    }

    async fn write_stage(&self, stage: &Stage<'_>) -> Result<()> {
        let writes =
            stage.writes.iter().map(|write| self.write_metadata(write.kind, write.at, write.bytes));
        try_join_all(IN_FLIGHT_MAX, writes).await
    }
}

/// Whether a seeded bug leaves out this barrier.
fn forgotten(barrier: Barrier) -> bool {
    match barrier {
        Barrier::BeforeRefcountTable => Bug::NoBarrierBeforeRefcountTable.is_seeded(),
        Barrier::BeforeMappings => Bug::NoBarrierBeforeMappings.is_seeded(),
        Barrier::BeforeAcknowledgement => Bug::NoBarrierBeforeAcknowledgement.is_seeded(),
    }
}

/// The one who flushes for all. However it ends, the others learn of it.
pub(super) struct Lead<'a, D: Disk> {
    image: &'a Qcow2<D>,
    plan: Option<FlushPlan>,
    result: Result<()>,
}

impl<D: Disk> Lead<'_, D> {
    async fn run(&mut self, look: impl FnOnce(&Meta)) -> Result<()> {
        let plan = {
            let mut meta = lock(&self.image.meta);
            meta.check_writable()?;
            look(&meta);
            meta.plan_flush()
        };
        let plan = self.plan.insert(plan);
        self.image.carry_out(plan).await
    }
}

impl<D: Disk> Drop for Lead<'_, D> {
    fn drop(&mut self) {
        let mut meta = lock(&self.image.meta);
        if let Some(plan) = self.plan.take() {
            meta.end_flush(plan, self.result.is_ok());
        }
        meta.flush.end(&self.result);
        drop(meta);
        self.image.changed.wake_all();
    }
}

fn cut_short() -> Error {
    Error::new(crate::error::ErrorKind::Io, "a flush was cut short")
}
