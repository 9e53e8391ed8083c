//! Bringing nodes into memory.

use super::Sealed;
use crate::disk::Disk;
use crate::error::Result;
use crate::format::sealed::entry::{Node, Stored};
use crate::meta::sealed::tree::NeedNode;
use crate::sync::lock;

impl<D: Disk> Sealed<D> {
    /// Brings a node into memory; however many ask for it, one loads it.
    pub(super) async fn load(&self, need: NeedNode) -> Result<()> {
        if !self.changed.until(|| lock(&self.state).tree.begin_load(&need)).await {
            return Ok(());
        }
        let mut load = Load { image: self, need, node: None };
        load.node = Some(self.read_node(need.id.level, need.id.index, &need.stored).await?);
        Ok(())
    }

    /// The node `index` of level `level`, which lies where `stored` says.
    ///
    /// # Errors
    /// It does not open, says what no node says, or cannot be read.
    pub(super) async fn read_node(&self, level: u8, index: u64, stored: &Stored) -> Result<Node> {
        let mut buffer = self.read_stored(level, index, stored).await?;
        let end = lock(&self.state).linked_end;
        let node = Node::parse(buffer.make_mut(), level, self.cluster_len(), end);
        node.map_err(|e| self.named(e.context(super::what_is(level, index, self.cluster_len()))))
    }
}

/// A load under way; dropped early, it lets somebody else try.
struct Load<'a, D: Disk> {
    image: &'a Sealed<D>,
    need: NeedNode,
    node: Option<Node>,
}

impl<D: Disk> Drop for Load<'_, D> {
    fn drop(&mut self) {
        lock(&self.image.state).tree.end_load(&self.need, self.node.take());
        self.image.changed.wake_all();
    }
}
