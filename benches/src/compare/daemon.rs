//! Starts and stops the daemons that are compared.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What both sides are to do with an image.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Format of the image: `qcow2` or `raw`.
    pub format: String,
    /// Bypass the page cache.
    pub direct: bool,
    /// Queues to serve.
    pub queues: u16,
    /// Bytes of L2 cache that cover the whole disk; 0 for `raw`.
    pub l2_cache: u64,
    /// The file with the passphrase, of an encrypted image; only our daemon is told of it.
    pub key: Option<PathBuf>,
}

/// A daemon's command line, with `{image}`, `{socket}` and so on to be filled in.
#[derive(Clone, Debug)]
pub struct Template(Vec<String>);

impl Template {
    /// Our daemon, by its path.
    pub fn vhost_blk(program: &Path) -> Self {
        let options = "--socket-path={socket} --blk-file={image} --format={format} \
                       --num-queues={queues} --cache={cache} --discard=unmap {key_option}";
        let program = program.display().to_string();
        Self(std::iter::once(program).chain(words(options)).collect())
    }

    /// QEMU's daemon with the settings that suit it best.
    pub fn qemu_storage_daemon() -> Self {
        Self::from(
            "qemu-storage-daemon --object iothread,id=t0 \
             --blockdev file,node-name=f,filename={image},aio=io_uring,cache.direct={direct},discard=unmap \
             --blockdev {format},node-name=d,file=f,discard=unmap{l2_option} \
             --export vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path={socket},writable=on,num-queues={queues},iothread=t0",
        )
    }

    /// First line of what the program says to `--version`.
    pub fn version(&self) -> String {
        let output = Command::new(&self.0[0]).arg("--version").output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        let first = text.ok().and_then(|text| text.lines().next().map(str::to_owned));
        first.unwrap_or_else(|| self.0[0].clone())
    }

    fn command(&self, image: &Path, socket: &Path, settings: &Settings) -> Command {
        let l2_option = match settings.l2_cache {
            0 => String::new(),
            bytes => format!(",l2-cache-size={bytes}"),
        };
        let key = settings.key.as_ref();
        let key_option =
            key.map_or(String::new(), |key| format!("--encrypt-key-file={}", key.display()));
        let values = [
            ("{key_option}", key_option),
            ("{image}", image.display().to_string()),
            ("{socket}", socket.display().to_string()),
            ("{format}", settings.format.clone()),
            ("{queues}", settings.queues.to_string()),
            ("{cache}", if settings.direct { "none" } else { "writeback" }.to_owned()),
            ("{direct}", if settings.direct { "on" } else { "off" }.to_owned()),
            ("{l2_cache}", settings.l2_cache.to_string()),
            ("{l2_option}", l2_option),
        ];
        let fill = |word: &String| {
            values.iter().fold(word.clone(), |word, (name, value)| word.replace(name, value))
        };
        let mut command = Command::new(fill(&self.0[0]));
        command.args(self.0[1..].iter().map(fill).filter(|word| !word.is_empty()));
        command
    }
}

impl From<&str> for Template {
    /// Words are parted by white space; there is no quoting.
    fn from(text: &str) -> Self {
        Self(words(text).collect())
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split_whitespace().map(str::to_owned)
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon(Child);

/// Time for a daemon to come up, or to end.
const PATIENCE: Duration = Duration::from_secs(20);

impl Daemon {
    /// Starts a daemon on `image` and waits until it listens on `socket`.
    pub fn start(
        template: &Template,
        image: &Path,
        socket: &Path,
        settings: &Settings,
    ) -> Result<Self> {
        // A socket left over by a daemon that was killed must not be taken for the new one's.
        let _ = std::fs::remove_file(socket);
        let mut command = template.command(image, socket, settings);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("{program}: cannot start"))?;
        let mut daemon = Self(child);
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(socket).is_err() {
            if let Some(status) = daemon.0.try_wait()? {
                bail!("{program}: ended at its start with {status}");
            }
            let path = socket.display();
            ensure!(Instant::now() < deadline, "{program}: does not listen on {path}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// Asks the daemon to end, and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait()? {
                ensure!(status.success(), "the daemon ended with {status}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_in() {
        let settings =
            Settings { format: "qcow2".into(), direct: true, queues: 2, l2_cache: 4096, key: None };
        let command = Template::from("d -i {image} --x={cache},{direct}{l2_option} {queues}")
            .command("/a b".as_ref(), "/s".as_ref(), &settings);
        let words: Vec<_> = command.get_args().collect();
        assert_eq!(words, ["-i", "/a b", "--x=none,on,l2-cache-size=4096", "2"]);
    }
}
