//! Plays a script on both sides, and judges after each command.

use serde_json::Value;

use crate::behind::Watch;
use crate::contents;
use crate::differences;
use crate::normal::{normal, of_same_files};
use crate::run::{Said, Tool};
use crate::script::Step;
use crate::twins::{Twins, is_qcow2};

/// How a script ended.
#[derive(Clone, Debug)]
pub enum Verdict {
    Alike,
    /// At a deliberate difference.
    CutShort(&'static str),
    Failed(Failure),
}

#[derive(Clone, Debug)]
pub struct Failure {
    /// The command after which it was seen; nothing if at the end.
    pub step: Option<usize>,
    pub what: String,
}

/// What one command led to.
enum Next {
    Go,
    CutShort(&'static str),
}

/// Plays `script` in fresh directories.
pub fn play(script: &[Step]) -> Verdict {
    let twins = Twins::new();
    let mut watch = Watch::default();
    for (index, step) in script.iter().enumerate() {
        match take(&twins, &mut watch, step, index % 2 == 0) {
            Ok(Next::Go) => {}
            Ok(Next::CutShort(reason)) => return Verdict::CutShort(reason),
            Err(what) => return Verdict::Failed(Failure { step: Some(index), what }),
        }
    }
    match contents::compare(&twins) {
        Ok(()) => Verdict::Alike,
        Err(what) => Verdict::Failed(Failure { step: None, what }),
    }
}

/// Runs `step` on both sides. Their images are checked, too, if `both` says so: that every other time is enough.
fn take(twins: &Twins, watch: &mut Watch, step: &Step, both: bool) -> Result<Next, String> {
    watch.before(twins, step);
    let [ours, theirs] = [Tool::Ours, Tool::Theirs].map(|tool| tool.run(&twins.of(tool), step));
    if normal(step, &ours) != normal(step, &theirs) {
        let Some(difference) = differences::find(step, &ours, &theirs) else {
            return Err(contrast(&normal(step, &ours), &normal(step, &theirs)));
        };
        if difference.ends {
            return end(twins, step, difference.reason);
        }
    }
    if let Some(difference) = watch.after(twins, step, &ours) {
        return end(twins, step, difference.reason);
    }
    if step.changes.is_empty() {
        let swapped = Tool::Ours.run(&twins.of(Tool::Theirs), step);
        let [swapped, theirs] = [&swapped, &theirs].map(|said| of_same_files(step, said));
        let is_external =
            |word: &String| twins.of(Tool::Theirs).join(format!("{word}.data")).exists();
        let external = step.words.iter().any(is_external);
        let allowed = differences::find_of_same_files(step, &swapped, &theirs, external);
        return match swapped == theirs || allowed.is_some() {
            true => Ok(Next::Go),
            false => Err(format!("of their files:\n{}", contrast(&swapped, &theirs))),
        };
    }
    if ours.code != Some(0) && matches!(step.command(), "convert" | "dd" | "create") {
        // Ours leaves no part of a target behind, and what was there before as it was; QEMU's does neither.
        let kept = step.has("-n");
        step.changes.iter().filter(|_| !kept).for_each(|name| twins.remove(name));
    }
    step.changes.iter().try_for_each(|name| check(twins, name, both))?;
    Ok(Next::Go)
}

/// Ends the script at a deliberate difference; clean our images have to be all the same.
fn end(twins: &Twins, step: &Step, reason: &'static str) -> Result<Next, String> {
    step.changes.iter().try_for_each(|name| check_ours(twins, name).map(drop))?;
    Ok(Next::CutShort(reason))
}

/// Both say that the image `name` is clean on both sides, or at least no worse on ours.
fn check(twins: &Twins, name: &str, both: bool) -> Result<(), String> {
    let [ours, theirs] = twins.both(name);
    if ours.exists() != theirs.exists() {
        return Err(format!("'{name}' is there on one side only: ours {}", ours.exists()));
    }
    if is_qcow2(&ours) != is_qcow2(&theirs) {
        return Err(format!("'{name}' is qcow2 on one side only: ours {}", is_qcow2(&ours)));
    }
    if !is_qcow2(&ours) {
        return Ok(());
    }
    let code = check_ours(twins, name)?;
    if code == Some(0) && !both {
        return Ok(());
    }
    let [by_ours, by_theirs] = checks(twins, Tool::Theirs, name);
    if by_theirs.2.contains("Could not open backing file") {
        return Ok(());
    }
    if by_ours != by_theirs {
        return Err(contrast_checks("theirs", name, &by_ours, &by_theirs));
    }
    if code != Some(0) && code != by_theirs.0 {
        return Err(format!("'{name}' is not clean on our side only"));
    }
    Ok(())
}

/// Both say the same of our image `name`: with which code.
fn check_ours(twins: &Twins, name: &str) -> Result<Option<i32>, String> {
    if !is_qcow2(&twins.of(Tool::Ours).join(name)) {
        return Ok(Some(0));
    }
    let [by_ours, by_theirs] = checks(twins, Tool::Ours, name);
    if by_theirs.2.contains("Could not open backing file") {
        // Ours takes no backing file for a check.
        return Ok(Some(0));
    }
    if by_ours != by_theirs {
        return Err(contrast_checks("ours", name, &by_ours, &by_theirs));
    }
    Ok(by_theirs.0)
}

type Checked = (Option<i32>, Value, String);

/// What both checkers say of the image `name` of `side`: the same file, so every number counts.
fn checks(twins: &Twins, side: Tool, name: &str) -> [Checked; 2] {
    [Tool::Ours, Tool::Theirs].map(|tool| {
        let words = ["check", "-U", "-f", "qcow2", "--output=json", name];
        let said = tool.img(&twins.of(side), &words);
        (said.code, serde_json::from_str(&said.stdout).unwrap_or_default(), said.stderr)
    })
}

fn contrast_checks(whose: &str, name: &str, by_ours: &Checked, by_theirs: &Checked) -> String {
    format!("check of '{name}', {whose}:\n  by ours:   {by_ours:?}\n  by theirs: {by_theirs:?}")
}

/// What both sides said, for people.
fn contrast(ours: &Said, theirs: &Said) -> String {
    let mut text = String::new();
    for (whose, said) in [("ours", ours), ("theirs", theirs)] {
        let ended = said.code.map_or("a signal".to_owned(), |code| format!("exit code {code}"));
        text += &format!("  {whose}: {ended}\n");
        for line in said.stdout.lines() {
            text += &format!("    | {line}\n");
        }
        for line in said.stderr.lines() {
            text += &format!("    ! {line}\n");
        }
    }
    text
}
