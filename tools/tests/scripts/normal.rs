//! What a program said, without what may differ: clocks, rates, and where on the host an image keeps things.

use serde_json::Value;

use crate::run::Said;
use crate::script::{Program, Step};

/// Keys of which the values may differ, each for a reason.
const LOOSE_KEYS: [&str; 7] = [
    // Blocks that the host's file system gives to a file.
    "actual-size",
    // The time at which each side made its snapshot.
    "date-sec",
    "date-nsec",
    // Where clusters lie is the allocator's choice.
    "image-end-offset",
    "fragmented-clusters",
    // Zeros take no cluster on our side where the disk reads as zeros already.
    "allocated-clusters",
    "compressed-clusters",
];
/// Lines of the same kind in texts for people.
const LOOSE_LINES: [&str; 5] =
    ["disk size: ", "file length: ", "Image end offset: ", "Run completed in ", "Child node "];

/// `said` to `step`, in a form in which both sides have to agree.
pub fn normal(step: &Step, said: &Said) -> Said {
    let stdout = match serde_json::from_str::<Value>(&said.stdout) {
        Ok(value) if value.is_object() || value.is_array() => {
            let value = if step.command() == "map" {
                merged(&without_holes(value))
            } else {
                scrubbed(value)
            };
            format!("{value:#}\n")
        }
        _ => text(step, &said.stdout),
    };
    Said { stdout, stderr: without_node_numbers(&said.stderr), ..said.clone() }
}

/// What two programs have to say alike of the same files.
pub fn of_same_files(step: &Step, said: &Said) -> Said {
    let stdout = match serde_json::from_str::<Value>(&said.stdout) {
        Ok(value) if step.command() == "map" => format!("{:#}\n", merged(&value)),
        Ok(value) if value.is_object() || value.is_array() => format!("{value:#}\n"),
        _ => text(step, &said.stdout),
    };
    Said { stdout, stderr: without_node_numbers(&said.stderr), ..said.clone() }
}

/// `text` without the numbers that QEMU gives to images without a name, as in `#block168`: it counts what it opens.
fn without_node_numbers(text: &str) -> String {
    let mut parts = text.split("#block");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        all + "#block" + part.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

fn text(step: &Step, stdout: &str) -> String {
    if step.command() == "map" {
        // For people only what is no hole is listed; the maps for programs are compared.
        return String::new();
    }
    let lines = stdout.lines().map(without_progress);
    let is_rate = |line: &str| step.program == Program::Io && line.contains(" ops; ");
    let is_loose = |line: &str| {
        LOOSE_LINES.iter().any(|start| line.trim_start().starts_with(start))
            || line.contains("% allocated")
    };
    let kept = lines.filter(|line| !is_rate(line) && !is_loose(line) && !line.is_empty());
    kept.map(|line| format!("{}\n", without_dates(line))).collect()
}

/// `line` without progress, which has as many states as there are pieces of work.
fn without_progress(line: &str) -> &str {
    let last = line.rsplit('\r').next().unwrap_or(line);
    if last.trim_start().starts_with('(') && last.ends_with("/100%)") { "" } else { last }
}

/// `line` with zeros for the digits of dates, as in `2026-11-25 23:24:14`.
fn without_dates(line: &str) -> String {
    const FORM: &[u8] = b"0000-00-00 00:00:00";
    let is_date = |bytes: &[u8]| {
        bytes.iter().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            _ => byte == form,
        })
    };
    let at = line.as_bytes().windows(FORM.len()).position(is_date);
    at.map_or_else(
        || line.to_owned(),
        |at| format!("{}{}{}", &line[..at], "0000-00-00 00:00:00", &line[at + FORM.len()..]),
    )
}

fn scrubbed(mut value: Value) -> Value {
    match &mut value {
        Value::Object(object) => {
            LOOSE_KEYS.iter().for_each(|key| drop(object.remove(*key)));
            if object.get("format").is_some_and(|format| format == "qcow2") {
                // Of the file: its length.
                let children = object.get_mut("children").and_then(Value::as_array_mut);
                for child in children.into_iter().flatten().filter(|child| child["name"] == "file")
                {
                    child["info"]["virtual-size"] = Value::Null;
                }
            }
            object.values_mut().for_each(|inner| *inner = scrubbed(inner.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|inner| *inner = scrubbed(inner.take())),
        _ => {}
    }
    value
}

/// `map` as if all that has a place were data: which zeros of a raw file are holes is the host's and the copier's choice.
fn without_holes(mut map: Value) -> Value {
    for extent in map.as_array_mut().into_iter().flatten() {
        if extent.get("offset").is_some() && extent["present"] == true {
            extent["data"] = Value::Bool(true);
        }
    }
    map
}

/// The extents of a map without where they lie; those that then say the same are one.
fn merged(map: &Value) -> Value {
    let mut extents: Vec<Value> = Vec::new();
    for extent in map.as_array().into_iter().flatten() {
        let mut extent = extent.clone();
        // QEMU names places of nothing in clusters that are there in part.
        let has_place = extent.get("offset").is_some() && extent["present"] == true;
        if let Value::Object(fields) = &mut extent {
            if has_place && fields["data"] == true {
                // QEMU asks the host for holes inside of clusters where it takes the file for one that is laid out in
                // advance, by how much space it has. Neither is the same on both sides.
                fields.insert("zero".to_owned(), Value::Bool(false));
            }
            fields.remove("offset");
            fields.insert("has-place".to_owned(), Value::Bool(has_place));
        }
        let len = extent["length"].as_u64().unwrap_or(0);
        if let Some(last) = extents.last_mut() {
            let whole = last["length"].as_u64().unwrap_or(0) + len;
            let mut like_last = extent.clone();
            like_last["start"] = last["start"].clone();
            like_last["length"] = last["length"].clone();
            if like_last == *last {
                last["length"] = whole.into();
                continue;
            }
        }
        extents.push(extent);
    }
    Value::Array(extents)
}
