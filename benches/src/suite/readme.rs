//! The page beside the plots.

use super::results::Results;
use super::scenario::ALL;

/// All that a run has to say.
pub fn page(results: &Results) -> String {
    let score = results.score();
    let Results { rounds, seconds, .. } = results;
    let hosts =
        results.host.lines().map(|(what, value)| format!("| {what} | {value} |\n")).concat();
    format!(
        "# Our daemon against QEMU's\n\n\
         Written by the program that measured; do not edit. {rounds} rounds of {seconds} s, {score}.\n\n\
         ```sh\n{command}\n```\n\n\
         | | |\n|---|---|\n{hosts}\n\
         ![Requests or bytes per second, ours / QEMU's](throughput.svg)\n\n\
         ![Server CPU per request, ours / QEMU's](cpu.svg)\n\n\
         ## Targets\n\n{METHOD}\n{targets}\n\
         ## Figures\n\n{FIGURES}\n{figures}{missing}{failures}",
        command = results.command,
        targets = results.targets().markdown(),
        figures = results.figures().markdown(),
        missing = missing(results),
        failures = failures(results),
    )
}

const METHOD: &str = "\
A ratio is ours divided by the other's; it is the median of the ratios of the rounds. In each round every side has a turn, in an
order that alternates, on the same file, or on a fresh copy of it where the load writes. Nothing is left to be written back when a
turn begins, and the file is in the page cache, in single pages for everybody, except with O_DIRECT. QEMU's daemon has an iothread, io_uring and an L2 cache that
covers the disk, except where its default is named. Its iothread polls, so CPU ratios mean something where it has no time to idle: not
at depth 1. *our raw* is our daemon on a raw file that holds the same, *our plain* on a qcow2 image that has it in clear; *bare* is an io_uring loop over that file with no daemon at all,
client and server in one; where there is a backing file, it copies a whole cluster for each write. *floor* is the bare loop against
the same rival: the kernel's own cost, below which no daemon gets by much (the loop has no guest to serve:
no rings, no interrupts); a target that it misses itself is *beyond the floor*. First
writes are a fixed number of requests to places that were never written to.
";

const FIGURES: &str = "\
Medians over the rounds. Memory is what a daemon has resident at the end of its load, without the guest's, and without what its L2
cache and its cache of unpacked clusters may hold for this disk; it is the most of all rounds.
";

/// Says if this was not all of the suite.
fn missing(results: &Results) -> String {
    let ran = |name: &str| {
        results.outcomes.iter().any(|outcome| outcome.name == name)
            || results.failures.iter().any(|failure| failure.name == name)
    };
    let missing: Vec<_> = ALL.iter().map(|s| s.name).filter(|name| !ran(name)).collect();
    if missing.is_empty() {
        return String::new();
    }
    format!("\nNot measured in this run: {}.\n", missing.join(", "))
}

fn failures(results: &Results) -> String {
    if results.failures.is_empty() {
        return String::new();
    }
    let lines =
        results.failures.iter().map(|failure| format!("* {}: {}\n", failure.name, failure.error));
    format!("\n## Not finished\n\n{}", lines.collect::<String>())
}
