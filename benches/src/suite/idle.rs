//! Does a daemon sleep when nobody wants anything?

use std::path::Path;
use std::time::Duration;

use crate::Result;
use crate::frontend::Features;
use crate::process;
use crate::session::Session;

/// Time for a daemon to stop looking for more requests.
const SETTLE: Duration = Duration::from_secs(1);
/// Time in which wake-ups are counted.
const WATCH: Duration = Duration::from_secs(2);
/// Requests before that, so that all that a daemon sets up on the way is there.
const READS: u64 = 256;

/// How often the daemon at `socket` wakes up in two seconds with a client that is connected, has read
/// something, and does nothing more.
pub fn wake_ups(socket: &Path) -> Result<u64> {
    let mut session = Session::connect(socket, 1, 128, Features::default())?;
    for block in 0..READS {
        session.queue(0).read(block * 8, 4096)?;
    }
    let pid = session.connection().server_pid()?;
    std::thread::sleep(SETTLE);
    let before = process::sleeps(pid)?;
    std::thread::sleep(WATCH);
    let wake_ups = process::sleeps(pid)? - before;
    session.stop()?;
    Ok(wake_ups)
}
