//! What `--memory` and `--cpus` say: how much there is, and where the host is to have it.

use std::str::FromStr;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use qcow::size::parse_size;

/// Most processors: as many as have a number in the MADT's short form.
const CPUS_MAX: u8 = 254;

/// The guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemorySpec {
    /// In bytes.
    pub size: u64,
    /// Whether it comes from the host's pool of huge pages, of 2 MiB each.
    pub huge_pages: bool,
    /// Whether the host sets it aside before the guest starts, instead of when the guest uses it.
    pub prefault: bool,
    /// The host's NUMA node that it comes from; any if nothing is said.
    pub node: Option<u16>,
}

/// The guest's processors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSpec {
    /// How many, at least one.
    pub count: u8,
    /// The host's processors that they run on, in turn; anywhere if it is empty.
    affinity: Vec<usize>,
}

impl CpuSpec {
    /// The host's processor that processor `id` has to stay on.
    pub fn place(&self, id: u8) -> Option<usize> {
        self.affinity.get(usize::from(id) % self.affinity.len().max(1)).copied()
    }
}

impl FromStr for MemorySpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let size = parse_size(words.next().unwrap_or_default())?;
        let mut spec = Self { size, huge_pages: false, prefault: false, node: None };
        for word in words {
            match word.split_once('=') {
                None if word == "hugepages" => spec.huge_pages = true,
                None if word == "prefault" => spec.prefault = true,
                Some(("numa", node)) => spec.node = Some(parse_node(node)?),
                _ => {
                    return Err(format!(
                        "'{word}' is no option of memory: say hugepages, prefault, or numa=N"
                    ));
                }
            }
        }
        Ok(spec)
    }
}

impl FromStr for CpuSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (count, affinity) = match text.split_once(',') {
            None => (text, Vec::new()),
            Some((count, option)) => {
                let list = option.strip_prefix("affinity=");
                let list = list.ok_or_else(|| {
                    format!("'{option}' is no option of processors: say affinity=LIST")
                })?;
                (count, parse_list(list)?)
            }
        };
        let valid = count.parse().ok().filter(|count| (1..=CPUS_MAX).contains(count));
        let count = valid
            .ok_or_else(|| format!("'{count}' is no number of processors: say 1 to {CPUS_MAX}"))?;
        Ok(Self { count, affinity })
    }
}

fn parse_node(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("'{text}' is no NUMA node of the host: say its number"))
}

/// Numbers and ranges of the host's processors that this program may use, with commas between.
fn parse_list(text: &str) -> Result<Vec<usize>, String> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(|e| e.desc().to_owned())?;
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else {
            return Err(format!("'{part}' is no processor of the host: say a number, or a range"));
        };
        if first > last || last >= CpuSet::count() {
            return Err(format!("'{part}' is no range of the host's processors"));
        }
        for cpu in first..=last {
            if !allowed.is_set(cpu).unwrap_or(false) {
                return Err(format!("processor {cpu} is not one that this program may run on"));
            }
            list.push(cpu);
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory() {
        let spec: MemorySpec = "2G,hugepages,prefault,numa=1".parse().expect("good");
        let expected =
            MemorySpec { size: 2 << 30, huge_pages: true, prefault: true, node: Some(1) };
        assert_eq!(spec, expected);
        for bad in ["", "x", "1G,", "1G,huge", "1G,numa", "1G,numa=x", "1G,numa=-1"] {
            assert!(bad.parse::<MemorySpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn processors() {
        let anywhere: CpuSpec = "3".parse().expect("good");
        assert_eq!((anywhere.count, anywhere.place(2)), (3, None));
        for bad in ["", "0", "255", "x", "1,", "1,affinity", "1,affinity=", "1,affinity=x"] {
            assert!(bad.parse::<CpuSpec>().is_err(), "{bad}");
        }
        for bad in ["1,affinity=1-0", "1,affinity=0-99999999", "1,affinity=1023"] {
            assert!(bad.parse::<CpuSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn places_are_taken_in_turn() {
        let spec = CpuSpec { count: 3, affinity: vec![4, 6] };
        assert_eq!([0, 1, 2].map(|id| spec.place(id)), [Some(4), Some(6), Some(4)]);
    }
}
