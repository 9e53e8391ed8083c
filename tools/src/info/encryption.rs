//! What an image says of its encryption, for people and programs alike: the same names, in QEMU's order.

use qcow::crypt::luks::{KeySlot, LuksHeader};
use qcow::format::header::{CryptMethod, Header};
use serde_json::{Map, Value};

/// Names and what they are set to.
#[derive(Debug, Default)]
pub struct Properties(Vec<(&'static str, Property)>);

#[derive(Debug)]
enum Property {
    One(Value),
    List(Vec<Properties>),
}

/// What the image with `header` says of its encryption, if it is encrypted; of LUKS with the LUKS header, where that is
/// understood.
pub fn properties(header: &Header, luks: Option<&LuksHeader>) -> Option<Properties> {
    let format = encryption_name(header.crypt_method)?;
    match luks {
        Some(luks) => Some(luks_properties(luks, Some(format))),
        None => {
            let mut found = Properties::default();
            found.put("format", format);
            Some(found)
        }
    }
}

/// What a LUKS header says; with the name of the format, where an image could have another one.
pub fn luks_properties(luks: &LuksHeader, format: Option<&str>) -> Properties {
    let mut found = Properties::default();
    let (cipher, hash) = (luks.cipher(), luks.hash());
    found.put("ivgen-alg", cipher.iv().name());
    found.put("detached-header", false);
    found.put("hash-alg", hash.to_string());
    found.put("cipher-alg", cipher.aes().to_string());
    found.put("uuid", luks.uuid());
    if let Some(hash) = cipher.iv().hash() {
        found.put("ivgen-hash-alg", hash.to_string());
    }
    if let Some(format) = format {
        found.put("format", format);
    }
    found.put("cipher-mode", cipher.mode().to_string());
    let slots = luks.slots().iter().map(slot).collect();
    found.0.push(("slots", Property::List(slots)));
    found.put("payload-offset", luks.payload_offset());
    found.put("master-key-iters", luks.master_key_iterations());
    found
}

fn slot(slot: &KeySlot) -> Properties {
    let mut found = Properties::default();
    found.put("active", slot.active);
    if slot.active {
        found.put("iters", slot.iterations);
    }
    found.put("key-offset", slot.offset());
    if slot.active {
        found.put("stripes", slot.stripes());
    }
    found
}

impl Properties {
    fn put(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push((name, Property::One(value.into())));
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let value = |property: &Property| match property {
            Property::One(value) => value.clone(),
            Property::List(list) => list.iter().map(Self::to_json).collect(),
        };
        let entries = self.0.iter().map(|(name, property)| ((*name).to_owned(), value(property)));
        Value::Object(entries.collect::<Map<_, _>>())
    }

    /// As lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, property) in &self.0 {
            let name = name.replace('-', " ");
            match property {
                Property::One(Value::String(text)) => lines.push(format!("{name}: {text}")),
                Property::One(value) => lines.push(format!("{name}: {value}")),
                Property::List(list) => {
                    lines.push(format!("{name}:"));
                    for (number, one) in list.iter().enumerate() {
                        lines.push(format!("    [{number}]:"));
                        lines.extend(one.lines().iter().map(|line| format!("        {line}")));
                    }
                }
            }
        }
        lines
    }
}

/// The name of an encryption format, if there is encryption.
pub fn encryption_name(method: CryptMethod) -> Option<&'static str> {
    match method {
        CryptMethod::None => None,
        CryptMethod::Aes => Some("aes"),
        CryptMethod::Luks => Some("luks"),
    }
}
