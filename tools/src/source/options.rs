//! Options of block nodes: names with dots, such as `file.filename`, and their values.

use crate::failure::tell;
use crate::keyval::split;

/// Options in the order in which they were given; each name once.
#[derive(Clone, Debug, Default)]
pub struct Options {
    entries: Vec<(String, Value)>,
}

/// What an option is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    /// JSON's `null`.
    Null,
}

impl Options {
    /// Reads `name=value,name=value`, where `,,` stands for a comma in a value. The first item may be a value alone: that of
    /// the option `implied`.
    pub fn parse(text: &str, implied: Option<&str>) -> Self {
        let mut options = Self::default();
        for (number, item) in split(text).into_iter().enumerate() {
            match (item.split_once('='), implied) {
                (Some((name, value)), _) => options.set(name, value),
                (None, Some(implied)) if number == 0 => options.set(implied, &item),
                (None, _) if item.is_empty() => {}
                (None, _) => options.set_switch(&item),
            }
        }
        options
    }

    /// Reads a JSON object; objects in objects become names with dots.
    ///
    /// # Errors
    /// In QEMU's words.
    pub fn from_json(text: &str) -> Result<Self, String> {
        super::json::parse(text)
    }

    /// A name without a value.
    fn set_switch(&mut self, item: &str) {
        let (name, value) = match item.strip_prefix("no").filter(|rest| !rest.is_empty()) {
            Some(name) if !item.starts_with("node") => (name, "off"),
            _ => (item, "on"),
        };
        tell(&format!(
            "warning: short-form boolean option '{item}' deprecated\nPlease use {name}={value} instead"
        ));
        self.set(name, value);
    }

    /// Sets `name`, over what was there.
    pub fn set(&mut self, name: &str, value: &str) {
        self.put(name.to_owned(), Value::Text(value.to_owned()));
    }

    /// Sets `name`, over what was there.
    pub fn put(&mut self, name: String, value: Value) {
        self.entries.retain(|(other, _)| *other != name);
        self.entries.push((name, value));
    }

    /// Adds what `others` has and these options do not.
    pub fn add_missing(&mut self, others: Self) {
        for (name, value) in others.entries {
            if !self.entries.iter().any(|(other, _)| *other == name) {
                self.entries.push((name, value));
            }
        }
    }

    /// Sets all that `others` sets.
    pub fn add(&mut self, others: Self) {
        others.entries.into_iter().for_each(|(name, value)| self.put(name, value));
    }

    /// The text of the option `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.entries.iter().find(|(other, _)| other == name);
        found.and_then(|(_, value)| match value {
            Value::Text(text) => Some(text.as_str()),
            Value::Null => None,
        })
    }

    /// Takes the option `name` out.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        let index = self.entries.iter().position(|(other, _)| other == name)?;
        Some(self.entries.remove(index).1)
    }

    /// Takes the text of the option `name` out.
    pub fn take_text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::Text(text) => Some(text),
            Value::Null => None,
        }
    }

    /// Takes all options out whose names begin with `child` and a dot, which the result's names are without.
    pub fn take_child(&mut self, child: &str) -> Self {
        let mut found = Self::default();
        self.entries.retain(|(name, value)| {
            match name.strip_prefix(child).and_then(|rest| rest.strip_prefix('.')) {
                Some(rest) => {
                    found.entries.push((rest.to_owned(), value.clone()));
                    false
                }
                None => true,
            }
        });
        found
    }

    /// The first option's name.
    pub fn first_name(&self) -> Option<&str> {
        self.entries.first().map(|(name, _)| name.as_str())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_taken_apart() {
        let mut options =
            Options::parse("a,,b,driver=raw,file.filename=x=1,driver=qcow2", Some("file"));
        assert_eq!(options.take_text("file").as_deref(), Some("a,b"));
        assert_eq!(options.take_text("driver").as_deref(), Some("qcow2"));
        let mut file = options.take_child("file");
        assert_eq!(file.take_text("filename").as_deref(), Some("x=1"));
        assert!(file.is_empty() && options.is_empty());
    }
}
