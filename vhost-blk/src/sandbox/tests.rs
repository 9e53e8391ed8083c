//! What a confined thread can do no more, each tried in a process of its own.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use super::*;
use crate::EXIT_IMAGE_LOST;

/// Set for the process that confines itself, to what it then tries.
const TRIED: &str = "VHOST_BLK_TEST_TRIED";
/// The exit code of a process that was refused what it tried, and went on.
const REFUSED: i32 = 60;
const ALLOWED: i32 = 61;

/// Something that is tried: its name, and what says whether it succeeded.
type Attempt = (&'static str, fn() -> bool);

fn attempts() -> Vec<Attempt> {
    vec![
        ("nothing", || true),
        ("open", || File::open("/etc/passwd").is_ok()),
        ("create", || File::create(std::env::temp_dir().join("escaped")).is_ok()),
        ("remove", || std::fs::remove_file("/etc/passwd").is_ok()),
        ("list", || std::fs::read_dir("/").is_ok()),
        ("connect", || UnixStream::connect("/run/any").is_ok()),
        ("connect-tcp", || TcpStream::connect("127.0.0.1:9").is_ok()),
        ("run", || Command::new("/bin/true").status().is_ok()),
        ("signal", || nix::sys::signal::kill(nix::unistd::getppid(), None).is_ok()),
        ("mode", || {
            nix::sys::stat::fchmod(std::io::stderr(), nix::sys::stat::Mode::empty()).is_ok()
        }),
        ("descriptor", || nix::unistd::dup(std::io::stderr()).is_ok()),
        ("ring", || {
            std::thread::spawn(qcow::disk::uring::set_up_ring).join().is_ok_and(|r| r.is_ok())
        }),
        ("dump", || nix::sys::prctl::set_dumpable(true).is_ok()),
        ("panic", || std::thread::spawn(|| panic!("broken on purpose")).join().is_ok()),
        ("thread", || std::thread::spawn(|| true).join().is_ok_and(|done| done)),
    ]
}

/// In the process that tries: does it, and tells by its exit code.
fn try_what_is_asked() {
    let Ok(asked) = std::env::var(TRIED) else { return };
    let (role, name) = asked.split_once(' ').expect("a role and a name");
    let role = match role {
        "worker" => Role::Worker,
        "control" => Role::Control(Some(Path::new("/nowhere"))),
        _ => Role::Watcher,
    };
    let (_, attempt) =
        attempts().into_iter().find(|(known, _)| *known == name).expect("a known attempt");
    Sandbox::On.enter().expect("allowed");
    Sandbox::On.confine(role).expect("allowed");
    std::process::exit(if attempt() { ALLOWED } else { REFUSED });
}

fn run(role: &str, name: &str) -> Output {
    let program = std::env::current_exe().expect("a program");
    let test = "sandbox::tests::a_confined_thread_reaches_nothing_that_is_not_open";
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command
        .env(TRIED, format!("{role} {name}"))
        .env("RUST_BACKTRACE", "1")
        .output()
        .expect("started")
}

#[test]
fn a_confined_thread_reaches_nothing_that_is_not_open() {
    try_what_is_asked();
    for role in ["worker", "control", "watcher"] {
        for (name, _) in attempts() {
            let output = run(role, name);
            let (code, said) = (output.status.code(), String::from_utf8_lossy(&output.stderr));
            match name {
                // It says where, as ever.
                "panic" => {
                    assert_eq!(code, Some(REFUSED), "{role}: {said}");
                    assert!(
                        said.contains("broken on purpose")
                            && !said.contains("sandbox: system call")
                    );
                }
                "nothing" | "thread" => assert_eq!(code, Some(ALLOWED), "{role} {name}: {said}"),
                // Libraries do without.
                "open" | "create" | "list" => {
                    assert_eq!(code, Some(REFUSED), "{role} {name}: {said}");
                }
                // Signals are blocked while a program is started, the one with our line, too.
                "run" => assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{role}: {said}"),
                // It has a directory to remove something in; this is another one.
                "remove" if role == "control" => assert_eq!(code, Some(REFUSED), "{name}: {said}"),
                _ => {
                    assert_eq!(code, Some(EXIT_IMAGE_LOST.into()), "{role} {name}: {said}");
                    let lines: Vec<_> = said.lines().collect();
                    assert!(
                        matches!(lines[..], [line] if line.contains("ended by the sandbox: system call ")),
                        "{lines:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn without_a_filter_of_calls_files_are_out_of_reach_all_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let own = directory.path().join("own");
    std::fs::write(&own, b"x").expect("written");
    let confined = std::thread::spawn({
        let own = own.clone();
        move || {
            files::give_up(own.parent()).expect("allowed");
            let open = File::open(&own).is_ok() || File::open("/etc/passwd").is_ok();
            (open, std::fs::remove_file(&own).is_ok())
        }
    });
    assert_eq!(confined.join().expect("no panic"), (false, true));
}
