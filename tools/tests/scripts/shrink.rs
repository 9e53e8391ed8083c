//! Cuts a script that fails down to what it takes, and tells it.

use crate::judge::{self, Failure, Verdict};
use crate::script::{Program, Step};

/// Scripts that are played in search of a shorter one.
const TRIES_MAX: usize = 300;

/// The failure of the script `seed`, as short as it can be told.
pub fn report(seed: u64, script: &[Step], failure: &Failure) -> String {
    let (script, failure) = shrink(script, failure);
    let mut text = format!(
        "repeat: SCRIPTS_FIRST={seed} SCRIPTS_COUNT=1 cargo test -p tools --test scripts\n"
    );
    for step in &script {
        text += &format!("  {step}\n");
    }
    text += &failure.what;
    text
}

fn shrink(script: &[Step], failure: &Failure) -> (Vec<Step>, Failure) {
    let (mut best, mut failure) = (until(script, failure), failure.clone());
    let mut tries = 0;
    let mut changed = true;
    while changed {
        changed = false;
        let mut at = 0;
        // The number of candidates shrinks with the script.
        while let Some(candidate) = candidates(&best).into_iter().nth(at) {
            tries += 1;
            if tries > TRIES_MAX {
                return (best, failure);
            }
            match judge::play(&candidate) {
                Verdict::Failed(new) => {
                    best = until(&candidate, &new);
                    (failure, changed) = (new, true);
                }
                Verdict::Alike | Verdict::CutShort(_) => at += 1,
            }
        }
    }
    (best, failure)
}

/// `script` up to where it failed.
fn until(script: &[Step], failure: &Failure) -> Vec<Step> {
    script[..failure.step.map_or(script.len(), |step| step + 1)].to_vec()
}

/// `script` with a little less: without a command, or with a simpler one.
fn candidates(script: &[Step]) -> Vec<Vec<Step>> {
    let shorter = (0..script.len()).rev().map(|at| {
        let mut shorter = script.to_vec();
        shorter.remove(at);
        shorter
    });
    let simpler = (0..script.len()).flat_map(move |at| {
        simpler(&script[at]).into_iter().map(move |step| {
            let mut simpler = script.to_vec();
            simpler[at] = step;
            simpler
        })
    });
    shorter.chain(simpler).collect()
}

/// `step` without one of its commands or options.
fn simpler(step: &Step) -> Vec<Step> {
    let without = |at: usize, count: usize| {
        let mut simpler = step.clone();
        simpler.words.drain(at..at + count);
        simpler
    };
    let mut steps = Vec::new();
    for (at, pair) in step.words.windows(2).enumerate() {
        let takes_value = match step.program {
            Program::Io => ["-c", "-t", "-d", "-i"].contains(&pair[0].as_str()),
            Program::Img => ["-t", "-T", "-m", "-S", "-i"].contains(&pair[0].as_str()),
        };
        if takes_value && pair[1] != "aio_flush" {
            steps.push(without(at, 2));
        }
        let options: Vec<&str> = pair[1].split(',').collect();
        if pair[0] == "-o" && step.command() != "bench" {
            steps.push(without(at, 2));
            steps.extend((0..options.len()).map(|index| {
                let mut fewer = options.clone();
                fewer.remove(index);
                let mut simpler = step.clone();
                simpler.words[at + 1] = fewer.join(",");
                simpler
            }));
        }
    }
    let flags = ["-q", "-p", "-W", "-U", "-C"];
    let places = step.words.iter().enumerate().filter(|(_, word)| flags.contains(&word.as_str()));
    steps.extend(places.map(|(at, _)| without(at, 1)));
    steps
}
