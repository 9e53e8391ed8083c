//! The bits against a vector of `bool`.

use proptest::prelude::*;

use super::*;

/// The same by the simplest means.
#[derive(Clone, Debug)]
struct Model {
    size: u64,
    granularity: u64,
    set: Vec<bool>,
}

impl Model {
    fn new(size: u64, granularity_bits: u8) -> Self {
        let granularity = 1 << granularity_bits;
        Self { size, granularity, set: vec![false; size.div_ceil(granularity) as usize] }
    }

    fn set(&mut self, at: u64, len: u64) {
        for byte in (at..(at + len).min(self.size)).step_by(512).chain((at + len).checked_sub(1)) {
            if byte >= at && byte < self.size {
                self.set[(byte / self.granularity) as usize] = true;
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        for (index, _) in other.set.iter().enumerate().filter(|(_, set)| **set) {
            let start = index as u64 * other.granularity;
            self.set(start, other.granularity.min(other.size - start));
        }
    }

    fn resize(&mut self, size: u64) {
        self.size = size;
        self.set.resize(size.div_ceil(self.granularity) as usize, false);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(u64, u64),
    Clear,
    Resize(u64),
    Merge(Vec<(u64, u64)>, u8, u32),
    Store,
}

/// A bitmap with its model, and what the image file holds of it.
struct Tested {
    bits: Bits,
    model: Model,
    file: Vec<Stored>,
}

const SIZE_MAX: u64 = 6 << 20;

fn ranges() -> impl Strategy<Value = (u64, u64)> {
    let sectors = SIZE_MAX / 512;
    (0..sectors, prop_oneof![1_u64..4, 1_u64..200, 1..sectors])
        .prop_map(|(at, len)| (at * 512, len * 512))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = (1..SIZE_MAX / 512).prop_map(|sectors| sectors * 512);
    let merge = (prop::collection::vec(ranges(), 0..5), 9_u8..14, 9_u32..12);
    let step = prop_oneof![
        6 => ranges().prop_map(|(at, len)| Step::Set(at, len)),
        1 => Just(Step::Clear),
        2 => size.prop_map(Step::Resize),
        2 => merge.prop_map(|(ranges, granularity, cluster)| Step::Merge(ranges, granularity, cluster)),
        3 => Just(Step::Store),
    ];
    prop::collection::vec(step, 1..20)
}

impl Tested {
    fn step(&mut self, step: Step) {
        match step {
            Step::Set(at, len) => {
                self.bits.set(at, len);
                self.model.set(at, len);
            }
            Step::Clear => {
                self.bits.clear();
                self.model.set.fill(false);
            }
            Step::Resize(size) => {
                self.bits.resize(size);
                self.model.resize(size);
            }
            Step::Merge(ranges, granularity, cluster) => {
                let mut other = Bits::new(self.model.size, granularity, Geometry::new(cluster, 4));
                let mut model = Model::new(self.model.size, granularity);
                for (at, len) in ranges {
                    other.set(at, len);
                    model.set(at, len);
                }
                self.bits.merge(&other);
                self.model.merge(&model);
            }
            Step::Store => self.store(),
        }
    }

    /// Stores what has changed, and goes on with what the file holds.
    fn store(&mut self) {
        self.file.resize(self.bits.chunk_count(), Stored::Zeros);
        for index in 0..self.bits.chunk_count() {
            if let Some(stored) = self.bits.take_changed(index) {
                self.file[index] = stored;
            }
        }
        assert!(!self.bits.is_changed());
        let geometry = Geometry::new((self.bits.chunk_bits / 8).ilog2(), 4);
        let mut read = Bits::new(self.bits.size(), self.bits.granularity_bits(), geometry);
        for (index, stored) in self.file.iter().enumerate() {
            read.load(index, stored);
        }
        assert!(!read.is_changed(), "the file holds nothing behind the end of the disk");
        self.bits = read;
    }

    fn check(&self) {
        let set: Vec<bool> = (0..self.model.set.len() as u64)
            .map(|index| self.bits.is_set(index * self.model.granularity))
            .collect();
        assert_eq!(set, self.model.set);
        let mut marked = vec![false; set.len()];
        let mut from = 0;
        while let Some((at, len)) = self.bits.next_marked(from) {
            assert!(at + len <= self.model.size && len > 0);
            let granularity = self.model.granularity;
            marked[(at / granularity) as usize..(at + len).div_ceil(granularity) as usize]
                .fill(true);
            from = at + len;
        }
        assert_eq!(marked, self.model.set);
    }
}

proptest! {
    #[test]
    fn bits_are_as_the_model_has_them(
        sectors in 1..SIZE_MAX / 512,
        granularity in 9_u8..16,
        cluster in 9_u32..11,
        steps in steps(),
    ) {
        let size = sectors * 512;
        let mut tested = Tested {
            bits: Bits::new(size, granularity, Geometry::new(cluster, 4)),
            model: Model::new(size, granularity),
            file: Vec::new(),
        };
        for step in steps {
            tested.step(step);
            tested.check();
        }
    }

    #[test]
    fn whatever_a_cluster_holds_behind_the_end_does_not_count(bytes in prop::collection::vec(any::<u8>(), 512)) {
        let mut bits = Bits::new(512 * 100, 9, Geometry::new(9, 4));
        bits.load(0, &Stored::Bytes(bytes.clone()));
        bits.resize(512 * 200);
        for bit in 0..200 {
            let set = bit < 100 && bytes[bit / 8] >> (bit % 8) & 1 == 1;
            prop_assert_eq!(bits.is_set(bit as u64 * 512), set);
        }
    }
}

#[test]
fn only_changed_chunks_are_stored() {
    // Three chunks of 2 MiB of the disk each.
    let mut bits = Bits::new(6 << 20, 9, Geometry::new(9, 4));
    let taken = |bits: &mut Bits| [0, 1, 2].map(|index| bits.take_changed(index).is_some());
    assert_eq!(taken(&mut bits), [true; 3]);
    bits.set(3 << 20, 512);
    assert_eq!(taken(&mut bits), [false, true, false]);
    bits.set(3 << 20, 1);
    assert_eq!(taken(&mut bits), [false; 3], "it is set already");
    bits.set(2 << 20, 2 << 20);
    assert_eq!(bits.take_changed(1), Some(Stored::Ones));
    bits.resize(5 << 20);
    bits.resize(6 << 20);
    assert_eq!(taken(&mut bits), [false; 3], "zeros were cut off, and zeros came");
}

#[test]
fn a_last_chunk_of_ones_does_not_grow_with_the_disk() {
    let mut bits = Bits::new(4096, 9, Geometry::new(9, 4));
    bits.set(0, 4096);
    let Some(Stored::Bytes(bytes)) = bits.take_changed(0) else {
        panic!("ones are for whole clusters")
    };
    assert_eq!(bytes[..3], [0xff, 0, 0]);
    bits.load(0, &Stored::Ones);
    bits.resize(8192);
    assert_eq!(bits.next_marked(0), Some((0, 4096)));
    assert_eq!(bits.next_marked(4096), None);
    let Some(Stored::Bytes(bytes)) = bits.take_changed(0) else { panic!("the file says ones") };
    assert_eq!(bytes[..3], [0xff, 0, 0]);
}

#[test]
fn an_empty_disk_has_no_bits() {
    let mut bits = Bits::new(0, 16, Geometry::new(16, 4));
    bits.set(0, 1 << 20);
    assert_eq!((bits.chunk_count(), bits.next_marked(0)), (0, None));
    bits.resize(1);
    bits.set(0, 1);
    assert!(bits.is_set(0));
}
