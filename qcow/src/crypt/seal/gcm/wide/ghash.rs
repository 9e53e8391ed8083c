//! GHASH, computed as POLYVAL (RFC 8452, appendix A): of blocks with their bytes reversed, by a key that has been multiplied by
//! x once, so that no product has to be shifted. The products of a stride with the key's powers 16 to 1 are added up before
//! they are reduced.

use std::arch::x86_64::*;

use super::vectors::*;

/// x^128 = x^127 + x^126 + x^121 + 1, without the 1, in the upper half.
const POLYNOMIAL: u64 = 0xc2 << 56;

/// The key to the power of 16, 15, .. 1.
#[repr(align(64))]
pub struct Powers(pub [[u128; VECTOR_BLOCKS]; VECTORS]);

impl Powers {
    pub const EMPTY: Self = Self([[0; VECTOR_BLOCKS]; VECTORS]);

    /// Those of the block `key`.
    #[inline]
    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    pub fn fill(&mut self, key: [u8; BLOCK_LEN]) {
        let powers = self.0.as_flattened_mut();
        powers[STRIDE_BLOCKS - 1] = times_x(u128::from_be_bytes(key));
        // Each from the one of half as many, or nearly: none waits for all before it.
        for power in 2..=STRIDE_BLOCKS {
            let (a, b) =
                (powers[STRIDE_BLOCKS - power / 2], powers[STRIDE_BLOCKS - power.div_ceil(2)]);
            powers[STRIDE_BLOCKS - power] = number(multiply(vector(a), vector(b)));
        }
    }

    /// GHASH goes on from `hash` with `bytes` and zeros up to the end of their last block.
    #[inline]
    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    pub fn hash_bytes(&self, hash: __m128i, bytes: &[u8]) -> __m128i {
        let mut hash = hash;
        for part in bytes.chunks(STRIDE_LEN) {
            // Zeros in front add nothing: what is to be multiplied by the highest power comes first, wherever that is.
            let mut stride = [0; STRIDE_LEN];
            let start = STRIDE_LEN - part.len().next_multiple_of(BLOCK_LEN);
            stride[start..][..part.len()].copy_from_slice(part);
            let first: &mut [u8; BLOCK_LEN] =
                stride[start..].first_chunk_mut().expect("a block at least");
            *first = (u128::from_be_bytes(*first) ^ number(hash)).to_be_bytes();
            let vectors: &Stride = stride.as_chunks().0.first_chunk().expect("a stride");
            let mut blocks = [_mm512_setzero_si512(); VECTORS];
            for (blocks, vector) in blocks.iter_mut().zip(vectors) {
                *blocks = reversed(load(vector));
            }
            hash = self.hash(_mm_setzero_si128(), blocks);
        }
        hash
    }

    /// GHASH goes on from `hash` with a stride of blocks whose bytes have been reversed.
    #[inline]
    #[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
    pub fn hash(&self, hash: __m128i, mut blocks: [__m512i; VECTORS]) -> __m128i {
        blocks[0] = _mm512_xor_si512(blocks[0], _mm512_zextsi128_si512(hash));
        let zero = _mm512_setzero_si512();
        let [mut low, mut middle, mut high] = [zero; 3];
        for (blocks, powers) in blocks.into_iter().zip(&self.0) {
            let powers = load_numbers(powers);
            low = _mm512_xor_si512(low, _mm512_clmulepi64_epi128::<0x00>(blocks, powers));
            high = _mm512_xor_si512(high, _mm512_clmulepi64_epi128::<0x11>(blocks, powers));
            let crossed = [
                _mm512_clmulepi64_epi128::<0x01>(blocks, powers),
                _mm512_clmulepi64_epi128::<0x10>(blocks, powers),
            ];
            middle = _mm512_ternarylogic_epi64::<0x96>(middle, crossed[0], crossed[1]);
        }
        reduce(sum(low), sum(middle), sum(high))
    }
}

/// `key` times x, in the field as POLYVAL has it.
fn times_x(key: u128) -> u128 {
    (key << 1) ^ ((key >> 127) * (u128::from(POLYNOMIAL) << 64 | 1))
}

/// The product of two, reduced.
#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
fn multiply(a: __m128i, b: __m128i) -> __m128i {
    let crossed = [_mm_clmulepi64_si128::<0x01>(a, b), _mm_clmulepi64_si128::<0x10>(a, b)];
    reduce(
        _mm_clmulepi64_si128::<0x00>(a, b),
        _mm_xor_si128(crossed[0], crossed[1]),
        _mm_clmulepi64_si128::<0x11>(a, b),
    )
}

/// A product of 256 bits, divided by x^128 and reduced: 64 bits from below at a time.
#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
fn reduce(low: __m128i, middle: __m128i, high: __m128i) -> __m128i {
    let polynomial = _mm_set_epi64x(0, POLYNOMIAL.cast_signed());
    let mut low = _mm_xor_si128(low, _mm_slli_si128::<8>(middle));
    let high = _mm_xor_si128(high, _mm_srli_si128::<8>(middle));
    for _ in 0..2 {
        let swapped = _mm_shuffle_epi32::<0x4e>(low);
        low = _mm_xor_si128(swapped, _mm_clmulepi64_si128::<0x00>(low, polynomial));
    }
    _mm_xor_si128(high, low)
}

/// The sum of a vector's four blocks.
#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
fn sum(blocks: __m512i) -> __m128i {
    let upper = _mm512_extracti64x4_epi64::<1>(blocks);
    let two = _mm256_xor_si256(_mm512_castsi512_si256(blocks), upper);
    _mm_xor_si128(_mm256_castsi256_si128(two), _mm256_extracti128_si256::<1>(two))
}
