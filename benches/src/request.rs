//! virtio-blk requests: headers, range segments, status bytes.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// Bytes of a request header.
pub const HEADER_LEN: u32 = 16;
/// Bytes of a discard or write-zeroes segment.
pub const SEGMENT_LEN: u32 = 16;
/// Bytes of the answer to GET_ID.
pub const ID_LEN: u32 = 20;
/// What the driver puts into a status byte before the request, to see whether the device wrote it.
pub const STATUS_UNTOUCHED: u8 = 0xff;

/// One request to the disk. Sectors are of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Reads `len` bytes from `sector` on.
    Read {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u32,
    },
    /// Writes `data` from `sector` on.
    Write {
        /// First sector.
        sector: u64,
        /// What to write.
        data: &'a [u8],
    },
    /// Makes all completed writes durable.
    Flush,
    /// Tells the device that the contents are no longer needed.
    Discard {
        /// First sector.
        sector: u64,
        /// Sectors.
        sectors: u32,
    },
    /// Makes the range read as zeroes.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// Sectors.
        sectors: u32,
        /// The device may free the space.
        unmap: bool,
    },
    /// Asks for the serial number.
    GetId,
}

impl Request<'_> {
    /// The request's header.
    pub fn header(&self) -> [u8; HEADER_LEN as usize] {
        let (kind, sector) = match *self {
            Self::Read { sector, .. } => (VIRTIO_BLK_T_IN, sector),
            Self::Write { sector, .. } => (VIRTIO_BLK_T_OUT, sector),
            Self::Flush => (VIRTIO_BLK_T_FLUSH, 0),
            // These two name their sectors in the segment, not in the header.
            Self::Discard { .. } => (VIRTIO_BLK_T_DISCARD, 0),
            Self::WriteZeroes { .. } => (VIRTIO_BLK_T_WRITE_ZEROES, 0),
            Self::GetId => (VIRTIO_BLK_T_GET_ID, 0),
        };
        header(kind, sector)
    }

    /// The range segment of a discard or write-zeroes.
    pub fn segment(&self) -> Option<[u8; SEGMENT_LEN as usize]> {
        match *self {
            Self::Discard { sector, sectors } => Some(segment(sector, sectors, 0)),
            Self::WriteZeroes { sector, sectors, unmap } => {
                let flags = if unmap { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
                Some(segment(sector, sectors, flags))
            }
            _ => None,
        }
    }

    /// Bytes that the device returns before the status byte.
    pub fn answer_len(&self) -> u32 {
        match *self {
            Self::Read { len, .. } => len,
            Self::GetId => ID_LEN,
            _ => 0,
        }
    }
}

/// A header of any request type, known or not.
pub fn header(kind: u32, sector: u64) -> [u8; HEADER_LEN as usize] {
    let mut bytes = [0; HEADER_LEN as usize];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

/// A range segment with any flags, known or not.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; SEGMENT_LEN as usize] {
    let mut bytes = [0; SEGMENT_LEN as usize];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Success.
    Ok,
    /// The device or the driver made an error.
    IoError,
    /// The device does not know this request.
    Unsupported,
    /// The device returned the chain without writing the status byte.
    Untouched,
    /// A value that the specification does not know.
    Unknown(u8),
}

impl From<u8> for Status {
    fn from(byte: u8) -> Self {
        match u32::from(byte) {
            VIRTIO_BLK_S_OK => Self::Ok,
            VIRTIO_BLK_S_IOERR => Self::IoError,
            VIRTIO_BLK_S_UNSUPP => Self::Unsupported,
            _ if byte == STATUS_UNTOUCHED => Self::Untouched,
            _ => Self::Unknown(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discard_names_its_range_in_the_segment_only() {
        let request = Request::Discard { sector: 0x0102, sectors: 3 };
        assert_eq!(request.header()[..4], [11, 0, 0, 0]);
        assert_eq!(request.header()[4..], [0; 12]);
        let segment = request.segment().unwrap();
        assert_eq!(segment[..12], [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(segment[12..], [0; 4]);
    }

    #[test]
    fn an_untouched_status_is_no_success() {
        assert_eq!(Status::from(STATUS_UNTOUCHED), Status::Untouched);
        assert_eq!(Status::from(0), Status::Ok);
        assert_eq!(Status::from(9), Status::Unknown(9));
    }
}
