//! The end of a script: the same disks, snapshots and bitmaps on both sides.

use serde_json::Value;

use crate::run::Tool;
use crate::twins::{Twins, is_qcow2};

/// Files that the comparison makes.
const COPY: &str = "copy";

/// Compares all images of the twins.
pub fn compare(twins: &Twins) -> Result<(), String> {
    for name in twins.names() {
        if name.ends_with(".data") {
            continue;
        }
        let [ours, theirs] = twins.both(&name);
        if ours.exists() != theirs.exists() || is_qcow2(&ours) != is_qcow2(&theirs) {
            return Err(format!("in the end '{name}' is not the same kind of file on both sides"));
        }
        disk(twins, &name)?;
        if is_qcow2(&ours) {
            described(twins, &name)?;
        }
    }
    Ok(())
}

/// The disk of the image `name`, read by both.
fn disk(twins: &Twins, name: &str) -> Result<(), String> {
    let format = if is_qcow2(&twins.of(Tool::Ours).join(name)) { "qcow2" } else { "raw" };
    let compare = |tool: Tool, first: &str, second: &str| {
        let [first, second] = [first, second].map(|side| format!("{side}/{name}"));
        tool.img(twins.root(), &["compare", "-f", format, "-F", format, &first, &second])
    };
    let theirs = compare(Tool::Theirs, "ours", "theirs");
    // An image whose backing file is gone cannot be read, on either side.
    if theirs.code == Some(2) && compare(Tool::Theirs, "theirs", "theirs").code == Some(2) {
        return Ok(());
    }
    let ours = compare(Tool::Ours, "ours", "theirs");
    if theirs.code != Some(0) || ours.code != Some(0) {
        return Err(format!(
            "in the end '{name}' is not the same disk:\n  as ours reads it: {}{}\n  as theirs reads it: {}{}",
            ours.stdout, ours.stderr, theirs.stdout, theirs.stderr
        ));
    }
    Ok(())
}

/// The snapshots and bitmaps of the image `name`.
fn described(twins: &Twins, name: &str) -> Result<(), String> {
    let [ours, theirs] = [Tool::Ours, Tool::Theirs].map(|side| {
        let said =
            Tool::Theirs.img(&twins.of(side), &["info", "-f", "qcow2", "--output=json", name]);
        serde_json::from_str::<Value>(&said.stdout).unwrap_or_default()
    });
    let bitmaps = |info: &Value| info["format-specific"]["data"]["bitmaps"].clone();
    if bitmaps(&ours) != bitmaps(&theirs) {
        return Err(format!(
            "in the end '{name}' has other bitmaps:\n  ours:   {}\n  theirs: {}",
            bitmaps(&ours),
            bitmaps(&theirs)
        ));
    }
    let ids = |info: &Value| -> Vec<String> {
        let list = info["snapshots"].as_array().cloned().unwrap_or_default();
        list.iter().map(|one| one["id"].as_str().unwrap_or_default().to_owned()).collect()
    };
    if ids(&ours) != ids(&theirs) {
        return Err(format!(
            "in the end '{name}' has other snapshots: {:?} {:?}",
            ids(&ours),
            ids(&theirs)
        ));
    }
    for id in ids(&ours) {
        snapshot(twins, name, &id)?;
    }
    let size = ours["virtual-size"].to_string();
    for bitmap in bitmaps(&ours).as_array().into_iter().flatten() {
        bits(twins, name, bitmap, &size)?;
    }
    Ok(())
}

/// What the snapshot `id` of the image `name` holds.
fn snapshot(twins: &Twins, name: &str, id: &str) -> Result<(), String> {
    let choice = format!("snapshot.id={id}");
    let copied = [Tool::Ours, Tool::Theirs].map(|side| {
        let words = ["convert", "-f", "qcow2", "-O", "raw", "-l", &choice, name, COPY];
        Tool::Theirs.img(&twins.of(side), &words)
    });
    let compared = Tool::Theirs.img(
        twins.root(),
        &["compare", "-f", "raw", "-F", "raw", &format!("ours/{COPY}"), &format!("theirs/{COPY}")],
    );
    twins.remove(COPY);
    match copied[0] == copied[1] && (copied[0].code != Some(0) || compared.code == Some(0)) {
        true => Ok(()),
        false => Err(format!(
            "in the end snapshot {id} of '{name}' holds something else: {copied:?} {}",
            compared.stdout
        )),
    }
}

/// The bits of a bitmap of the image `name`: merged by QEMU into one of an empty image, they give equal files.
fn bits(twins: &Twins, name: &str, bitmap: &Value, size: &str) -> Result<(), String> {
    let [called, granularity] = [&bitmap["name"], &bitmap["granularity"]]
        .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let copies = [Tool::Ours, Tool::Theirs].map(|side| {
        let directory = twins.of(side);
        Tool::Theirs.img(&directory, &["create", "-q", "-f", "qcow2", COPY, size]);
        let words = ["bitmap", "-f", "qcow2", "--add", "-g", &granularity, "--merge", &called];
        let words = [&words[..], &["-b", name, "-F", "qcow2", COPY, "x"]].concat();
        let said = Tool::Theirs.img(&directory, &words);
        (said.code, std::fs::read(directory.join(COPY)).unwrap_or_default())
    });
    twins.remove(COPY);
    match copies[0] == copies[1] {
        true => Ok(()),
        false => Err(format!("in the end the bits of bitmap '{called}' of '{name}' differ")),
    }
}
