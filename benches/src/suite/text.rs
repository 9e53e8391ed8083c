//! Data that compresses about as well as a text does.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};

use crate::load::rng::Rng;

const WORD_COUNT: u64 = 1024;

/// Fills a new file with `size` bytes of random words, some of which are much more frequent than
/// others.
pub fn write(path: &Path, size: u64) -> Result<()> {
    let name = || path.display().to_string();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).with_context(name)?);
    let mut rng = Rng::new(1, 0);
    let words: Vec<_> = (0..WORD_COUNT).map(|_| word(&mut rng)).collect();
    let mut left = size;
    while left > 0 {
        let bound = rng.below(WORD_COUNT) + 1;
        let word = &words[rng.below(bound) as usize];
        let len = left.min(word.len() as u64);
        file.write_all(&word[..len as usize]).with_context(name)?;
        left -= len;
    }
    file.flush().with_context(name)
}

/// Three to ten letters and a space.
fn word(rng: &mut Rng) -> Vec<u8> {
    let letters = 3 + rng.below(8);
    let mut word: Vec<_> = (0..letters).map(|_| b'a' + rng.below(26) as u8).collect();
    word.push(b' ');
    word
}
