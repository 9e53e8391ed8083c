//! XTS (IEEE 1619) over whole sectors, as many blocks at a time as the processor can take.
//!
//! The tweaks of a page's sectors are encrypted together and doubled from block to block beforehand; then all its blocks go
//! through the cipher in one call, which uses whatever wide instructions there are. One block after the other would be
//! twenty times slower.

use aes::cipher::array::Array;
use aes::cipher::array::typenum::U16;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};

use super::cipher::{BLOCKS_PER_SECTOR, Block, PAGE_BLOCKS};

/// What is added when a doubling overflows: x^128 = x^7 + x^2 + x + 1.
const OVERFLOW: u128 = 0x87;

/// The two keys.
pub(super) struct Xts<C> {
    data: C,
    tweak: C,
}

impl<C> Xts<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
{
    /// `key` is both keys, one behind the other.
    pub fn new(key: &[u8]) -> Self {
        let (data, tweak) = key.split_at(key.len() / 2);
        let new = |key| C::new_from_slice(key).expect("a key of the cipher's length");
        Self { data: new(data), tweak: new(tweak) }
    }

    /// Encrypts sectors with their initialization vectors, at most a page of them.
    pub fn encrypt(&self, ivs: &mut [Block], blocks: &mut [Block]) {
        self.apply(ivs, blocks, |blocks| self.data.encrypt_blocks(blocks));
    }

    /// Decrypts sectors with their initialization vectors, at most a page of them.
    pub fn decrypt(&self, ivs: &mut [Block], blocks: &mut [Block]) {
        self.apply(ivs, blocks, |blocks| self.data.decrypt_blocks(blocks));
    }

    fn apply(&self, ivs: &mut [Block], blocks: &mut [Block], transform: impl Fn(&mut [Block])) {
        let mut tweaks = [0_u128; PAGE_BLOCKS];
        let tweaks = &mut tweaks[..blocks.len()];
        self.tweak.encrypt_blocks(ivs);
        let sectors = blocks
            .chunks_exact_mut(BLOCKS_PER_SECTOR)
            .zip(tweaks.chunks_exact_mut(BLOCKS_PER_SECTOR));
        for ((blocks, tweaks), iv) in sectors.zip(&*ivs) {
            let mut tweak = u128::from_le_bytes(iv.0);
            for (block, place) in blocks.iter_mut().zip(tweaks) {
                add(block, tweak);
                *place = tweak;
                tweak = double(tweak);
            }
        }
        transform(blocks);
        blocks.iter_mut().zip(&*tweaks).for_each(|(block, tweak)| add(block, *tweak));
    }
}

/// `tweak` times x in GF(2^128).
fn double(tweak: u128) -> u128 {
    (tweak << 1) ^ ((tweak >> 127) * OVERFLOW)
}

fn add(block: &mut Block, tweak: u128) {
    *block = Array((u128::from_le_bytes(block.0) ^ tweak).to_le_bytes());
}
