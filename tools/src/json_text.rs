//! JSON as `qemu-img` writes it, down to the order of the keys: scripts compare it as text.
//!
//! QEMU keeps the members of an object in 512 lists, by a hash of their names, and writes list after list.

use serde_json::{Map, Value};

/// Lists that QEMU keeps the members of an object in.
const LISTS: u32 = 512;
const INDENT: &str = "    ";

/// `value` over several lines, without a newline at the end.
pub fn pretty(value: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, value, 0);
    text
}

fn write_value(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(members) => {
            text.push('{');
            for (number, (name, member)) in in_order(members).into_iter().enumerate() {
                begin_item(text, number, depth + 1);
                write_string(text, name);
                text.push_str(": ");
                write_value(text, member, depth + 1);
            }
            begin_line(text, depth);
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (number, item) in items.iter().enumerate() {
                begin_item(text, number, depth + 1);
                write_value(text, item, depth + 1);
            }
            begin_line(text, depth);
            text.push(']');
        }
        Value::String(string) => write_string(text, string),
        Value::Null | Value::Bool(_) | Value::Number(_) => text.push_str(&value.to_string()),
    }
}

fn begin_item(text: &mut String, number: usize, depth: usize) {
    if number > 0 {
        text.push(',');
    }
    begin_line(text, depth);
}

fn begin_line(text: &mut String, depth: usize) {
    text.push('\n');
    text.push_str(&INDENT.repeat(depth));
}

/// The members in QEMU's order. Of two in one list the one that QEMU puts in later comes first, which is the one with the
/// later name among those that there are.
fn in_order(members: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut members: Vec<_> = members.iter().rev().collect();
    members.sort_by_key(|(name, _)| hash(name) % LISTS);
    members
}

/// The hash of gdbm, with which QEMU spreads names over its lists.
fn hash(name: &str) -> u32 {
    let start = 0x238f_13af_u32.wrapping_mul(name.len() as u32);
    let sum = name.bytes().zip(0_u32..).fold(start, |sum, (byte, position)| {
        sum.wrapping_add(u32::from(byte) << (position * 5 % 24))
    });
    sum.wrapping_mul(1_103_515_243).wrapping_add(12345)
}

/// A string in quotes, in ASCII.
fn write_string(text: &mut String, string: &str) {
    text.push('"');
    for character in string.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            ' '..='~' => text.push(character),
            _ => {
                let units = character.encode_utf16(&mut [0; 2]).to_vec();
                units.iter().for_each(|unit| text.push_str(&format!("\\u{unit:04X}")));
            }
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::pretty;

    #[test]
    fn strings_are_ascii_and_empty_lists_take_two_lines() {
        let text = pretty(&json!({ "name": "a\"\u{e4}\u{1f600}\n", "children": [] }));
        let expected =
            "{\n    \"name\": \"a\\\"\\u00E4\\uD83D\\uDE00\\n\",\n    \"children\": [\n    ]\n}";
        assert_eq!(text, expected);
    }
}
