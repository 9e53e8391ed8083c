//! SHAKE128 (FIPS 202): the random numbers and the hash of the specification's accumulated tests.

const RATE: usize = 168;

/// A sponge; once something has been read from it, nothing can be added any more.
#[derive(Default)]
pub struct Shake128 {
    lanes: [u64; 25],
    at: usize,
    squeezing: bool,
}

impl Shake128 {
    /// Absorbs `bytes`.
    pub fn add(&mut self, bytes: &[u8]) {
        assert!(!self.squeezing);
        for byte in bytes {
            self.add_byte(*byte);
            self.step();
        }
    }

    /// Squeezes `out.len()` bytes out.
    pub fn read(&mut self, out: &mut [u8]) {
        if !self.squeezing {
            self.squeezing = true;
            self.add_byte(0x1f);
            self.at = RATE - 1;
            self.add_byte(0x80);
            self.step();
        }
        for byte in out {
            *byte = self.lanes[self.at / 8].to_le_bytes()[self.at % 8];
            self.step();
        }
    }

    fn add_byte(&mut self, byte: u8) {
        self.lanes[self.at / 8] ^= u64::from(byte) << (8 * (self.at % 8));
    }

    fn step(&mut self) {
        self.at += 1;
        if self.at == RATE {
            self.at = 0;
            permute(&mut self.lanes);
        }
    }
}

/// KECCAK-f[1600].
fn permute(a: &mut [u64; 25]) {
    let mut lfsr = 1_u8;
    for _ in 0..24 {
        let mut columns = [0; 5];
        (0..25).for_each(|i| columns[i % 5] ^= a[i]);
        (0..25).for_each(|i| a[i] ^= columns[(i + 4) % 5] ^ columns[(i + 1) % 5].rotate_left(1));
        let (mut x, mut y, mut last) = (1, 0, a[1]);
        for t in 0..24 {
            (x, y) = (y, (2 * x + 3 * y) % 5);
            let rotated = last.rotate_left((t + 1) * (t + 2) / 2 % 64);
            last = std::mem::replace(&mut a[x + 5 * y], rotated);
        }
        for row in a.chunks_exact_mut(5) {
            let old: [u64; 5] = row.try_into().unwrap();
            (0..5).for_each(|x| row[x] ^= !old[(x + 1) % 5] & old[(x + 2) % 5]);
        }
        for j in 0..7 {
            a[0] ^= u64::from(lfsr & 1) << ((1 << j) - 1);
            lfsr = (lfsr << 1) ^ ((lfsr >> 7) * 0x71);
        }
    }
}

/// What XAES-256-GCM's specification says that the random numbers start with.
#[test]
fn the_stream_starts_as_published() {
    let mut start = [0; 16];
    Shake128::default().read(&mut start);
    assert_eq!(u128::from_be_bytes(start), 0x7f9c_2ba4_e88f_827d_6160_4550_7605_853e);
}
