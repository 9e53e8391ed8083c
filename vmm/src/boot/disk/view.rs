//! A stretch of the disk as a file that is only read.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use ext4_view::Ext4Read;
use qcow::Image;
use qcow::disk::Buffer;
use qcow::disk::uring::{UringDisk, block_on};

/// File systems are read in small pieces, and the disk in large ones.
const PIECE: u64 = 256 << 10;

/// See the module. Clones read the same stretch, each from its own place.
#[derive(Clone)]
pub struct View {
    image: Rc<Image<UringDisk>>,
    start: u64,
    len: u64,
    at: u64,
    /// The piece that was read last, and where it starts on the disk.
    piece: Rc<(u64, Vec<u8>)>,
}

impl View {
    /// The whole disk.
    pub fn new(image: Image<UringDisk>) -> Self {
        let len = image.virtual_size();
        Self { image: Rc::new(image), start: 0, len, at: 0, piece: Rc::default() }
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The `len` bytes from `start` on; `None` where they are not all there.
    pub fn part(&self, start: u64, len: u64) -> Option<Self> {
        let is_inside = start.checked_add(len).is_some_and(|end| end <= self.len) && len > 0;
        is_inside.then(|| Self { start: self.start + start, len, at: 0, ..self.clone() })
    }

    /// Fills `bytes` with what is at `at`.
    pub fn read_at(&mut self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        let is_inside = at.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.len);
        if !is_inside {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < bytes.len() {
            let place = self.start + at + done as u64;
            let (piece_at, piece) = self.piece(place)?;
            let skip = (place - piece_at) as usize;
            let len = (piece.len() - skip).min(bytes.len() - done);
            bytes[done..done + len].copy_from_slice(&piece[skip..skip + len]);
            done += len;
        }
        Ok(())
    }

    /// The piece of the disk that holds byte `at`.
    fn piece(&mut self, at: u64) -> io::Result<(u64, &[u8])> {
        let start = at / PIECE * PIECE;
        let is_there = self.piece.0 == start && !self.piece.1.is_empty();
        if !is_there {
            let len = PIECE.min(self.image.virtual_size() - start);
            let buffer = Buffer::zeroed(len as usize);
            block_on(self.image.read(start, &buffer.payload())).map_err(io::Error::other)?;
            self.piece = Rc::new((start, buffer.to_vec()));
        }
        Ok((start, &self.piece.1))
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("start", &self.start).field("len", &self.len).finish()
    }
}

impl Read for View {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = (self.len.saturating_sub(self.at)).min(bytes.len() as u64) as usize;
        self.read_at(self.at, &mut bytes[..len])?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for View {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// The libraries ask for it; nothing is ever written.
impl Write for View {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Ext4Read for View {
    fn read(
        &mut self,
        at: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        self.read_at(at, bytes).map_err(Into::into)
    }
}
