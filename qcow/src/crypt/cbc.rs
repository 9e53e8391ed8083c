//! CBC over whole sectors. Blocks of one sector are encrypted one after the other, as the mode demands, but those of a
//! page's sectors side by side; decryption has no such order.

use aes::cipher::array::typenum::U16;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};

use super::cipher::{BLOCKS_PER_SECTOR, Block, PAGE_BLOCKS};

/// The key.
pub(super) struct Cbc<C>(C);

impl<C> Cbc<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + KeyInit,
{
    pub fn new(key: &[u8]) -> Self {
        Self(C::new_from_slice(key).expect("a key of the cipher's length"))
    }

    /// Encrypts sectors with their initialization vectors, at most a page of them.
    pub fn encrypt(&self, ivs: &mut [Block], blocks: &mut [Block]) {
        let chain = ivs;
        for index in 0..BLOCKS_PER_SECTOR {
            for (sector, last) in chain.iter_mut().enumerate() {
                xor(last, &blocks[sector * BLOCKS_PER_SECTOR + index]);
            }
            self.0.encrypt_blocks(chain);
            for (sector, last) in chain.iter().enumerate() {
                blocks[sector * BLOCKS_PER_SECTOR + index] = *last;
            }
        }
    }

    /// Decrypts sectors with their initialization vectors, at most a page of them.
    pub fn decrypt(&self, ivs: &mut [Block], blocks: &mut [Block]) {
        let mut before = [Block::default(); PAGE_BLOCKS];
        for (sector, iv) in ivs.iter().enumerate() {
            let first = sector * BLOCKS_PER_SECTOR;
            let last = first + BLOCKS_PER_SECTOR - 1;
            before[first] = *iv;
            before[first + 1..=last].copy_from_slice(&blocks[first..last]);
        }
        self.0.decrypt_blocks(blocks);
        blocks.iter_mut().zip(&before).for_each(|(block, before)| xor(block, before));
    }
}

fn xor(block: &mut Block, with: &Block) {
    block.iter_mut().zip(with).for_each(|(byte, with)| *byte ^= with);
}
