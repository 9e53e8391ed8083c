//! What an authenticated image says about itself, and nobody else's images do.

use qcow::crypt::sealed_slots::SlotState;
use qcow::engine::SealedInfo;

/// Names and values, in the order in which they are told.
pub fn properties(info: &SealedInfo) -> Vec<(String, String)> {
    let mut told = vec![
        ("integrity".to_owned(), info.header.kind.to_string()),
        ("compression type".to_owned(), info.header.compression.name().to_owned()),
    ];
    match &info.state {
        Some(state) => {
            told.push(("root".to_owned(), state.root.to_string()));
            told.push(("closed".to_owned(), state.is_closed.to_string()));
        }
        None => told.push(("root".to_owned(), "known with the key only".to_owned())),
    }
    let slots = info.key_slots.iter().enumerate();
    told.extend(
        slots.filter_map(|(number, slot)| Some((format!("key slot {number}"), tell(slot)?))),
    );
    told
}

fn tell(slot: &SlotState) -> Option<String> {
    match slot {
        SlotState::Empty => None,
        SlotState::Damaged => Some("damaged".to_owned()),
        SlotState::Active(argon) => {
            let (memory, passes) = (argon.memory_kib, argon.passes);
            Some(format!("argon2id, {memory} KiB, {passes} passes"))
        }
    }
}
