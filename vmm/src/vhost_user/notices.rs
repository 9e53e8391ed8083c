//! What a backend says unasked: that its configuration has changed (vhost-user, "Back-end message types").
//!
//! Crate `vhost` has this, too, but would wait for ever for the rest of a message that a backend has begun.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Result, ensure};

/// Bytes of a message's header: number, flags, length of what follows.
const HEADER_LEN: usize = 12;
/// Most bytes that follow.
const BODY_LEN_MAX: usize = 4096;
const CONFIG_CHANGE: u32 = 2;
const VERSION_1: u32 = 1;
const IS_REPLY: u32 = 1 << 2;
const NEEDS_REPLY: u32 = 1 << 3;
/// How long a message may take that has begun.
const PATIENCE: Duration = Duration::from_secs(2);

/// The channel on which they come.
#[derive(Debug)]
pub struct Notices {
    stream: UnixStream,
}

/// What was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The configuration has changed.
    ConfigChanged,
    /// Something that does not matter here.
    Other,
}

impl Notices {
    /// The channel, and the backend's end of it.
    pub fn new() -> Result<(Self, UnixStream)> {
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok((Self { stream }, theirs))
    }

    /// The next one, which has begun to come.
    pub fn next(&mut self) -> Result<Notice> {
        let mut header = [0; HEADER_LEN];
        self.stream.read_exact(&mut header)?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (number, flags, len) = (word(0), word(4), word(8) as usize);
        ensure!(len <= BODY_LEN_MAX, "a message of {len} bytes");
        self.stream.read_exact(&mut vec![0; len])?;
        let notice = if number == CONFIG_CHANGE { Notice::ConfigChanged } else { Notice::Other };
        if flags & NEEDS_REPLY != 0 {
            self.reply(number, notice)?;
        }
        Ok(notice)
    }

    fn reply(&mut self, number: u32, notice: Notice) -> Result<()> {
        let refused = u64::from(notice == Notice::Other);
        let mut message = number.to_le_bytes().to_vec();
        message.extend((VERSION_1 | IS_REPLY).to_le_bytes());
        message.extend(8_u32.to_le_bytes());
        message.extend(refused.to_le_bytes());
        Ok(self.stream.write_all(&message)?)
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let words = [number, flags, body.len() as u32];
        words.iter().flat_map(|word| word.to_le_bytes()).chain(body.iter().copied()).collect()
    }

    #[test]
    fn changes_are_noticed_and_answered() {
        let (mut notices, mut backend) = Notices::new().expect("sockets");
        backend.write_all(&message(CONFIG_CHANGE, VERSION_1 | NEEDS_REPLY, &[])).expect("room");
        backend.write_all(&message(3, VERSION_1, &[7; 40])).expect("room");
        assert_eq!(notices.next().expect("whole"), Notice::ConfigChanged);
        assert_eq!(notices.next().expect("whole"), Notice::Other);
        let mut reply = [0; HEADER_LEN + 8];
        backend.read_exact(&mut reply).expect("an answer");
        assert_eq!(reply[..], message(CONFIG_CHANGE, VERSION_1 | IS_REPLY, &[0; 8]));
    }

    #[test]
    fn half_a_message_is_an_error() {
        let (mut notices, mut backend) = Notices::new().expect("sockets");
        backend.write_all(&message(CONFIG_CHANGE, 1, &[])[..5]).expect("room");
        drop(backend);
        assert!(notices.next().is_err());
        let (mut notices, mut backend) = Notices::new().expect("sockets");
        backend.write_all(&[0xff; HEADER_LEN]).expect("room");
        assert!(notices.next().is_err(), "too long");
    }
}
