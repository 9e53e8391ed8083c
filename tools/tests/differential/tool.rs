//! Running the programs of both sides on equal files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Once;

use tempfile::TempDir;

use crate::sides::qemu_version;
pub use crate::sides::{Said, Tool};

impl Said {
    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    /// The same without what depends on how fast the machine is: `qemu-io`'s rates.
    pub fn without_rates(&self) -> Self {
        let keep = |line: &&str| !line.contains(" ops; ");
        let stdout = self.stdout.lines().filter(keep).map(|line| format!("{line}\n")).collect();
        Self { stdout, ..self.clone() }
    }

    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }
}

impl Tool {
    /// Runs `qemu-img` with the words of `line` in `directory`.
    pub fn img(self, directory: &Path, line: &str) -> Said {
        self.run("qemu-img", directory, line.split_whitespace())
    }

    /// Runs `qemu-io` with `options`, the file last, and the commands.
    pub fn io(self, directory: &Path, options: &str, commands: &[&str]) -> Said {
        let mut arguments: Vec<&str> = options.split_whitespace().collect();
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        self.run("qemu-io", directory, arguments)
    }

    /// Runs `program` with `arguments` in `directory`.
    pub fn run<S: AsRef<OsStr>>(
        self,
        program: &str,
        directory: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Said {
        Said::by(self.command(program, directory).args(arguments))
    }
}

/// Two equal directories, one for each side.
pub struct Pair {
    ours: TempDir,
    theirs: TempDir,
}

impl Pair {
    pub fn new() -> Self {
        print_qemu_version();
        let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
        Self { ours, theirs }
    }

    /// A pair of directories in which QEMU's `qemu-img` and `qemu-io` have run `setup`: lines of the form `img ...` and
    /// `io FILE: command; command`.
    pub fn prepared(setup: &str) -> Self {
        let pair = Self::new();
        [pair.ours(), pair.theirs()].into_iter().for_each(|place| prepare_lines(place, setup));
        pair
    }

    pub fn ours(&self) -> &Path {
        self.ours.path()
    }

    pub fn theirs(&self) -> &Path {
        self.theirs.path()
    }

    /// What both sides say to the same `qemu-img` command line.
    pub fn img(&self, line: &str) -> (Said, Said) {
        (Tool::Ours.img(self.ours(), line), Tool::Theirs.img(self.theirs(), line))
    }

    /// What both sides say to the same `qemu-io` commands, without rates.
    pub fn io(&self, options: &str, commands: &[&str]) -> (Said, Said) {
        let ours = Tool::Ours.io(self.ours(), options, commands);
        let theirs = Tool::Theirs.io(self.theirs(), options, commands);
        (ours.without_rates(), theirs.without_rates())
    }

    /// Asserts that both sides say exactly the same to a `qemu-img` command line.
    #[track_caller]
    pub fn same_img(&self, line: &str) -> Said {
        let (ours, theirs) = self.img(line);
        assert_eq!(ours, theirs, "qemu-img {line}");
        ours
    }

    /// Asserts that both sides exit alike and print the same JSON to a `qemu-img` command line, to the letter, but for the
    /// space that files take on the host, which depends on the file system.
    #[track_caller]
    pub fn same_json(&self, line: &str) {
        let (ours, theirs) = self.img(line);
        assert_eq!(ours.code, theirs.code, "qemu-img {line}: {ours:?} {theirs:?}");
        let stored = |line: &&str| !line.contains("\"actual-size\"");
        let [ours, theirs] =
            [&ours, &theirs].map(|said| said.stdout.lines().filter(stored).collect::<Vec<_>>());
        assert_eq!(ours, theirs, "qemu-img {line}");
    }

    /// Asserts that both sides say the same to `qemu-io` commands.
    #[track_caller]
    pub fn same_io(&self, options: &str, commands: &[&str]) -> Said {
        let (ours, theirs) = self.io(options, commands);
        assert_eq!(ours, theirs, "qemu-io {options} {commands:?}");
        ours
    }

    /// Asserts that `name` is a clean image on both sides, and the same disk.
    #[track_caller]
    pub fn same_clean_image(&self, name: &str) {
        self.clean_image(name);
        self.same_disk(name);
    }

    /// Asserts that `name` is a clean image on both sides.
    #[track_caller]
    pub fn clean_image(&self, name: &str) {
        for directory in [self.ours(), self.theirs()] {
            for tool in [Tool::Ours, Tool::Theirs] {
                let said = tool.img(directory, &format!("check -f qcow2 {name}"));
                assert_eq!(said.code, Some(0), "{tool:?} on {directory:?}: {said:?}");
            }
        }
    }

    /// Asserts that `name` holds the same disk on both sides.
    #[track_caller]
    pub fn same_disk(&self, name: &str) {
        let (ours, theirs) = (self.ours().join(name), self.theirs().join(name));
        let files = [ours.as_os_str(), theirs.as_os_str()];
        let arguments = [OsStr::new("compare"), files[0], files[1]];
        for tool in [Tool::Theirs, Tool::Ours] {
            let said = tool.run("qemu-img", self.ours(), arguments);
            assert_eq!(said.code, Some(0), "{tool:?}: {said:?}");
        }
    }
}

/// Lets QEMU's tools carry out `lines` in `directory`.
pub fn prepare_lines(directory: &Path, lines: &str) {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        prepare(directory, line);
    }
}

fn prepare(directory: &Path, line: &str) {
    let said = match line.split_once(' ') {
        Some(("img", rest)) => Tool::Theirs.img(directory, rest),
        Some(("io", rest)) => {
            let (options, commands) = rest.split_once(": ").expect("io FILE: command; ...");
            let commands: Vec<&str> = commands.split("; ").collect();
            Tool::Theirs.io(directory, options, &commands)
        }
        _ => panic!("no such preparation: {line}"),
    };
    assert_eq!(said.code, Some(0), "{line}: {said:?}");
}

/// Overwrites bytes of the file `name` on both sides.
pub fn damage(pair: &Pair, name: &str, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    for directory in [pair.ours(), pair.theirs()] {
        let file = std::fs::File::options().write(true).open(directory.join(name));
        file.and_then(|file| file.write_all_at(bytes, at)).expect("the image can be damaged");
    }
}

/// A file of `text` lines on both sides.
pub fn put(pair: &Pair, name: &str, bytes: &[u8]) -> [PathBuf; 2] {
    [pair.ours(), pair.theirs()].map(|directory| {
        let path = directory.join(name);
        std::fs::write(&path, bytes).expect("the file can be written");
        path
    })
}

/// Says once which QEMU the results hold for.
fn print_qemu_version() {
    static SAID: Once = Once::new();
    SAID.call_once(|| eprintln!("compared with {}", qemu_version()));
}
