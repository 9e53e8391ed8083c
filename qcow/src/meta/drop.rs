//! L2 tables that are let go as a whole.

use super::map::Slot;
use super::reclaim::Release;
use super::regions::Kind;
use super::table::WordTable;
use super::{Asked, Meta};
use crate::addr::{Geometry, HostCluster, HostOffset, L1Index, SliceKey};
use crate::error::Result;
use crate::format::entry::Mapping;

impl Meta {
    /// The clusters that one slice of the L2 table in `table` names, in runs.
    ///
    /// # Errors
    /// An entry is damaged, or names what cannot be data.
    pub fn named_by_slice(
        &mut self,
        geometry: Geometry,
        table: HostCluster,
        slice: u32,
        punch: bool,
    ) -> Asked<Result<Vec<Release>>> {
        let key = SliceKey { table, index: slice };
        let mut named: Vec<Release> = Vec::new();
        for index in 0..geometry.l2_entries_per_slice() as usize {
            let mapping = match self.map.mapping(Slot { key, index })? {
                Ok(mapping) => mapping,
                Err(e) => return Ok(Err(e)),
            };
            if let Err(e) = self.check_mapping(geometry, mapping) {
                return Ok(Err(e));
            }
            let (first, count) = match (mapping, mapping.host()) {
                (Mapping::Compressed(extent), _) => geometry.host_span(extent.offset, extent.len),
                (_, Some(host)) if !self.map.data_place().is_external() => (host.cluster, 1),
                _ => continue,
            };
            match named.last_mut() {
                Some(last) if last.first.plus(last.count) == first => last.count += count,
                _ => named.push(Release { first, count, punch }),
            }
        }
        Ok(Ok(named))
    }

    /// Makes the L1 entry that names the L2 table in `table`, which names `named`, empty, and sends all of them on their way
    /// to being free. False where that is not so any more, or something of the table waits to be written: then nothing has
    /// been changed.
    pub fn drop_table(&mut self, l1: L1Index, table: HostCluster, named: Vec<Release>) -> bool {
        let is_named = matches!(self.map.table(l1), Ok(Some(old)) if old.cluster == table);
        if !is_named || self.map.is_table_in_use(table) || self.map.unlink_table(l1).is_err() {
            return false;
        }
        self.leave(table, named);
        true
    }

    /// Goes on with an L1 table at `offset`, to which the header points already and which names nothing; the L2 tables that
    /// the old one named, which are to be [left](Self::leave).
    pub fn empty_l1(&mut self, geometry: Geometry, offset: HostOffset) -> Result<Vec<HostCluster>> {
        let entries = self.map.l1().words().len();
        let new = geometry.host_span(offset, entries as u64 * 8);
        self.check_target(geometry, new.0, new.1)?;
        self.note_changed(new.0, new.1);
        let mut tables = Vec::new();
        for index in 0..entries {
            tables.extend(self.map.unlink_table(L1Index(index))?.map(|table| table.cluster));
        }
        let (first, count) = self.map.l1().span(geometry);
        self.leave_table(first, count);
        self.map.replace_l1(WordTable::new(offset, vec![0; entries]));
        self.regions_mut().add(Kind::L1, new.0, new.1)?;
        Ok(tables)
    }

    /// Sends a table that no entry names any more, and all that it names, on their way to being free.
    pub fn leave(&mut self, table: HostCluster, named: Vec<Release>) {
        self.regions_mut().remove(table, 1);
        self.unlink(table, 1, false);
        for Release { first, count, punch } in named {
            self.unlink(first, count, punch);
        }
    }
}
