//! The process that starts a daemon for each disk, starts it again when it dies, and ends with the monitor.
//!
//! It is forked before the monitor has threads, and before the monitor confines itself: a daemon needs what a monitor must
//! not have. It listens where the daemons are to be reached and hands that on, so that whoever connects never comes too early.
//! When a daemon dies before it has taken a connection, the connection is closed: that is how the monitor learns of it.

#![expect(unsafe_code, reason = "the keeper is forked")]

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use super::spec::DiskSpec;

/// A daemon that has run for less is not started again at once, but after a while that grows.
const LIFE_SHORT: Duration = Duration::from_millis(500);
const DELAY_MAX: Duration = Duration::from_secs(1);

/// The keeper, from the monitor's side. Dropping it ends all daemons and waits for that.
#[derive(Debug)]
pub struct Keeper {
    pid: Pid,
    /// Closed when the monitor ends, however it does.
    life: Option<UnixStream>,
    sockets: Vec<PathBuf>,
}

impl Keeper {
    /// Starts a daemon for each of `disks`. The program must have no other threads yet.
    pub fn start(disks: &[DiskSpec]) -> Result<Self> {
        let program = daemon_program()?;
        let folder = make_folder()?;
        let mut kept = Vec::new();
        let mut sockets = Vec::new();
        for (index, disk) in disks.iter().enumerate() {
            let socket = folder.join(format!("disk{index}"));
            let listener = UnixListener::bind(&socket)
                .with_context(|| format!("{}: cannot make a socket", socket.display()))?;
            listener.set_nonblocking(true)?;
            kept.push(Kept::new(disk.clone(), listener));
            sockets.push(socket);
        }
        let (life, theirs) = UnixStream::pair().context("cannot make a socket")?;
        // SAFETY: needed because the daemons have to be started by somebody who is not confined as the monitor is. No other
        // thread exists, so that the child finds every lock free and may do what any program may.
        match unsafe { fork() }.context("cannot start a process")? {
            ForkResult::Parent { child } => Ok(Self { pid: child, life: Some(life), sockets }),
            ForkResult::Child => {
                drop(life);
                let kept = keep(&program, kept, &theirs);
                // The monitor may remove nothing, or be gone.
                let _ = fs::remove_dir_all(&folder);
                let code = match kept {
                    Ok(()) => 0,
                    Err(error) => {
                        eprintln!("vmm: {error:#}");
                        1
                    }
                };
                std::process::exit(code);
            }
        }
    }

    /// Where the daemon of disk `index` is reached.
    pub fn socket(&self, index: usize) -> &Path {
        &self.sockets[index]
    }

    /// Ends all daemons, and waits until their images are closed.
    pub fn end(&mut self) {
        if self.life.take().is_some() {
            let _ = waitpid(self.pid, None);
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end();
    }
}

/// Our daemon: beside this program, or wherever programs are.
fn daemon_program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let beside = own.with_file_name("vhost-blk");
    Ok(if beside.exists() { beside } else { PathBuf::from("vhost-blk") })
}

/// A folder of this user alone.
fn make_folder() -> Result<PathBuf> {
    let parent = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let template = parent.join("vmm-XXXXXX");
    nix::unistd::mkdtemp(&template)
        .map_err(|e| anyhow!("{}: cannot make a folder: {}", parent.display(), e.desc()))
}

/// A disk and its daemon.
#[derive(Debug)]
struct Kept {
    disk: DiskSpec,
    listener: UnixListener,
    child: Option<Child>,
    started: Instant,
    delay: Duration,
}

impl Kept {
    fn new(disk: DiskSpec, listener: UnixListener) -> Self {
        let (started, delay) = (Instant::now(), Duration::ZERO);
        Self { disk, listener, child: None, started, delay }
    }

    fn start(&mut self, program: &Path) -> Result<()> {
        self.started = Instant::now();
        fcntl(&self.listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let child = self.command(program).spawn();
        // The other daemons are not to have it.
        fcntl(&self.listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        self.child =
            Some(child.with_context(|| format!("{}: cannot be started", program.display()))?);
        Ok(())
    }

    fn command(&self, program: &Path) -> Command {
        let disk = &self.disk;
        let mut command = Command::new(program);
        command.arg("--quiet");
        command.arg(format!("--fd={}", self.listener.as_raw_fd()));
        command.arg("--blk-file").arg(&disk.path);
        command.args(disk.readonly.then_some("--read-only"));
        command.args(disk.queues.map(|count| format!("--num-queues={count}")));
        command.args(disk.cache.as_ref().map(|mode| format!("--cache={mode}")));
        command.args(disk.format.as_ref().map(|name| format!("--format={name}")));
        // What a terminal sends to this program is not for the daemon.
        command.stdin(Stdio::null()).process_group(0);
        // SAFETY: needed so that the daemon can be told to end: this process blocks signals. Both are bare system calls.
        unsafe { command.pre_exec(|| Ok(prepare_daemon()?)) };
        command
    }

    /// Whether it runs. If it has just ended, whoever waits for it is let go.
    fn look(&mut self) -> Result<bool> {
        let Some(child) = &mut self.child else { return Ok(false) };
        if child.try_wait()?.is_none() {
            return Ok(true);
        }
        self.child = None;
        while self.listener.accept().is_ok() {}
        let is_short = self.started.elapsed() < LIFE_SHORT;
        let grown = (self.delay * 2).clamp(Duration::from_millis(10), DELAY_MAX);
        self.delay = if is_short { grown } else { Duration::ZERO };
        Ok(false)
    }

    /// How long until it is to be started.
    fn due(&self) -> Option<Duration> {
        let wait = || (self.started + self.delay).saturating_duration_since(Instant::now());
        self.child.is_none().then(wait)
    }
}

/// In the new process: takes signals, and one when the keeper is gone.
fn prepare_daemon() -> nix::Result<()> {
    SigSet::empty().thread_set_mask()?;
    set_pdeathsig(Signal::SIGTERM)
}

/// The keeper's life: until the other end of `life` is closed.
fn keep(program: &Path, mut disks: Vec<Kept>, life: &UnixStream) -> Result<()> {
    let mut signals = SigSet::empty();
    // A terminal sends SIGINT to all its processes; the monitor is the one to decide.
    [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM].into_iter().for_each(|s| signals.add(s));
    signals.thread_block()?;
    let children = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    loop {
        for kept in &mut disks {
            if !kept.look()? && kept.due() == Some(Duration::ZERO) {
                kept.start(program)?;
            }
        }
        let due = disks.iter().filter_map(Kept::due).min();
        // A millisecond more, so that it has passed.
        let due = due.and_then(|due| PollTimeout::try_from(due + Duration::from_millis(1)).ok());
        let mut watched = [
            PollFd::new(life.as_fd(), PollFlags::POLLIN),
            PollFd::new(children.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut watched, due.unwrap_or(PollTimeout::NONE));
        if watched[0].any() == Some(true) {
            end(disks);
            return Ok(());
        }
        while let Ok(Some(_)) = children.read_signal() {}
    }
}

/// Ends all daemons: they finish what is in flight, and close their images. What goes wrong there they tell themselves.
fn end(disks: Vec<Kept>) {
    let mut children: Vec<Child> = disks.into_iter().filter_map(|kept| kept.child).collect();
    for child in &children {
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
    }
    for child in &mut children {
        let _ = child.wait();
    }
}
