//! What follows `json:` in the name of an image.

use serde_json::Value as Json;

use super::options::{Options, Value};

/// The options that `text` sets; objects in objects become names with dots.
///
/// # Errors
/// In QEMU's words.
pub fn parse(text: &str) -> Result<Options, String> {
    let value = serde_json::from_str::<Json>(&double_quoted(text)).map_err(|error| {
        let reason = match text.trim().is_empty() {
            true => "Expecting a JSON value".to_owned(),
            false if error.is_eof() => "JSON parse error, premature EOI".to_owned(),
            false => format!("JSON parse error, {error}"),
        };
        format!("Could not parse the JSON options: {reason}")
    })?;
    let Json::Object(_) = value else { return Err("Invalid JSON object given".to_owned()) };
    let mut options = Options::default();
    flatten(String::new(), value, &mut options);
    Ok(options)
}

fn flatten(name: String, value: Json, options: &mut Options) {
    let inner = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        Json::Object(members) => {
            members.into_iter().for_each(|(key, value)| flatten(inner(&key), value, options));
        }
        Json::Array(items) => {
            let items = items.into_iter().enumerate();
            items.for_each(|(index, item)| flatten(inner(&index.to_string()), item, options));
        }
        Json::Null => options.put(name, Value::Null),
        Json::Bool(on) => options.set(&name, if on { "on" } else { "off" }),
        Json::Number(number) => options.set(&name, &number.to_string()),
        Json::String(text) => options.set(&name, &text),
    }
}

/// `text` with strings in single quotes, which QEMU takes too, put in double ones.
fn double_quoted(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (None, '\'' | '"') => {
                quote = Some(c);
                result.push('"');
            }
            (Some(open), c) if c == open => {
                quote = None;
                result.push('"');
            }
            (Some(_), '"') => result.push_str("\\\""),
            (Some(_), '\\') => match characters.next() {
                Some('\'') => result.push('\''),
                Some(escaped) => result.extend(['\\', escaped]),
                None => result.push('\\'),
            },
            (_, c) => result.push(c),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_quotes_make_strings_and_objects_make_dots() {
        let text =
            r#"{'driver':"qcow2", 'file': {"filename": 'a"\'b'}, "x": [true, 7], 'backing': null}"#;
        let mut options = parse(text).unwrap();
        assert_eq!(options.take_text("driver").as_deref(), Some("qcow2"));
        assert_eq!(options.take_text("file.filename").as_deref(), Some("a\"'b"));
        assert_eq!(options.take_text("x.0").as_deref(), Some("on"));
        assert_eq!(options.take_text("x.1").as_deref(), Some("7"));
        assert_eq!(options.take("backing"), Some(Value::Null));
        assert!(options.is_empty());
    }

    #[test]
    fn other_texts_are_refused() {
        let cases = [
            ("", "Could not parse the JSON options: Expecting a JSON value"),
            ("{", "Could not parse the JSON options: JSON parse error, premature EOI"),
            ("[]", "Invalid JSON object given"),
        ];
        for (text, message) in cases {
            assert_eq!(parse(text).unwrap_err(), message);
        }
    }
}
