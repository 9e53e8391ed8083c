//! Entries in files of their own (The Boot Loader Specification, type 1): `loader/entries/*.conf`.

use std::cmp::Ordering;

use super::file_system::FileSystem;
use super::found::Entry;
use super::grub::Variables;

/// The entry that is booted out of `directory`: the one that the environment names, or else the newest.
pub fn choose(files: &FileSystem, directory: &str, environment: &Variables) -> Option<Entry> {
    let names = files.names(directory).into_iter();
    let names = names.filter_map(|name| Some(name.strip_suffix(".conf")?.to_owned()));
    let entry = |name: String| {
        parse(&files.read_text(&format!("{directory}/{name}.conf"))?, &name, environment)
    };
    let mut entries: Vec<(String, Entry)> = names.filter_map(entry).collect();
    entries.sort_by(|(one, a), (other, b)| compare(one, other).then_with(|| compare(&a.id, &b.id)));
    let saved = environment.get("saved_entry");
    let named = saved.and_then(|id| entries.iter().position(|(_, entry)| entry.id == *id));
    let at = named.or_else(|| entries.len().checked_sub(1))?;
    Some(entries.swap_remove(at).1)
}

/// Version and entry that the file called `id` says; `None` if it names no kernel.
fn parse(text: &str, id: &str, environment: &Variables) -> Option<(String, Entry)> {
    let mut entry = Entry { id: id.to_owned(), ..Entry::default() };
    let mut version = String::new();
    let mut options: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let Some((key, value)) = line.split_once(char::is_whitespace) else { continue };
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut entry.title),
            "version" => value.clone_into(&mut version),
            "linux" => value.clone_into(&mut entry.kernel),
            "initrd" => {
                let parts = value.split_whitespace().filter(|part| !part.starts_with('$'));
                entry.initramfs.extend(parts.map(str::to_owned));
            }
            "options" => options
                .extend(value.split_whitespace().filter_map(|word| expand(word, environment))),
            _ => {}
        }
    }
    entry.command_line = options.join(" ");
    (!entry.kernel.is_empty()).then_some((version, entry))
}

/// A word, or what the variable holds that it is; `None` if that holds nothing.
fn expand(word: &str, environment: &Variables) -> Option<String> {
    match word.strip_prefix('$') {
        Some(name) => environment.get(name).cloned(),
        None => Some(word.to_owned()),
    }
}

/// Orders versions: numbers by value, all else by letters.
pub fn compare(one: &str, other: &str) -> Ordering {
    let (mut a, mut b) = (one, other);
    loop {
        let (x, y) = (next_part(&mut a), next_part(&mut b));
        let order = match (number(x), number(y)) {
            (Some(x), Some(y)) => x.cmp(&y),
            _ => x.cmp(y),
        };
        if order != Ordering::Equal || x.is_empty() {
            return order;
        }
    }
}

fn number(part: &str) -> Option<u128> {
    part.parse().ok()
}

/// Takes digits, or what are none, from the start of `text`.
fn next_part<'a>(text: &mut &'a str) -> &'a str {
    let is_digit = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != is_digit).unwrap_or(text.len());
    let (part, rest) = text.split_at(end);
    *text = rest;
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let mut versions = ["6.12.0-10", "6.2.0-300", "6.12.0-9", "5.14", "6.12.0-rc1"];
        versions.sort_by(|a, b| compare(a, b));
        assert_eq!(versions, ["5.14", "6.2.0-300", "6.12.0-9", "6.12.0-10", "6.12.0-rc1"]);
        assert_eq!(compare("", ""), Ordering::Equal);
    }

    #[test]
    fn an_entry_of_fedora() {
        let text = "title Fedora Linux (6.9.7)\nversion 6.9.7-200\nlinux /vmlinuz-6.9.7\n\
                    initrd /initramfs-6.9.7.img $tuned_initrd\noptions $kernelopts quiet $tuned_params\n";
        let environment = Variables::from([("kernelopts".to_owned(), "root=UUID=7 ro".to_owned())]);
        let (version, entry) = parse(text, "abc-6.9.7", &environment).expect("an entry");
        assert_eq!(version, "6.9.7-200");
        assert_eq!(entry.command_line, "root=UUID=7 ro quiet");
        assert_eq!(entry.initramfs, ["/initramfs-6.9.7.img"]);
        assert_eq!(parse("title x", "x", &environment), None);
    }
}
