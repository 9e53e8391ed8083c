//! Options of qcow2 nodes. Most are about caches and caution, of which this program has its own; they are checked and
//! then have no effect.

use super::node::Encrypt;
use super::options::Options;
use crate::keyval;

/// What an overlap check can be set to.
const TEMPLATES: [&str; 4] = ["none", "constant", "cached", "all"];
/// Bytes of a cache that nobody can mean.
const TOO_BIG: u64 = 1 << 47;
/// Parts of an image for which overlaps are looked for.
const PARTS: [&str; 9] = [
    "main-header",
    "active-l1",
    "active-l2",
    "refcount-table",
    "refcount-block",
    "snapshot-table",
    "inactive-l1",
    "inactive-l2",
    "bitmap-directory",
];

/// Takes the options out that are known, and refuses wrong values in QEMU's words. Returns the length of an entry of the L2
/// cache, which can only be judged with the image's clusters at hand, and what is said about the encryption.
pub fn check(options: &mut Options) -> Result<(Option<u64>, Encrypt), String> {
    for name in [
        "lazy-refcounts",
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "discard-no-unref",
    ] {
        check_switch(options, name)?;
    }
    let entry_len = check_caches(options)?;
    check_overlaps(options)?;
    let mut encrypt = options.take_child("encrypt");
    let (format, key_secret) = (encrypt.take_text("format"), encrypt.take_text("key-secret"));
    match encrypt.first_name() {
        None => Ok((entry_len, Encrypt { format, key_secret, is_of_file: false })),
        Some(name) => Err(format!("Parameter '{name}' is unexpected")),
    }
}

fn check_switch(options: &mut Options, name: &str) -> Result<(), String> {
    let text = options.take_text(name);
    text.map_or(Ok(()), |text| keyval::bool_value(name, &text).map(drop))
}

fn check_caches(options: &mut Options) -> Result<Option<u64>, String> {
    let mut size = |name| {
        let text = options.take_text(name);
        text.map(|text| keyval::size_value(name, &text)).transpose()
    };
    let all = size("cache-size")?;
    let (l2, refcounts) = (size("l2-cache-size")?, size("refcount-cache-size")?);
    let entry = size("l2-cache-entry-size")?;
    if all.is_some() && l2.is_some() && refcounts.is_some() {
        let message =
            "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time";
        return Err(message.to_owned());
    }
    let exceeds = |part: Option<u64>| all.is_some_and(|all| part.is_some_and(|part| part > all));
    if exceeds(l2) {
        return Err("l2-cache-size may not exceed cache-size".to_owned());
    }
    if exceeds(refcounts) {
        return Err("refcount-cache-size may not exceed cache-size".to_owned());
    }
    if refcounts.is_some_and(|len| len >= TOO_BIG) {
        return Err("Refcount cache size too big".to_owned());
    }
    let interval = options.take_text("cache-clean-interval");
    let interval = interval.map(|text| keyval::number_value("cache-clean-interval", &text));
    match interval.transpose()? {
        Some(seconds) if seconds > u64::from(u32::MAX) => {
            Err("Cache clean interval too big".to_owned())
        }
        _ => Ok(entry),
    }
}

fn check_overlaps(options: &mut Options) -> Result<(), String> {
    let plain = options.take_text("overlap-check");
    let mut parts = options.take_child("overlap-check");
    let template = parts.take_text("template");
    if let (Some(plain), Some(template)) = (&plain, &template)
        && plain != template
    {
        return Err(format!(
            "Conflicting values for qcow2 options 'overlap-check' ('{plain}') and 'overlap-check.template' ('{template}')"
        ));
    }
    if let Some(value) = plain.or(template).filter(|value| !TEMPLATES.contains(&value.as_str())) {
        return Err(format!(
            "Unsupported value '{value}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, constant, cached, all"
        ));
    }
    PARTS.iter().try_for_each(|part| check_switch(&mut parts, part))?;
    match parts.first_name() {
        None => Ok(()),
        Some(name) => {
            Err(format!("Block format 'qcow2' does not support the option 'overlap-check.{name}'"))
        }
    }
}
