//! One load of a comparison: `read:random:4k:32`, or `write:scattered/64k:4k:32`.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::load::plan::{Access, Mix, Op};
use crate::load::{Job, Limit};
use crate::size::parse_size;

/// `PATTERN:ACCESS[/STRETCH]:BLOCK:DEPTH[:QUEUES]`.
#[derive(Clone, Debug)]
pub struct Case {
    text: String,
    mix: Mix,
    access: Access,
    stretch: Option<u64>,
    block_size: u64,
    depth: u16,
    /// Queues, each with `depth` requests in flight.
    pub queues: u16,
}

impl Case {
    /// Whether any request changes the disk.
    pub fn modifies(&self) -> bool {
        self.mix.modifies()
    }

    /// The run that this case stands for.
    pub fn job(&self, socket: &Path, limit: Limit, warmup: Duration) -> Job {
        Job {
            queues: self.queues,
            depth: self.depth,
            block_size: self.block_size,
            mix: self.mix,
            access: self.access,
            stretch: self.stretch,
            limit,
            warmup,
            ..Job::new(socket.to_owned())
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(':').collect();
        let (pattern, access, block, depth, queues) = match parts[..] {
            [pattern, access, block, depth] => (pattern, access, block, depth, "1"),
            [pattern, access, block, depth, queues] => (pattern, access, block, depth, queues),
            _ => {
                return Err(format!(
                    "'{text}': want PATTERN:ACCESS[/STRETCH]:BLOCK:DEPTH[:QUEUES]"
                ));
            }
        };
        let mix = match pattern {
            "read" => Some(Mix::only(Op::Read)),
            "write" => Some(Mix::only(Op::Write)),
            "mixed" => Mix::with_writes(70, 0, 0),
            "discard" => Some(Mix::only(Op::Discard)),
            "write-zeroes" => Some(Mix::only(Op::WriteZeroes)),
            "flush" => Some(Mix::only(Op::Flush)),
            _ => None,
        };
        let (access, stretch) = match access.split_once('/') {
            Some((access, stretch)) => (access, Some(parse_size(stretch)?)),
            None => (access, None),
        };
        let access = match access {
            "random" => Access::Random,
            "sequential" => Access::Sequential,
            "scattered" => Access::Scattered,
            _ => return Err(format!("'{access}': want random, sequential or scattered")),
        };
        let count = |text: &str| {
            text.parse().ok().filter(|n| *n > 0).ok_or(format!("'{text}': want a count above 0"))
        };
        Ok(Self {
            text: text.to_owned(),
            mix: mix.ok_or_else(|| {
                format!("'{pattern}': want read, write, mixed, discard, write-zeroes or flush")
            })?,
            access,
            stretch,
            block_size: parse_size(block)?,
            depth: count(depth)?,
            queues: count(queues)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases() {
        let case: Case = "mixed:sequential:64k:8:2".parse().unwrap();
        assert_eq!((case.mix.read, case.mix.write), (70, 30));
        assert_eq!((case.block_size, case.depth, case.queues), (65536, 8, 2));
        let case: Case = "write:scattered/64k:4k:32".parse().unwrap();
        assert_eq!((case.access, case.stretch), (Access::Scattered, Some(65536)));
        for bad in [
            "",
            "read:random/:4k:1",
            "read:random:4k",
            "reed:random:4k:1",
            "read:random:4k:0",
            "read:up:4k:1",
        ] {
            assert!(bad.parse::<Case>().is_err(), "{bad}");
        }
    }
}
