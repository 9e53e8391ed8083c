//! The cache against a model of what it must keep, and its hit ratios on what disks are used for.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SLICE_BYTES: u64 = 512;
/// Slices that the caches of hit ratios hold.
const COUNT_MAX: u64 = 256;

fn key(table: u64, index: u32) -> SliceKey {
    SliceKey { table: HostCluster::new(table), index }
}

#[test]
fn a_table_is_there_as_long_as_any_of_its_slices() {
    let mut cache = SliceCache::new(0, SLICE_BYTES);
    let has = |cache: &SliceCache| cache.has_table(HostCluster::new(7));
    cache.begin_load(key(7, 0));
    assert!(has(&cache), "being loaded");
    cache.finish_load(key(7, 0), None);
    assert!(!has(&cache), "the load failed");
    cache.begin_load(key(7, 1));
    cache.finish_load(key(7, 1), Some(vec![0; 512]));
    cache.insert_zeroed(key(7, 2));
    assert!(has(&cache));
    for table in 100..100 + 4 * SLICE_COUNT_MIN as u64 {
        cache.insert_zeroed(key(table, 0));
    }
    assert!(!has(&cache), "evicted");
    cache.insert_zeroed(key(7, 3));
    cache.forget_table(HostCluster::new(7), 8);
    assert!(!has(&cache), "forgotten");
}

#[test]
fn memory_is_taken_for_what_is_loaded_only() {
    let mut cache = SliceCache::new(1 << 40, SLICE_BYTES);
    let room = |cache: &SliceCache| cache.entries.capacity() + cache.tables.capacity();
    assert_eq!(room(&cache), 0);
    use_slice(&mut cache, key(1, 0));
    assert!(room(&cache) < 100, "{}", room(&cache));
}

/// Looks `key` up, and loads it where it is missing; whether it was there.
fn use_slice(cache: &mut SliceCache, key: SliceKey) -> bool {
    if cache.get(key).is_some() {
        return true;
    }
    cache.begin_load(key);
    cache.finish_load(key, Some(vec![0; SLICE_BYTES as usize]));
    false
}

/// A cache in use, and how often it had what was asked for.
struct Trace {
    cache: SliceCache,
    uses: u64,
    hits: u64,
    random: u64,
}

impl Trace {
    fn new() -> Self {
        let cache = SliceCache::new(COUNT_MAX * SLICE_BYTES, SLICE_BYTES);
        Self { cache, uses: 0, hits: 0, random: 1 }
    }

    /// Uses a slice, which counts.
    fn count(&mut self, table: u64) {
        self.uses += 1;
        self.hits += u64::from(use_slice(&mut self.cache, key(table, 0)));
    }

    /// A number below `end`; the same ones each time.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }

    /// Hits of a hundred uses.
    fn percent(&self) -> u64 {
        self.hits * 100 / self.uses
    }
}

#[test]
fn a_pass_over_the_disk_leaves_what_is_used_again_and_again() {
    // Uses of a hot slice are as far apart as the cache has slices, or twice as far.
    for steps_per_use in [2, 4] {
        let hot_count = COUNT_MAX / 2;
        let mut trace = Trace::new();
        (0..hot_count).for_each(|table| trace.count(table));
        (trace.uses, trace.hits) = (0, 0);
        for step in 0..50 * COUNT_MAX {
            // Each slice of the pass is used by many requests in a row, and never again.
            for _ in 0..512 {
                use_slice(&mut trace.cache, key(1000 + step, 0));
            }
            if step % steps_per_use == 0 {
                let table = trace.below(hot_count);
                trace.count(table);
            }
        }
        assert!(trace.percent() > 90, "{} %, {steps_per_use} steps per use", trace.percent());
    }
}

#[test]
fn a_pass_that_begins_after_a_quiet_time_drives_out_little() {
    let hot_count = COUNT_MAX / 2;
    let mut trace = Trace::new();
    (0..hot_count).for_each(|table| trace.count(table));
    (trace.uses, trace.hits) = (0, 0);
    for step in 0..10 * COUNT_MAX {
        use_slice(&mut trace.cache, key(1000 + step, 0));
        let table = trace.below(hot_count);
        trace.count(table);
    }
    let misses = trace.uses - trace.hits;
    assert!(misses < hot_count / 2, "{misses} misses of {hot_count} slices");
}

#[test]
fn a_loop_over_more_than_the_cache_still_finds_much_of_it() {
    // In percent of the cache; first in, first out finds nothing from 100 % on.
    for (slices, at_least) in [(100, 97), (106, 75), (125, 50), (200, 0)] {
        let mut trace = Trace::new();
        let slices = COUNT_MAX * slices / 100;
        (0..40).flat_map(|_| 0..slices).for_each(|table| trace.count(table));
        assert!(trace.percent() >= at_least, "{} % of {slices} slices", trace.percent());
    }
}

#[test]
fn random_uses_find_what_fits() {
    for (slices, fit) in [(COUNT_MAX * 5 / 4, 80), (COUNT_MAX * 2, 50), (COUNT_MAX * 4, 25)] {
        let mut trace = Trace::new();
        for _ in 0..200 * COUNT_MAX {
            let table = trace.below(slices);
            trace.count(table);
        }
        assert!(trace.percent() + 2 >= fit, "{} % of {slices} slices", trace.percent());
    }
}

#[test]
fn what_is_changed_all_the_time_is_met_once() {
    let mut cache = SliceCache::new(COUNT_MAX * SLICE_BYTES, SLICE_BYTES);
    for table in 0..COUNT_MAX {
        use_slice(&mut cache, key(table, 0));
        cache.change(key(table, 0), 0, &[1]);
    }
    use_slice(&mut cache, key(COUNT_MAX, 0));
    assert_eq!(cache.eviction.len(), 1, "all that are changed are aside");
    let taken = cache.take_dirty();
    taken.iter().for_each(|sectors| cache.written(sectors, true));
    assert_eq!(cache.eviction.len() as u64, COUNT_MAX + 1);
}

/// What happens to a cache: tables by their numbers.
#[derive(Clone, Debug)]
enum Step {
    Use(u64),
    BeginLoad(u64),
    EndLoads(bool),
    Make(u64),
    Change(u64),
    Pin(u64),
    Unpin(u64),
    Take,
    Written(bool),
    Forget(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let table = || 0..60_u64;
    prop_oneof![
        20 => table().prop_map(Step::Use),
        2 => table().prop_map(Step::BeginLoad),
        2 => any::<bool>().prop_map(Step::EndLoads),
        2 => table().prop_map(Step::Make),
        4 => table().prop_map(Step::Change),
        3 => table().prop_map(Step::Pin),
        3 => table().prop_map(Step::Unpin),
        1 => Just(Step::Take),
        1 => any::<bool>().prop_map(Step::Written),
        2 => table().prop_map(Step::Forget),
    ]
}

/// What must be so of a cache.
#[derive(Default)]
struct Model {
    /// How often each is pinned.
    pins: BTreeMap<u64, u32>,
    dirty: BTreeSet<u64>,
    /// What a flush is writing.
    taken: Vec<DirtySectors>,
    loading: BTreeSet<u64>,
}

impl Model {
    fn is_in_use(&self, table: u64) -> bool {
        let is_written = self.taken.iter().any(|sectors| sectors.key == key(table, 0));
        self.dirty.contains(&table) || self.pins.contains_key(&table) || is_written
    }

    /// Does `step` to `cache`; whether slices may have come.
    fn take(&mut self, cache: &mut SliceCache, step: &Step) -> bool {
        match *step {
            Step::Use(table) | Step::BeginLoad(table) | Step::Make(table) | Step::Forget(table)
                if self.loading.contains(&table) || self.is_in_use(table) => {}
            Step::Use(table) => return !use_slice(cache, key(table, 0)),
            Step::BeginLoad(table) => {
                if matches!(cache.lookup(key(table, 0)), Lookup::Miss) {
                    cache.begin_load(key(table, 0));
                    self.loading.insert(table);
                }
            }
            Step::EndLoads(success) => {
                for table in std::mem::take(&mut self.loading) {
                    cache.finish_load(key(table, 0), success.then(|| vec![0; 512]));
                }
                return success;
            }
            Step::Make(table) => {
                cache.insert_zeroed(key(table, 0));
                return true;
            }
            Step::Change(table) if cache.get(key(table, 0)).is_some() => {
                cache.change(key(table, 0), 0, &[1]);
                self.dirty.insert(table);
            }
            Step::Pin(table) if cache.get(key(table, 0)).is_some() => {
                cache.pin(key(table, 0));
                *self.pins.entry(table).or_insert(0) += 1;
            }
            Step::Unpin(table) => {
                if let Some(pins) = self.pins.get_mut(&table) {
                    *pins -= 1;
                    cache.unpin(key(table, 0));
                    self.pins.retain(|_, pins| *pins > 0);
                }
            }
            Step::Take if self.taken.is_empty() => {
                self.taken = cache.take_dirty();
                self.dirty.clear();
            }
            Step::Written(success) => {
                for sectors in std::mem::take(&mut self.taken) {
                    cache.written(&sectors, success);
                    if !success {
                        self.dirty.extend([sectors.key.table.get()]);
                    }
                }
            }
            Step::Forget(table) => cache.forget_table(HostCluster::new(table), 1),
            Step::Change(_) | Step::Pin(_) | Step::Take => {}
        }
        false
    }

    fn check(&self, cache: &SliceCache, have_come: bool) {
        let is_ready = |table| matches!(cache.entries.get(&key(table, 0)), Some(Entry::Ready(_)));
        for table in (0..60).filter(|&table| self.is_in_use(table)) {
            assert!(is_ready(table), "{table} is in use");
        }
        let idle = (0..60).filter(|&table| is_ready(table) && !self.is_in_use(table)).count();
        // One that has just come stays for whoever wanted it.
        if have_come && idle > 1 {
            assert!(cache.entries.len() <= cache.count_max, "{} slices", cache.entries.len());
        }
        assert!(cache.eviction.len() >= idle, "whoever can leave has a turn");
        assert!(cache.eviction.len() <= cache.entries.len() + 2 * cache.count_max + 1);
    }
}

proptest! {
    #[test]
    fn what_is_in_use_stays_and_the_rest_fits(
        steps in proptest::collection::vec(any_step(), 0..400),
    ) {
        let mut cache = SliceCache::new(0, SLICE_BYTES);
        let mut model = Model::default();
        for step in &steps {
            let have_come = model.take(&mut cache, step);
            model.check(&cache, have_come);
        }
    }
}
