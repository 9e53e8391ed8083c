//! What a redo log asks for, held against what the image is now: nothing of it is believed.

use std::collections::BTreeSet;

use crate::addr::{Geometry, GuestCluster, HostCluster};
use crate::error::{Error, Result};
use crate::format::entry::{COPIED, Mapping};
use crate::meta::map::Place;
use crate::meta::plan::Held;
use crate::meta::{Asked, Meta, Run};
use crate::seeded_bugs::Bug;

/// A mapping that the file does not have yet.
#[derive(Clone, Copy, Debug)]
pub struct Redone {
    /// Of which cluster.
    pub guest: GuestCluster,
    /// What it is to be mapped to.
    pub mapping: Mapping,
    /// The host cluster that it names and that the cluster is not mapped to now.
    pub host: Option<HostCluster>,
}

/// What is known of a host cluster that a log wants mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    /// Nobody counts it, so nobody names it.
    Free,
    /// It is counted: for what the log says, or for somebody else.
    Counted,
    /// It has no refcount block: the one at this index of the table has to be made.
    MissingBlock(u64),
}

/// The host clusters that `all` map anew.
///
/// # Errors
/// One is to be mapped twice.
pub fn new_hosts(all: &[Redone]) -> Result<BTreeSet<HostCluster>> {
    let mut hosts = BTreeSet::new();
    for host in all.iter().filter_map(|redone| redone.host) {
        if !hosts.insert(host) {
            return Err(Error::corrupt(format!("a redo log maps cluster {} twice", host.get())));
        }
    }
    Ok(hosts)
}

impl Meta {
    /// What an entry of a log would change; `None` where the file has it.
    ///
    /// # Errors
    /// It cannot be the entry of this cluster in this image.
    pub fn plan_redo(
        &mut self,
        geometry: Geometry,
        guest: GuestCluster,
        entry: [u64; 2],
    ) -> Asked<Result<Option<Redone>>> {
        let is_inside = geometry.l1_index(guest).0 < self.map.l1().words().len();
        let old = match self.own_place(guest) {
            _ if !is_inside => Err(Error::corrupt("it lies behind the L1 table")),
            Ok(Place::NoTable) => Ok(Mapping::Unallocated),
            Ok(Place::OwnTable(slot) | Place::SharedTable(slot)) => self.map.mapping(slot)?,
            Err(e) => Err(e),
        };
        let redone = old.and_then(|old| self.judge_redo(geometry, guest, entry, old));
        Ok(redone.map_err(|e| e.context(format!("guest cluster {guest} in a redo log"))))
    }

    fn judge_redo(
        &self,
        geometry: Geometry,
        guest: GuestCluster,
        entry: [u64; 2],
        old: Mapping,
    ) -> Result<Option<Redone>> {
        let mut mapping = self.map.parse(entry)?;
        if let Mapping::Compressed(_) = mapping {
            return Err(Error::corrupt("it records no compressed clusters"));
        }
        self.map.check_place(guest, mapping)?;
        self.check_mapping(geometry, old)?;
        let mut host = mapping.host();
        if let (Some(new), Some(old)) = (host, old.host())
            && new.cluster == old.cluster
        {
            // Who else refers to it, the tables know.
            let [word, bitmap] = entry;
            let flag = if old.copied { COPIED } else { 0 };
            mapping = self.map.parse([word & !COPIED | flag, bitmap])?;
            host = None;
        }
        if mapping == old {
            return Ok(None);
        }
        if let Some(host) = host {
            if !host.copied {
                return Err(Error::corrupt("it maps a cluster that is not its own"));
            }
            self.check_mapping(geometry, mapping)?;
        }
        // The place in a file of its own belongs to nobody else, and is counted nowhere.
        let counted = host.filter(|_| !self.map.data_place().is_external());
        Ok(Some(Redone { guest, mapping, host: counted.map(|host| host.cluster) }))
    }

    /// What the counts say of a cluster that a log wants mapped.
    ///
    /// # Errors
    /// No log can name it: its refcount block would lie there, or beyond the refcount table.
    pub fn host_of_redo(
        &mut self,
        geometry: Geometry,
        host: HostCluster,
    ) -> Asked<Result<HostState>> {
        let Some(count) = self.refs.get(host)? else {
            let index = geometry.refcount_block_index(host);
            // Whoever claimed it had made the table long enough, in the file, and put the block in its first place.
            let is_known = index < self.refs.table().words().len() as u64;
            return Ok(match is_known && host != geometry.refcount_block_first(index) {
                true => Ok(HostState::MissingBlock(index)),
                false => {
                    let number = host.get();
                    Err(Error::corrupt(format!(
                        "a redo log names cluster {number}, which no block counts"
                    )))
                }
            });
        };
        Ok(Ok(if count == 0 { HostState::Free } else { HostState::Counted }))
    }

    /// Counts a cluster that nobody names yet for the one mapping that will.
    pub fn count_for_redo(&mut self, host: HostCluster) -> Asked<Result<()>> {
        if Bug::ReplayCountsNothing.is_seeded() {
            return Ok(Ok(()));
        }
        if let Err(e) = self.check_unused(host, 1) {
            return Ok(Err(e));
        }
        self.refs.get(host)?;
        self.refs.set(host, 1)?;
        self.note_claimed(&Run { first: host, count: 1, fresh: false });
        Ok(Ok(()))
    }

    /// Maps the one cluster that is held as `redone` says; `punch` is for what it was mapped to.
    ///
    /// # Errors
    /// Data cannot lie there; then nothing has been changed.
    pub fn link_redone(
        &mut self,
        geometry: Geometry,
        held: &Held,
        redone: &Redone,
        punch: bool,
    ) -> Result<()> {
        if let Some(host) = redone.host
            && !Bug::ReplayCountsNothing.is_seeded()
        {
            self.check_target(geometry, host, 1)?;
        }
        self.relink(geometry, held.slot, redone.mapping, punch);
        Ok(())
    }
}
