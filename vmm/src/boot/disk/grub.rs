//! GRUB's menu (`grub.cfg`), as far as it says what is booted if nobody touches a key.
//!
//! It is a script. What `grub-mkconfig` writes is understood without running it: entries in menus, which may lie in others,
//! variables that are set, and the environment block. Conditions are not: of several assignments the last one counts that
//! yields something.

use std::collections::BTreeMap;

use super::found::Entry;

/// Most entries, and how deep menus may lie in each other.
const ENTRY_COUNT_MAX: usize = 512;
const DEPTH_MAX: usize = 8;

/// GRUB's variables.
pub type Variables = BTreeMap<String, String>;

/// The variables of an environment block (`grubenv`).
pub fn parse_environment(text: &str) -> Variables {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// A menu: what it offers, and what it chooses.
#[derive(Debug, Default)]
pub struct Menu {
    items: Vec<Item>,
    /// What `default` was set to at last.
    default: String,
    /// Whether it takes its entries from files of their own.
    pub has_bls: bool,
}

#[derive(Debug)]
struct Item {
    title: String,
    id: String,
    /// In a submenu.
    items: Vec<Item>,
    entry: Entry,
}

impl Menu {
    /// What `text` says, where `variables` are set already.
    pub fn parse(text: &str, mut variables: Variables) -> Self {
        let mut menu = Self::default();
        let mut open: Vec<Item> = Vec::new();
        // Blocks of functions and conditions have braces or not; only those of entries matter.
        let mut others = 0_usize;
        let mut count = 0;
        for line in joined_lines(text) {
            let words = split(&line, &variables);
            let Some(command) = words.first().map(String::as_str) else { continue };
            let opens = words.last().is_some_and(|word| word == "{");
            match command {
                "menuentry" | "submenu" if opens => {
                    count += 1;
                    if open.len() >= DEPTH_MAX || count > ENTRY_COUNT_MAX {
                        break;
                    }
                    open.push(Item::new(&words));
                }
                "}" if others > 0 => others -= 1,
                "}" => {
                    if let Some(item) = open.pop() {
                        let into = open.last_mut().map_or(&mut menu.items, |item| &mut item.items);
                        into.push(item);
                    }
                }
                _ if opens => others += 1,
                "set" => set(&words, &mut variables, &mut menu.default),
                "blscfg" => menu.has_bls = true,
                _ => {
                    if let Some(item) = open.last_mut() {
                        item.take(command, &words[1..]);
                    }
                }
            }
        }
        menu
    }

    /// The entry that is booted.
    pub fn chosen(self) -> Option<Entry> {
        let Self { items, default, .. } = self;
        let chosen = choose(&items, &default).or_else(|| first(&items));
        chosen.cloned()
    }
}

impl Item {
    fn new(words: &[String]) -> Self {
        let title = words.get(1).cloned().unwrap_or_default();
        let id_at = words.iter().position(|word| word == "--id" || word == "$menuentry_id_option");
        let id = id_at.and_then(|at| words.get(at + 1)).cloned().unwrap_or_default();
        let entry = Entry { title: title.clone(), id: id.clone(), ..Entry::default() };
        Self { title, id, items: Vec::new(), entry }
    }

    fn take(&mut self, command: &str, words: &[String]) {
        match command {
            "linux" | "linux16" | "linuxefi" => {
                if let Some((kernel, rest)) = words.split_first() {
                    self.entry.kernel = without_device(kernel);
                    let given = rest.iter().filter(|word| !word.is_empty());
                    self.entry.command_line = given.cloned().collect::<Vec<_>>().join(" ");
                }
            }
            "initrd" | "initrd16" | "initrdefi" => {
                self.entry.initramfs = words.iter().map(|word| without_device(word)).collect();
            }
            _ => {}
        }
    }

    fn is_called(&self, name: &str) -> bool {
        !name.is_empty() && (self.id == name || self.title == name)
    }
}

/// `set NAME=VALUE`.
fn set(words: &[String], variables: &mut Variables, default: &mut String) {
    let Some((name, value)) = words.get(1).and_then(|word| word.split_once('=')) else { return };
    // The other branch of a condition would have set something else.
    if value.is_empty() {
        return;
    }
    if name == "default" {
        value.clone_into(default);
    }
    variables.insert(name.to_owned(), value.to_owned());
}

/// The entry that `default` names: numbers, titles or ids, one for each menu on the way.
fn choose<'a>(items: &'a [Item], default: &str) -> Option<&'a Entry> {
    let (name, rest) = default.split_once('>').unwrap_or((default, ""));
    let by_number = name.parse().ok().and_then(|number: usize| items.get(number));
    let item = by_number.or_else(|| items.iter().find(|item| item.is_called(name)))?;
    if item.items.is_empty() {
        bootable(item)
    } else {
        choose(&item.items, rest).or_else(|| first(&item.items))
    }
}

fn first(items: &[Item]) -> Option<&Entry> {
    items.iter().find_map(|item| bootable(item).or_else(|| first(&item.items)))
}

fn bootable(item: &Item) -> Option<&Entry> {
    (!item.entry.kernel.is_empty()).then_some(&item.entry)
}

/// `($root)/vmlinuz` and `(hd0,gpt1)/vmlinuz` are `/vmlinuz`.
fn without_device(path: &str) -> String {
    let rest = path.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    rest.map_or(path, |(_, rest)| rest).to_owned()
}

/// Lines, with those joined that end in a backslash.
fn joined_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut whole = String::new();
    for line in text.lines() {
        if let Some(begin) = line.strip_suffix('\\') {
            whole.push_str(begin);
            continue;
        }
        whole.push_str(line);
        lines.push(std::mem::take(&mut whole));
    }
    lines
}

/// The words of a line as a shell has them, with variables replaced. `$menuentry_id_option` stays: it is a marker.
fn split(line: &str, variables: &Variables) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut in_word = false;
    let mut quote = None;
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, quote) {
            ('\'', None) | ('"', None) => {
                quote = Some(c);
                in_word = true;
            }
            (c, Some(q)) if c == q => quote = None,
            ('\\', None | Some('"')) => word.extend(rest.next()),
            ('$', None | Some('"')) => {
                in_word = true;
                let name = variable_name(&mut rest);
                match variables.get(&name) {
                    Some(value) => word.push_str(value),
                    None if name == "menuentry_id_option" => word.push_str("$menuentry_id_option"),
                    None => {}
                }
            }
            ('#', None) if !in_word => break,
            (' ' | '\t' | ';', None) => {
                if std::mem::take(&mut in_word) {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, _) => {
                word.push(c);
                in_word = true;
            }
        }
    }
    if in_word {
        words.push(word);
    }
    words
}

fn variable_name(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut name = String::new();
    if rest.next_if_eq(&'{').is_some() {
        name.extend(std::iter::from_fn(|| rest.next_if(|c| *c != '}')));
        rest.next();
    } else {
        name.extend(std::iter::from_fn(|| rest.next_if(|c| c.is_alphanumeric() || *c == '_')));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `grub-mkconfig` writes it, in short.
    const MENU: &str = r#"
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
else
   set default="${saved_entry}"
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    save_env saved_entry
  fi
}
menuentry 'A Linux' --class gnu-linux $menuentry_id_option 'simple-1' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; fi
	search --no-floppy --fs-uuid --set=root 1234
	echo	'Loading ...'
	linux	/boot/vmlinuz-6.12 root=UUID=1234 ro  quiet ${vt_handoff}
	initrd	/boot/ucode.img /boot/initrd.img-6.12
}
submenu 'More' $menuentry_id_option 'more-1' {
	menuentry 'A Linux, 6.12' $menuentry_id_option 'six-twelve' {
		linux ($root)/boot/vmlinuz-6.12 root=UUID=1234 ro
	}
	menuentry "A Linux, 6.1 \"old\"" --id six-one {
		linux /boot/vmlinuz-6.1 root=UUID=1234 ro \
			single
		initrd /boot/initrd.img-6.1
	}
}
"#;

    fn chosen(environment: &str) -> Entry {
        Menu::parse(MENU, parse_environment(environment)).chosen().expect("an entry")
    }

    #[test]
    fn the_first_entry_if_nothing_is_chosen() {
        let entry = chosen("");
        assert_eq!(
            (entry.title.as_str(), entry.kernel.as_str()),
            ("A Linux", "/boot/vmlinuz-6.12")
        );
        assert_eq!(entry.initramfs, ["/boot/ucode.img", "/boot/initrd.img-6.12"]);
        assert_eq!(entry.command_line, "root=UUID=1234 ro quiet");
    }

    #[test]
    fn entries_are_chosen_by_number_title_and_id() {
        assert_eq!(chosen("saved_entry=1>0").kernel, "/boot/vmlinuz-6.12");
        for name in ["1>1", "more-1>six-one", "More>A Linux, 6.1 \"old\""] {
            let entry = chosen(&format!("saved_entry={name}"));
            assert_eq!(entry.command_line, "root=UUID=1234 ro single", "{name}");
        }
        assert_eq!(chosen("saved_entry=gone").kernel, "/boot/vmlinuz-6.12");
        assert_eq!(chosen("saved_entry=more-1").id, "six-twelve", "a submenu's first");
    }

    #[test]
    fn any_text_is_parsed() {
        let mut random = qcow::disk::sim::Random::new(3);
        let pieces = [
            "menuentry",
            "submenu",
            " {",
            "\n}",
            "\n",
            "'",
            "\"",
            "$",
            "${",
            "\\",
            "linux ",
            "set default=1>",
        ];
        for _ in 0..3000 {
            let piece = |_| pieces[random.below(pieces.len() as u64) as usize];
            let text: String = (0..60).map(piece).collect();
            let _ = Menu::parse(&text, Variables::new()).chosen();
        }
    }
}
