//! Option lists: `-o name=value,name2=value2`, where `,,` stands for a comma in a value.

use crate::failure::{Failure, Outcome};
use crate::output::say;
use crate::size::{self, SizeError};

/// What an option's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// `on` or `off`.
    Bool,
    /// A whole number.
    Number,
    /// Bytes, with an optional suffix.
    Size,
}

/// One option that a list may hold.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Its name.
    pub name: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// One line for `-o help`.
    pub help: &'static str,
}

/// The value that an option was given, checked against its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Text(String),
    Number(u64),
}

/// The options that were given, each with its last value.
#[derive(Debug, Default)]
pub struct OptionValues {
    values: Vec<(&'static str, Value)>,
}

/// Whether a list asks for help instead of setting anything.
pub fn asks_for_help(lists: &[String]) -> bool {
    lists.iter().any(|list| split(list).iter().any(|item| item == "help" || item == "?"))
}

/// Lists `specs` on stdout, sorted by name.
pub fn print_help(specs: &[&[OptionSpec]]) {
    let mut specs: Vec<&OptionSpec> = specs.iter().copied().flatten().collect();
    specs.sort_by_key(|spec| spec.name);
    for spec in specs {
        let kind = match spec.kind {
            Kind::Text => "str",
            Kind::Bool => "bool (on/off)",
            Kind::Number => "num",
            Kind::Size => "size",
        };
        say!("  {:<22} - {}", format!("{}=<{kind}>", spec.name), spec.help);
    }
}

impl OptionValues {
    /// Reads `lists`, one after the other, against the options that exist.
    ///
    /// # Errors
    /// In QEMU's words, without the file's name.
    pub fn parse(lists: &[String], specs: &[&[OptionSpec]]) -> Outcome<Self> {
        let mut values = Self::default();
        for list in lists {
            for item in split(list) {
                let (name, text) = item.split_once('=').unwrap_or_else(|| flag(&item));
                let spec = specs.iter().copied().flatten().find(|spec| spec.name == name);
                let spec = spec.ok_or_else(|| invalid(name))?;
                values.put(spec.name, spec.check(text)?);
            }
        }
        Ok(values)
    }

    /// Sets `name` to `text`, over what was there.
    pub fn set_text(&mut self, name: &'static str, text: impl Into<String>) {
        self.put(name, Value::Text(text.into()));
    }

    /// Sets `name` to `number`, over what was there.
    pub fn set_number(&mut self, name: &'static str, number: u64) {
        self.put(name, Value::Number(number));
    }

    fn put(&mut self, name: &'static str, value: Value) {
        self.values.retain(|(other, _)| *other != name);
        self.values.push((name, value));
    }

    /// The text of an option of kind text or bool.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Text(text) => Some(text),
            Value::Number(_) => None,
        }
    }

    /// Whether an option of kind bool is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.text(name).and_then(parse_bool) == Some(true)
    }

    /// The value of an option of kind number or size.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Number(number) => Some(*number),
            Value::Text(_) => None,
        }
    }

    /// The value of any option, as text.
    pub fn shown(&self, name: &str) -> Option<String> {
        Some(match self.get(name)? {
            Value::Text(text) => text.replace(',', ",,"),
            Value::Number(number) => number.to_string(),
        })
    }

    /// The names of all options given.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.values.iter().map(|(name, _)| *name)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.values.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }
}

impl OptionSpec {
    /// The option `name`, of `kind`, with its line of help.
    pub const fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, kind, help }
    }

    fn check(&self, text: &str) -> Outcome<Value> {
        let name = self.name;
        let value = match self.kind {
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Bool => bool_value(name, text).map(|_| Value::Text(text.to_owned())),
            Kind::Number => number_value(name, text).map(Value::Number),
            Kind::Size => size_value(name, text).map(Value::Number),
        };
        value.map_err(Failure::new)
    }
}

/// The switch that the option `name` is set to by `text`; the error is in QEMU's words.
pub fn bool_value(name: &str, text: &str) -> Result<bool, String> {
    parse_bool(text).ok_or_else(|| format!("Parameter '{name}' expects 'on' or 'off'"))
}

/// The number that the option `name` is set to by `text`, written as C writes numbers; a negative one counts from 2^64 down.
pub fn number_value(name: &str, text: &str) -> Result<u64, String> {
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        None => (digits, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(format!("Parameter '{name}' expects a number"));
    }
    let number = u64::from_str_radix(digits, radix)
        .map_err(|_| format!("Value '{text}' is too large for parameter '{name}'"))?;
    Ok(if negative { number.wrapping_neg() } else { number })
}

/// The bytes that the option `name` is set to by `text`; the error is in QEMU's words.
pub fn size_value(name: &str, text: &str) -> Result<u64, String> {
    size::parse(text).map_err(|error| match error {
        SizeError::Malformed => format!(
            "Parameter '{name}' expects a non-negative number below 2^64\n\
             Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively."
        ),
        SizeError::OutOfRange => {
            format!("Value '{text}' is out of range for parameter '{name}'")
        }
    })
}

/// A list as it was given; one that begins with a comma or ends with a single one is refused, as by QEMU.
pub fn list(list: &str) -> Outcome<String> {
    let commas = list.len() - list.trim_end_matches(',').len();
    match list.is_empty() || list.starts_with(',') || commas % 2 == 1 {
        true => Err(Failure::new(format!("Invalid option list: {list}"))),
        false => Ok(list.to_owned()),
    }
}

/// The items between single commas, with doubled commas undone.
pub fn split(list: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut characters = list.chars().peekable();
    while let Some(c) = characters.next() {
        let last = items.len() - 1;
        if c != ',' {
            items[last].push(c);
        } else if characters.next_if_eq(&',').is_some() {
            items[last].push(',');
        } else {
            items.push(String::new());
        }
    }
    items
}

/// What a name alone means: a switch that is on, or off where `no` comes before its name.
fn flag(item: &str) -> (&str, &str) {
    item.strip_prefix("no").map_or((item, "on"), |name| (name, "off"))
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "on" | "yes" | "true" | "y" => Some(true),
        "off" | "no" | "false" | "n" => Some(false),
        _ => None,
    }
}

fn invalid(name: &str) -> Failure {
    Failure::new(format!("Invalid parameter '{name}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[OptionSpec] = &[
        OptionSpec::new("file", Kind::Text, ""),
        OptionSpec::new("lazy", Kind::Bool, ""),
        OptionSpec::new("size", Kind::Size, ""),
    ];

    #[test]
    fn values_keep_escaped_commas_and_the_last_one_counts() {
        let lists = ["file=a,,b,lazy".to_owned(), "size=1k,size=2k".to_owned()];
        let values = OptionValues::parse(&lists, &[SPECS]).unwrap();
        assert_eq!(values.text("file"), Some("a,b"));
        assert_eq!(values.shown("file").as_deref(), Some("a,,b"));
        assert!(values.is_on("lazy"));
        assert_eq!(values.number("size"), Some(2048));
        let values = OptionValues::parse(&["nolazy".to_owned()], &[SPECS]).unwrap();
        assert!(!values.is_on("lazy") && values.text("lazy").is_some());
    }

    #[test]
    fn wrong_lists_are_refused() {
        for list in ["size=x", "size=-1", "lazy=maybe", "nothing=1", "size", "nosize", "nothing"] {
            assert!(OptionValues::parse(&[list.to_owned()], &[SPECS]).is_err(), "{list}");
        }
        for list in ["", ",lazy", "lazy,", ",,", ",,lazy", "lazy,,,"] {
            assert!(super::list(list).is_err(), "{list:?}");
        }
        for list in ["lazy", "file=a,,", "lazy,,lazy"] {
            assert!(super::list(list).is_ok(), "{list:?}");
        }
    }
}
