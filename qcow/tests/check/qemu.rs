//! Runs `qemu-img` and `qemu-io`, and reads what `qemu-img check` says.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

/// The key of encrypted images.
pub const KEY: &str = "secret,id=key,data=secret";
/// The signal that no program survives.
const KILL: i32 = 9;
/// Where the header tells whether an image is encrypted: the last byte of the field.
const CRYPT_METHOD_AT: usize = 35;

/// Runs `qemu-img`, which must succeed.
pub fn qemu_img(arguments: &[&str]) {
    let output = run("qemu-img", arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {stderr}");
}

/// Runs `qemu-img`; says whether it succeeded.
pub fn qemu_img_may_fail(arguments: &[&str]) -> bool {
    run("qemu-img", arguments).status.success()
}

/// Runs commands in `qemu-io`, all of which must succeed.
pub fn qemu_io(image: &Path, commands: &[&str]) {
    let output = run_io(image, commands);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-io {commands:?}: {stderr}");
}

/// Runs commands in a `qemu-io` that is killed after the last one.
pub fn dying_qemu_io(image: &Path, commands: &[&str]) {
    let kill = format!("sigraise {KILL}");
    let output = run_io(image, &[commands, &[&kill]].concat());
    assert_eq!(output.status.signal(), Some(KILL), "{output:?}");
}

fn run_io(image: &Path, commands: &[&str]) -> Output {
    let naming = naming(image);
    let mut arguments: Vec<&str> = commands.iter().flat_map(|command| ["-c", *command]).collect();
    arguments.extend(naming.iter().map(String::as_str));
    run("qemu-io", &arguments)
}

/// The arguments that name an image, and the key of an encrypted one.
fn naming(image: &Path) -> Vec<String> {
    let path = image.to_str().unwrap();
    if std::fs::read(image).unwrap()[CRYPT_METHOD_AT] == 0 {
        return vec!["-f".into(), "qcow2".into(), path.into()];
    }
    let options = format!("driver=qcow2,file.filename={path},encrypt.key-secret=key");
    vec!["--object".into(), KEY.into(), "--image-opts".into(), options]
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.expect("this test needs qemu-img and qemu-io: install qemu-utils")
}

/// The result of `qemu-img check`.
#[derive(Debug)]
pub struct Verdict {
    /// The exit code: 0 clean, 1 could not check, 2 corruptions, 3 leaks.
    pub exit: i32,
    /// The figures; absent where it could not check at all.
    pub figures: Option<serde_json::Value>,
    /// The lines about findings.
    pub lines: Vec<String>,
}

impl Verdict {
    /// A figure by its JSON name; those that QEMU leaves out are zero.
    pub fn figure(&self, name: &str) -> u64 {
        let figures = self.figures.as_ref().expect("figures of a finished check");
        figures.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0)
    }
}

/// Runs `qemu-img check` with `options` on the image at `path`.
pub fn check(path: &Path, options: &[&str]) -> Verdict {
    let naming = naming(path);
    let mut arguments = vec!["check", "--output=json"];
    arguments.extend(options);
    arguments.extend(naming.iter().map(String::as_str));
    let output = run("qemu-img", &arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    Verdict {
        exit: output.status.code().expect("qemu-img was not killed"),
        figures: serde_json::from_slice(&output.stdout).ok(),
        lines: stderr.lines().map(str::to_owned).collect(),
    }
}
