//! The checks that every table named by a header or a snapshot must pass before anyone reads it.

use crate::addr::{Geometry, HostOffset};
use crate::error::{Error, Result};

/// A table of the image file, as some field claims it to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableClaim {
    /// The table's name in messages, such as `Active L1 table`.
    pub(super) name: &'static str,
    /// The field that holds its offset.
    pub(super) field: &'static str,
    /// Where it starts.
    pub(super) offset: HostOffset,
    /// How many bytes it takes.
    pub(super) len: u64,
    /// The largest length the engine handles.
    pub(super) len_max: u64,
}

impl TableClaim {
    /// Refuses a table that is too large, unaligned, not addressable, inside the header cluster, or that ends behind
    /// `file_len`. An empty table only needs an aligned offset.
    pub(super) fn check(&self, geometry: Geometry, file_len: u64) -> Result<()> {
        if self.len > self.len_max {
            return Err(Error::limit(format!("{} too large", self.name)));
        }
        let offset = self.offset.get();
        let inside_header = self.len > 0 && offset < geometry.cluster_size();
        if !geometry.is_cluster_aligned(offset)
            || !geometry.is_addressable(self.offset, self.len)
            || inside_header
        {
            return Err(Error::corrupt(format!(
                "{} offset invalid ({} is {offset:#x})",
                self.name, self.field
            )));
        }
        if self.len > 0 && offset + self.len > file_len {
            return Err(Error::corrupt(format!(
                "{} lies past the end of the file ({} is {offset:#x}, its {} bytes end after byte \
                 {file_len})",
                self.name, self.field, self.len
            )));
        }
        Ok(())
    }

    /// Refuses a table that is too large, unaligned, or that reaches past 2^63: as much as it takes to look at what is there.
    pub(super) fn check_plausible(&self, geometry: Geometry) -> Result<()> {
        if self.len > self.len_max {
            return Err(Error::limit(format!("{} too large", self.name)));
        }
        let offset = self.offset.get();
        let fits = offset.checked_add(self.len).is_some_and(|end| i64::try_from(end).is_ok());
        if !fits || !geometry.is_cluster_aligned(offset) {
            return Err(Error::corrupt(format!("{} offset invalid", self.name)));
        }
        Ok(())
    }

    /// Whether both tables claim a same byte. Both have been checked.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let end = |table: &Self| table.offset.get() + table.len;
        self.offset.get() < end(other) && other.offset.get() < end(self)
    }
}
