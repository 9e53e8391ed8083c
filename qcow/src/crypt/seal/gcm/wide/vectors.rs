//! Vectors of one and of four blocks: in and out of memory, and numbers.

#![expect(unsafe_code, reason = "vectors are loaded and stored by address")]

use std::arch::x86_64::*;

/// Bytes of a block, and of a vector of four.
pub const BLOCK_LEN: usize = 16;
pub const VECTOR_LEN: usize = 64;
pub const VECTOR_BLOCKS: usize = VECTOR_LEN / BLOCK_LEN;

/// Vectors that are computed side by side.
pub const VECTORS: usize = 4;
pub const STRIDE_LEN: usize = VECTORS * VECTOR_LEN;
pub const STRIDE_BLOCKS: usize = VECTORS * VECTOR_BLOCKS;

/// So many bytes, by vector.
pub type Stride = [[u8; VECTOR_LEN]; VECTORS];

#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
pub fn vector(number: u128) -> __m128i {
    _mm_set_epi64x((number >> 64) as i64, number as i64)
}

/// `number`, in four places.
#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
pub fn broadcast(number: u128) -> __m512i {
    _mm512_broadcast_i32x4(vector(number))
}

#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
pub fn number(vector: __m128i) -> u128 {
    let [low, high] = [_mm_cvtsi128_si64(vector), _mm_extract_epi64::<1>(vector)];
    u128::from(high.cast_unsigned()) << 64 | u128::from(low.cast_unsigned())
}

#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
pub fn load(bytes: &[u8; VECTOR_LEN]) -> __m512i {
    // SAFETY: needed to read a vector. It is as long as the array, and needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
pub fn load_numbers(numbers: &[u128; VECTOR_BLOCKS]) -> __m512i {
    // SAFETY: as in `load`. The machine is little-endian: in memory, too, a number's lower half comes first.
    unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
pub fn store(bytes: &mut [u8; VECTOR_LEN], vector: __m512i) {
    // SAFETY: needed to write a vector. It is as long as the array, and needs no alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) }
}

/// Four blocks, each with its bytes in the other order.
#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
pub fn reversed(blocks: __m512i) -> __m512i {
    _mm512_shuffle_epi8(
        blocks,
        _mm512_set4_epi32(0x0001_0203, 0x0405_0607, 0x0809_0a0b, 0x0c0d_0e0f),
    )
}

/// Four blocks, each with its last four bytes in the other order.
#[inline]
#[target_feature(enable = "avx512bw,vaes,vpclmulqdq")]
pub fn with_counters_reversed(blocks: __m512i) -> __m512i {
    _mm512_shuffle_epi8(
        blocks,
        _mm512_set4_epi32(0x0c0d_0e0f, 0x0b0a_0908, 0x0706_0504, 0x0302_0100),
    )
}
