//! One virtio-blk request: what it asks, parsed once from its buffers and checked against the device, and how it ends.

use qcow::disk::Payload;
use smallvec::SmallVec;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::chain::Chain;
use crate::device::{Device, ID_LEN, RANGE_COUNT_MAX, RANGE_SECTORS_MAX, SECTOR};

/// Bytes of the header of every request.
const HEADER_LEN: u64 = 16;
/// Bytes of a range of a discard or write-zeroes request.
const RANGE_LEN: u64 = 16;
/// Most data of one request, in bytes: more than any driver that respects the device's segment limits can ask for.
const DATA_BYTES_MAX: u64 = 256 << 20;

/// A request under way: what to do, and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// The index of its first descriptor.
    pub head: u16,
    /// Where the status byte goes.
    pub status: Payload,
    pub operation: Operation,
}

/// A request that has ended; its status byte is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The index of its first descriptor.
    pub head: u16,
    /// Bytes written to the guest's buffers, the status byte included.
    pub written: u32,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    /// The status byte.
    pub fn byte(self) -> u8 {
        (match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }) as u8
    }
}

/// What the guest wants. Offsets and lengths are in bytes and lie inside the disk.
#[derive(Debug)]
pub enum Operation {
    Read { at: u64, into: Payload },
    Write { at: u64, from: Payload },
    Flush,
    Discard(Ranges),
    WriteZeroes(Ranges),
    GetId { into: Payload },
}

/// The ranges of one request.
pub type Ranges = SmallVec<[Range; 1]>;

/// Bytes of the disk to give up or to zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub at: u64,
    pub len: u64,
    /// Zeroed bytes may lose their space.
    pub unmap: bool,
}

/// A request that is not even tried.
#[derive(Debug)]
pub struct Refusal {
    pub status: Status,
    pub why: String,
}

fn io_error(why: impl Into<String>) -> Refusal {
    Refusal { status: Status::IoError, why: why.into() }
}

fn unsupported(why: impl Into<String>) -> Refusal {
    Refusal { status: Status::Unsupported, why: why.into() }
}

impl Operation {
    /// What `chain` asks of `device`.
    pub fn parse(chain: &Chain<'_>, device: &Device) -> Result<Self, Refusal> {
        if let Some(fault) = chain.fault {
            return Err(io_error(fault.to_string()));
        }
        if chain.readable.len() < HEADER_LEN {
            return Err(io_error("the request's header is too short"));
        }
        let header = chain.readable.read::<{ HEADER_LEN as usize }>(0);
        let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
        match kind {
            VIRTIO_BLK_T_IN => parse_read(chain, device, sector),
            VIRTIO_BLK_T_OUT => parse_write(chain, device, sector),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_DISCARD if device.offers_discard() => {
                parse_ranges(chain, device, 0).map(Self::Discard)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if device.is_writable() => {
                parse_ranges(chain, device, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)
                    .map(Self::WriteZeroes)
            }
            VIRTIO_BLK_T_GET_ID => {
                let len = data_room(chain).min(ID_LEN as u64);
                Ok(Self::GetId { into: chain.writable.payload(0, len) })
            }
            other => Err(unsupported(format!("requests of type {other} are not served"))),
        }
    }

    /// Bytes that a success puts into the request's buffers, without the status byte.
    pub fn answer_len(&self) -> u32 {
        match self {
            // Bounded by the limit on a request's data.
            Self::Read { into, .. } | Self::GetId { into } => into.len() as u32,
            _ => 0,
        }
    }
}

/// Writable bytes in front of the status byte.
fn data_room(chain: &Chain<'_>) -> u64 {
    chain.writable.len().saturating_sub(1)
}

fn parse_read(chain: &Chain<'_>, device: &Device, sector: u64) -> Result<Operation, Refusal> {
    let len = data_room(chain);
    let at = check_data(device, sector, len)?;
    Ok(Operation::Read { at, into: chain.writable.payload(0, len) })
}

fn parse_write(chain: &Chain<'_>, device: &Device, sector: u64) -> Result<Operation, Refusal> {
    if !device.is_writable() {
        return Err(io_error("a write to a read-only disk"));
    }
    let len = chain.readable.len() - HEADER_LEN;
    let at = check_data(device, sector, len)?;
    Ok(Operation::Write { at, from: chain.readable.payload(HEADER_LEN, len) })
}

fn check_data(device: &Device, sector: u64, len: u64) -> Result<u64, Refusal> {
    if !len.is_multiple_of(SECTOR) || len > DATA_BYTES_MAX {
        return Err(io_error(format!("a request for {len} bytes")));
    }
    check_range(device, sector, len)
}

/// The byte offset of `sector`, if `len` bytes from there on lie on the disk.
fn check_range(device: &Device, sector: u64, len: u64) -> Result<u64, Refusal> {
    let at = sector.checked_mul(SECTOR);
    at.filter(|at| at.checked_add(len).is_some_and(|end| end <= device.bytes())).ok_or_else(|| {
        io_error(format!("{len} bytes at sector {sector} reach past the end of the disk"))
    })
}

fn parse_ranges(chain: &Chain<'_>, device: &Device, flags_known: u32) -> Result<Ranges, Refusal> {
    let len = chain.readable.len() - HEADER_LEN;
    let count = len / RANGE_LEN;
    if len == 0 || !len.is_multiple_of(RANGE_LEN) || count > u64::from(RANGE_COUNT_MAX) {
        return Err(io_error(format!("a list of ranges of {len} bytes")));
    }
    let parse = |index| {
        parse_range(chain.readable.read(HEADER_LEN + index * RANGE_LEN), device, flags_known)
    };
    (0..count).map(parse).collect()
}

fn parse_range(bytes: [u8; 16], device: &Device, flags_known: u32) -> Result<Range, Refusal> {
    let (sector, sectors, flags) = (u64_at(&bytes, 0), u32_at(&bytes, 8), u32_at(&bytes, 12));
    if flags & !flags_known != 0 {
        return Err(unsupported(format!("a range with the unknown flags {flags:#x}")));
    }
    if sectors > RANGE_SECTORS_MAX {
        return Err(io_error(format!("a range of {sectors} sectors")));
    }
    let len = u64::from(sectors) * SECTOR;
    let at = check_range(device, sector, len)?;
    Ok(Range { at, len, unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 })
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}
