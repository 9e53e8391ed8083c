//! Walking a chain of descriptors, trusting none of them.
//!
//! A chain is read once, so that a guest that changes it afterwards changes nothing. One that breaks a rule is still
//! walked as far as it goes, because a place for the status byte may be found behind the fault.

use std::fmt;
use std::sync::Arc;

use qcow::disk::Payload;

use crate::memory::{Buffers, QueueMemory};
use crate::virtqueue::{DESCRIPTOR_LEN, Descriptor, Virtqueue};

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A buffer that does not lie in the guest's memory.
    OutsideMemory,
    /// A buffer to read from behind one to write to.
    Order,
    /// More descriptors than there are: it comes back to itself.
    Loop,
    /// A next index beyond the table.
    Next,
    /// An indirect table that was not negotiated, is too long, is no whole number of descriptors, or names another.
    Indirect,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutsideMemory => "a buffer lies outside the guest's memory",
            Self::Order => "a readable buffer follows a writable one",
            Self::Loop => "the chain of descriptors is endless",
            Self::Next => "a next descriptor lies beyond the table",
            Self::Indirect => "an indirect descriptor table breaks the rules",
        })
    }
}

/// What indirect tables are allowed.
#[derive(Clone, Copy, Debug)]
pub enum Indirect {
    /// None: not negotiated.
    Refused,
    /// Tables of at most this many descriptors.
    UpTo(u32),
}

/// The buffers of one request.
#[derive(Debug)]
pub struct Chain<'m> {
    /// What the device reads.
    pub readable: Buffers<'m>,
    /// What the device writes, the status byte last.
    pub writable: Buffers<'m>,
    /// The first thing that is wrong with it.
    pub fault: Option<Fault>,
    /// Whether the last writable byte is known to be the status byte.
    status_found: bool,
}

impl<'m> Chain<'m> {
    /// The chain that starts at descriptor `head` of `ring`.
    pub fn walk(
        ring: &Virtqueue,
        head: u16,
        memory: &'m Arc<QueueMemory>,
        indirect: Indirect,
    ) -> Self {
        let mut chain = Self {
            readable: Buffers::new(memory),
            writable: Buffers::new(memory),
            fault: None,
            status_found: false,
        };
        let table = Table { len: ring.size().into(), read: |index| ring.descriptor(index) };
        if let Some(last) = chain.walk_table(&table, head) {
            chain.walk_indirect(last, memory, indirect);
        }
        chain
    }

    /// Where the status byte goes, if that is known.
    pub fn status(&self) -> Option<Payload> {
        self.status_found.then(|| self.writable.payload(self.writable.len() - 1, 1))
    }

    /// Adds a table's descriptors from `first` on; returns the indirect one at their end, if there is one.
    fn walk_table(
        &mut self,
        table: &Table<impl Fn(u16) -> Descriptor>,
        first: u16,
    ) -> Option<Descriptor> {
        let mut index = first;
        for _ in 0..table.len {
            let descriptor = (table.read)(index);
            if descriptor.is_indirect() {
                return Some(descriptor);
            }
            self.add(descriptor);
            if !descriptor.has_next() {
                return None;
            }
            if u32::from(descriptor.next) >= table.len {
                self.cut(Fault::Next);
                return None;
            }
            index = descriptor.next;
        }
        self.cut(Fault::Loop);
        None
    }

    fn walk_indirect(&mut self, from: Descriptor, memory: &Arc<QueueMemory>, allowed: Indirect) {
        let (len, entry) = (from.len, DESCRIPTOR_LEN as u32);
        let count = match allowed {
            Indirect::UpTo(max) if len.is_multiple_of(entry) && len / entry <= max => len / entry,
            _ => 0,
        };
        if count == 0 || from.has_next() {
            return self.cut(Fault::Indirect);
        }
        let mut bytes = Buffers::new(memory);
        if bytes.push(from.addr, len).is_err() {
            return self.cut(Fault::OutsideMemory);
        }
        let read =
            |index: u16| Descriptor::parse(bytes.read(u64::from(index) * DESCRIPTOR_LEN as u64));
        if self.walk_table(&Table { len: count, read }, 0).is_some() {
            self.cut(Fault::Indirect);
        }
    }

    fn add(&mut self, descriptor: Descriptor) {
        if descriptor.is_writable() {
            let pushed = self.writable.push(descriptor.addr, descriptor.len);
            self.note(pushed.map_err(|_| Fault::OutsideMemory));
            self.status_found = pushed.is_ok() && self.writable.len() > 0;
        } else {
            if self.writable.len() > 0 {
                self.note(Err(Fault::Order));
            }
            let pushed = self.readable.push(descriptor.addr, descriptor.len);
            self.note(pushed.map_err(|_| Fault::OutsideMemory));
        }
    }

    fn note(&mut self, found: Result<(), Fault>) {
        self.fault = self.fault.or(found.err());
    }

    /// The chain ends where it should not: its status byte is anyone's guess.
    fn cut(&mut self, fault: Fault) {
        self.note(Err(fault));
        self.status_found = false;
    }
}

/// A descriptor table: that of the ring, or an indirect one.
struct Table<R> {
    len: u32,
    read: R,
}
