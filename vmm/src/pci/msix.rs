//! MSI-X (PCI Express 6.0, 7.7.2): a table of messages in a function's registers, one per vector, each maskable.
//!
//! What interrupts are eventfds, any number to a vector. While a vector may interrupt, its eventfds are connected to KVM;
//! while it may not, they are on their own, and what is signalled stays in them: that is what makes the vector pending.
//! Connected again, KVM finds it there. So nothing is lost, and nobody who signals needs to know of masks.

use std::sync::Arc;

use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;

use crate::interrupts::{Gsi, Interrupts, Message};

/// Distance of the control word from the start of the capability.
pub const CONTROL_AT: usize = 2;
/// Bytes of a vector in the table.
pub const VECTOR_LEN: u64 = 16;
/// Most vectors of a function here.
pub const VECTOR_COUNT_MAX: u16 = 256;

const CONTROL_ENABLED: u16 = 1 << 15;
const CONTROL_MASKED: u16 = 1 << 14;
/// The only bit of a vector's control word.
const VECTOR_MASKED: u32 = 1;

/// The vectors of a function.
#[derive(Debug)]
pub struct Msix {
    interrupts: Arc<Interrupts>,
    vectors: Vec<Vector>,
    enabled: bool,
    masked: bool,
}

#[derive(Debug)]
struct Vector {
    gsi: Gsi,
    message: Message,
    masked: bool,
    events: Vec<Arc<EventFd>>,
    connected: bool,
}

impl Msix {
    /// `count` vectors, all masked.
    pub fn new(interrupts: Arc<Interrupts>, count: u16) -> Self {
        assert!((1..=VECTOR_COUNT_MAX).contains(&count));
        let vector = |_| Vector {
            gsi: interrupts.reserve(),
            message: Message::default(),
            masked: true,
            events: Vec::new(),
            connected: false,
        };
        let vectors = (0..count).map(vector).collect();
        Self { interrupts, vectors, enabled: false, masked: false }
    }

    /// How many vectors there are.
    pub fn count(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Lets `event` raise `vector`. Nothing happens if there is no such vector.
    pub fn attach(&mut self, vector: u16, event: &Arc<EventFd>) -> Result<()> {
        let Some(vector) = self.vectors.get_mut(usize::from(vector)) else { return Ok(()) };
        vector.events.push(Arc::clone(event));
        if vector.connected { self.interrupts.connect(vector.gsi, event) } else { Ok(()) }
    }

    /// `event` raises `vector` no more.
    pub fn detach(&mut self, vector: u16, event: &Arc<EventFd>) -> Result<()> {
        let Some(vector) = self.vectors.get_mut(usize::from(vector)) else { return Ok(()) };
        vector.events.retain(|other| !Arc::ptr_eq(other, event));
        if vector.connected { self.interrupts.disconnect(vector.gsi, event) } else { Ok(()) }
    }

    /// The guest has written the control word.
    pub fn control(&mut self, word: u16) -> Result<()> {
        self.enabled = word & CONTROL_ENABLED != 0;
        self.masked = word & CONTROL_MASKED != 0;
        (0..self.vectors.len()).try_for_each(|index| self.settle(index))
    }

    /// The guest reads the table, `at` bytes from its start.
    pub fn read_table(&self, at: u64, data: &mut [u8]) {
        let Some((vector, at)) = self.locate(at, data.len()) else { return data.fill(0) };
        let bytes = self.vectors[vector].bytes();
        data.copy_from_slice(&bytes[at..at + data.len()]);
    }

    /// The guest writes the table, `at` bytes from its start.
    pub fn write_table(&mut self, at: u64, data: &[u8]) -> Result<()> {
        let Some((index, at)) = self.locate(at, data.len()) else { return Ok(()) };
        let vector = &mut self.vectors[index];
        let mut bytes = vector.bytes();
        bytes[at..at + data.len()].copy_from_slice(data);
        vector.set_bytes(bytes);
        self.settle(index)
    }

    /// The guest reads which vectors are pending, `at` bytes from the start of that.
    pub fn read_pending(&self, at: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(at..) {
            let vectors = self.vectors.iter().enumerate().skip(at as usize * 8).take(8);
            let bits = vectors.map(|(index, vector)| u8::from(vector.is_pending()) << (index % 8));
            *byte = bits.fold(0, |all, bit| all | bit);
        }
    }

    /// Vector, and offset in it, of `len` bytes at `at`; `None` where they do not lie in one vector.
    fn locate(&self, at: u64, len: usize) -> Option<(usize, usize)> {
        let (vector, at) = ((at / VECTOR_LEN) as usize, (at % VECTOR_LEN) as usize);
        (vector < self.vectors.len() && at + len <= VECTOR_LEN as usize).then_some((vector, at))
    }

    /// Connects or disconnects a vector as it is now.
    fn settle(&mut self, index: usize) -> Result<()> {
        let vector = &mut self.vectors[index];
        let wanted = self.enabled && !self.masked && !vector.masked;
        if wanted {
            self.interrupts.route(vector.gsi, vector.message)?;
        }
        if wanted == vector.connected {
            return Ok(());
        }
        vector.connected = wanted;
        vector.events.iter().try_for_each(|event| {
            if wanted {
                self.interrupts.connect(vector.gsi, event)
            } else {
                self.interrupts.disconnect(vector.gsi, event)
            }
        })
    }
}

impl Vector {
    fn bytes(&self) -> [u8; VECTOR_LEN as usize] {
        let mut bytes = [0; VECTOR_LEN as usize];
        bytes[..8].copy_from_slice(&self.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message.data.to_le_bytes());
        bytes[12] = u8::from(self.masked);
        bytes
    }

    fn set_bytes(&mut self, bytes: [u8; VECTOR_LEN as usize]) {
        let [address @ .., _, _, _, _, _, _, _, _] = bytes;
        let [_, _, _, _, _, _, _, _, d0, d1, d2, d3, c0, c1, c2, c3] = bytes;
        self.message.address = u64::from_le_bytes(address);
        self.message.data = u32::from_le_bytes([d0, d1, d2, d3]);
        self.masked = u32::from_le_bytes([c0, c1, c2, c3]) & VECTOR_MASKED != 0;
    }

    fn is_pending(&self) -> bool {
        !self.connected && self.events.iter().any(|event| is_signalled(event))
    }
}

/// Whether `event`, which is connected to nothing, has been signalled.
fn is_signalled(event: &EventFd) -> bool {
    // There is no looking without taking. Nobody else takes anything now.
    event.read().and_then(|count| event.write(count)).is_ok()
}
