//! The suite of `make bench`, small: that it runs from end to end, not what comes of it.

use std::process::Command;
use std::time::Duration;

use benches::compare::daemon::Template;
use benches::suite::images::ImageKind;
use benches::suite::scenario::{Load, Rival, Scenario, Side, Work};
use benches::suite::{Programs, Suite};

const SIZE: u64 = 16 << 20;

/// Everybody, one target that cannot be met and one that cannot be missed.
const RIVALS: &[Rival] = &[
    Rival { side: Side::Peer, cpu_max: Some(0.0), throughput_min: Some(0.0) },
    Rival { side: Side::OursRaw, cpu_max: None, throughput_min: None },
    Rival { side: Side::Bare, cpu_max: None, throughput_min: None },
];

const READS: Scenario = Scenario {
    name: "reads",
    title: "some reads",
    image: ImageKind::Full { size: SIZE },
    work: Work::Load(Load { case: "read:random:4k:4", range: None, requests: None }),
    direct: false,
    default_caches: false,
    rivals: RIVALS,
};

const FIRST_WRITES: Scenario = Scenario {
    name: "first-writes",
    title: "some first writes",
    image: ImageKind::Thin { size: SIZE, extended_l2: true },
    work: Work::Load(Load { case: "write:scattered/64k:4k:4", range: None, requests: Some(2000) }),
    ..READS
};

const BEYOND: Scenario = Scenario {
    name: "beyond",
    title: "what cannot be done",
    work: Work::Load(Load { case: "read:random:64m:4", range: None, requests: None }),
    ..READS
};

/// QEMU's daemon plays both parts.
#[test]
fn a_small_suite_runs_and_writes_its_results() {
    if Command::new("qemu-storage-daemon").arg("--version").output().is_err() {
        eprintln!(
            "skipped: qemu-storage-daemon is not installed (Debian: qemu-system-common or qemu-utils)"
        );
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (work_dir, out) = (dir.path().to_owned(), dir.path().join("out"));
    let peer = Template::qemu_storage_daemon();
    let suite = Suite {
        programs: Programs { ours: peer.clone(), peer },
        scenarios: vec![READS, BEYOND, FIRST_WRITES],
        rounds: 2,
        time: Duration::from_millis(50),
        warmup: Duration::from_millis(5),
        work_dir,
        command: "the command".to_owned(),
    };
    let mut told = 0;
    let results = suite.run(|_| told += 1);
    assert!(told > 16, "{told}");
    let names: Vec<_> = results.outcomes.iter().map(|outcome| outcome.name.as_str()).collect();
    assert_eq!(names, ["reads", "first-writes"], "{results}");
    assert_eq!(results.failures.len(), 1);
    for outcome in &results.outcomes {
        let sides = [Side::Ours, Side::Peer, Side::OursRaw, Side::Bare];
        assert_eq!(outcome.figures.keys().copied().collect::<Vec<_>>(), sides);
        assert!(outcome.figures.values().all(|figures| figures.rounds.len() == 2));
        let met: Vec<_> =
            outcome.verdicts.iter().filter_map(benches::suite::outcome::Verdict::met).collect();
        assert_eq!(met, [true, false]);
    }

    results.write(&out).unwrap();
    let page = std::fs::read_to_string(out.join("README.md")).unwrap();
    for part in ["the command", "some reads", "* beyond: ", "Not measured in this run"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(std::fs::read_to_string(out.join("cpu.svg")).unwrap().contains("some first writes"));
    let json = std::fs::read(out.join("results.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["outcomes"][0]["figures"]["peer"]["rounds"][0]["errors"], 0);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
