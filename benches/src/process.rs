//! What the kernel tells about another process: its memory, and how often it woke up.

use std::fs;
use std::io;
use std::path::Path;

use crate::{Error, Result};

/// Memory of process `pid` in bytes: anonymous memory and mapped files. What it shares with other
/// processes, as a daemon does a guest's memory, is left out.
pub fn resident(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(Error::system("read the memory of the server process"))?;
    Ok(1024 * (field(&status, "RssAnon")? + field(&status, "RssFile")?))
}

/// How often the threads of process `pid` went to sleep, and so woke up, since they began.
pub fn sleeps(pid: i32) -> Result<u64> {
    let unreadable = || Error::system("read the threads of the server process");
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).map_err(unreadable())? {
        sum += sleeps_of_thread(&thread.map_err(unreadable())?.path())?;
    }
    Ok(sum)
}

fn sleeps_of_thread(thread: &Path) -> Result<u64> {
    match fs::read_to_string(thread.join("status")) {
        Ok(status) => field(&status, "voluntary_ctxt_switches"),
        // It has ended since the list was made.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(Error::system("read a thread of the server process")(e)),
    }
}

/// The number behind `name:`.
fn field(status: &str, name: &'static str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| Error::System { what: name, cause: io::ErrorKind::InvalidData.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status =
            "RssAnon:\t     120 kB\nnonvoluntary_ctxt_switches:\t7\nvoluntary_ctxt_switches:\t5\n";
        assert_eq!(field(status, "RssAnon").unwrap(), 120);
        assert_eq!(field(status, "voluntary_ctxt_switches").unwrap(), 5);
        assert!(field(status, "RssFile").is_err());
    }

    #[test]
    fn our_own_figures_can_be_read() {
        let pid = std::process::id() as i32;
        assert!(resident(pid).unwrap() > 0);
        sleeps(pid).unwrap();
    }
}
