//! What several L2 tables name, as rows of clusters.

use super::for_each_named;
use crate::addr::{ClusterCount, Geometry, HostCluster};
use crate::error::Result;

/// The rows of clusters that each of several tables names, in the order of the entries.
#[derive(Debug, Default)]
pub struct Rows {
    rows: Vec<(HostCluster, ClusterCount)>,
    /// Where each table's rows end.
    ends: Vec<usize>,
}

impl Rows {
    /// Forgets all tables, but not the memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.ends.clear();
    }

    /// Adds a table; its rows.
    ///
    /// # Errors
    /// An entry is damaged.
    pub fn add(
        &mut self,
        geometry: Geometry,
        table: &[u8],
    ) -> Result<&[(HostCluster, ClusterCount)]> {
        let start = self.rows.len();
        for_each_named(geometry, table, |first, count| {
            self.rows.push((first, count));
            Ok(())
        })?;
        self.ends.push(self.rows.len());
        Ok(&self.rows[start..])
    }

    /// The rows of each table.
    pub fn tables(&self) -> impl Iterator<Item = &[(HostCluster, ClusterCount)]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(&start, &end)| &self.rows[start..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_keeps_its_own_rows() {
        let geometry = Geometry::new(16, 4);
        let table = |offsets: &[u64]| -> Vec<u8> {
            offsets.iter().flat_map(|offset| offset.to_be_bytes()).collect()
        };
        let mut rows = Rows::default();
        let cluster = HostCluster::new;
        for _ in 0..2 {
            rows.clear();
            let first = rows.add(geometry, &table(&[0x2_0000, 0x3_0000, 0x5_0000])).expect("sound");
            assert_eq!(first, [(cluster(2), 2), (cluster(5), 1)]);
            assert_eq!(rows.add(geometry, &table(&[0])).expect("sound"), []);
            rows.add(geometry, &table(&[0x6_0000])).expect("sound");
            let tables: Vec<usize> = rows.tables().map(<[_]>::len).collect();
            assert_eq!(tables, [2, 0, 1]);
        }
    }
}
