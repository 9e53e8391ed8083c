//! `blkdebug`, QEMU's driver that lets requests fail on purpose: without rules for that it lets everything through, and the
//! node below stands in its place. With rules it is refused.

use super::options::Options;

/// Its name.
pub const DRIVER: &str = "blkdebug";

/// How requests are to be cut, which nobody sees of the disk.
const LIMITS: [&str; 8] = [
    "align",
    "max-transfer",
    "opt-write-zero",
    "max-write-zero",
    "opt-discard",
    "max-discard",
    "take-child-perms",
    "unshare-child-perms",
];

/// Options that count for the node below as well.
const COMMON: [&str; 8] = [
    "read-only",
    "auto-read-only",
    "force-share",
    "cache.direct",
    "cache.no-flush",
    "discard",
    "detect-zeroes",
    "node-name",
];

/// Makes `options` those of the node below, as long as they are a blkdebug's.
///
/// # Errors
/// It has rules, or options that are not known.
pub fn take_out(options: &mut Options) -> Result<(), String> {
    while options.get("driver") == Some(DRIVER) {
        options.take("driver");
        let mut below = options.take_child("image");
        for name in COMMON {
            let own = options.take_text(name);
            if let Some(value) = own.filter(|_| below.get(name).is_none()) {
                below.set(name, &value);
            }
        }
        for name in LIMITS {
            options.take(name);
            options.take_child(name);
        }
        if options.get("config") == Some("") {
            options.take("config");
        }
        match options.first_name() {
            None => *options = below,
            Some("image") => {
                return Err("the name of a node below blkdebug is not supported".to_owned());
            }
            Some(name) if is_rule(name) => {
                return Err(format!("driver '{DRIVER}' is not supported"));
            }
            Some(name) => {
                return Err(format!(
                    "Block protocol '{DRIVER}' doesn't support the option '{name}'"
                ));
            }
        }
    }
    Ok(())
}

fn is_rule(name: &str) -> bool {
    name == "config" || name.starts_with("inject-error.") || name.starts_with("set-state.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken_out(text: &str) -> Result<Options, String> {
        let mut options = Options::parse(text, None);
        take_out(&mut options).map(|()| options)
    }

    #[test]
    fn what_lies_below_keeps_what_was_said_of_both() {
        let text = "driver=blkdebug,align=4k,read-only=on,image.driver=qcow2,image.file.filename=a";
        let options = taken_out(text).expect("no rules");
        assert_eq!(options.get("driver"), Some("qcow2"));
        assert_eq!(options.get("file.filename"), Some("a"));
        assert_eq!(options.get("read-only"), Some("on"));
        assert_eq!(options.get("align"), None);
    }

    #[test]
    fn rules_are_refused() {
        for rule in ["inject-error.0.event=l2_load", "set-state.0.event=l2_load", "config=rules"] {
            let refused = taken_out(&format!("driver=blkdebug,{rule},image.filename=a"));
            assert_eq!(refused.err().as_deref(), Some("driver 'blkdebug' is not supported"));
        }
    }
}
