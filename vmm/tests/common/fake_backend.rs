//! A vhost-user backend that answers as a test wants it to, and dies when a test wants it to.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

/// Numbers of messages (vhost-user, "Front-end message types").
const GET_FEATURES: u32 = 1;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;
const GET_CONFIG: u32 = 24;

const VERSION_1: u32 = 1;
const IS_REPLY: u32 = 1 << 2;
const NEEDS_REPLY: u32 = 1 << 3;

/// What it says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    /// Virtio features, one bit each, and bit 30.
    pub features: u64,
    /// Protocol features, one bit each.
    pub protocol: u64,
    /// Most queues.
    pub queues: u64,
    /// Messages after which it closes the connection.
    pub messages_max: usize,
    /// Whether what it answers is shorter than it says.
    pub cuts_answers: bool,
}

impl Default for Answers {
    /// A disk with one queue, that answers everything.
    fn default() -> Self {
        Self {
            features: 1 << 32 | 1 << 30 | 1 << 9,
            // MQ, REPLY_ACK, CONFIG.
            protocol: 1 | 1 << 3 | 1 << 9,
            queues: 1,
            messages_max: usize::MAX,
            cuts_answers: false,
        }
    }
}

/// Serves one connection at `path` from a thread; how many messages it got.
pub fn serve(path: &Path, answers: Answers) -> JoinHandle<usize> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || converse(&listener.accept().unwrap().0, answers))
}

fn converse(stream: &UnixStream, answers: Answers) -> usize {
    let mut count = 0;
    while count < answers.messages_max {
        let Some((number, flags, body)) = receive(stream) else { break };
        count += 1;
        let reply = match number {
            GET_FEATURES => Some(answers.features.to_le_bytes().to_vec()),
            GET_PROTOCOL_FEATURES => Some(answers.protocol.to_le_bytes().to_vec()),
            GET_QUEUE_NUM => Some(answers.queues.to_le_bytes().to_vec()),
            GET_CONFIG => Some(body),
            _ => (flags & NEEDS_REPLY != 0).then(|| 0_u64.to_le_bytes().to_vec()),
        };
        if let Some(reply) = reply {
            send(stream, number, &reply, answers.cuts_answers);
        }
    }
    count
}

fn receive(mut stream: &UnixStream) -> Option<(u32, u32, Vec<u8>)> {
    let mut header = [0; 12];
    stream.read_exact(&mut header).ok()?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let mut body = vec![0; word(8) as usize];
    stream.read_exact(&mut body).ok()?;
    Some((word(0), word(4), body))
}

fn send(mut stream: &UnixStream, number: u32, body: &[u8], cut: bool) {
    let words = [number, VERSION_1 | IS_REPLY, body.len() as u32];
    let mut message: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    message.extend(body);
    message.truncate(message.len() - if cut { 3 } else { 0 });
    // The monitor may be gone.
    let _ = stream.write_all(&message);
    if cut {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}
