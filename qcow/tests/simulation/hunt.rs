//! Looks for a case that fails: many cases on all cores, from one seed; what fails is made small and printed as a command.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use crate::case::Case;
use crate::shrink::shrink;

/// Cases that follow from one number.
const CASES_PER_SEED: u32 = 16;
/// A case that fails.
#[derive(Clone, Debug)]
pub struct Failure {
    /// As small as it could be made.
    pub case: Case,
    pub message: String,
    /// How long it took to find, before it was made small.
    pub found_after: Duration,
}

/// Tries cases until `enough` says so or one fails. A failing one is made small, with so many `seeds` tried for each step.
pub fn find<S: Strategy<Value = Case>>(
    cases: impl Fn() -> S + Sync,
    seeds: u64,
    enough: impl Fn() -> bool + Sync,
    test: impl Fn(&Case) + Sync,
) -> Option<Failure> {
    find_from(first_seed(), cases, seeds, enough, test)
}

/// As [`find`], from another number on.
pub fn find_from<S: Strategy<Value = Case>>(
    first: u64,
    cases: impl Fn() -> S + Sync,
    seeds: u64,
    enough: impl Fn() -> bool + Sync,
    test: impl Fn(&Case) + Sync,
) -> Option<Failure> {
    let (next, start) = (AtomicU64::new(first), Instant::now());
    let stop = AtomicBool::new(false);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        while !stop.load(Ordering::Relaxed) && !enough() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let failure = try_seed(seed, &cases(), &enough, &test, start);
            if failure.is_some() {
                stop.store(true, Ordering::Relaxed);
                return failure;
            }
        }
        None
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = running.into_iter().map(|thread| thread.join().expect("the hunter lives"));
        let failure = ended.flatten().next()?;
        let fails = |case: &Case| message_of(|| test(case));
        let (case, message) = shrink(failure.case, failure.message, seeds, fails);
        Some(Failure { case, message, ..failure })
    })
}

/// Panics with a command that repeats the failure, if there is one.
pub fn expect_none(kind: &str, failure: Option<Failure>) {
    if let Some(Failure { case, message, found_after }) = failure {
        panic!(
            "{message}\nfound after {found_after:.1?}; {} requests; repeat it with:\n{kind}_CASE='{case}' \
             cargo test -p qcow --test simulation repeat -- --ignored --nocapture\n",
            case.ops.len()
        );
    }
}

/// The message of the panic that `test` ends in, if it does. Nothing is printed.
pub fn message_of(test: impl FnOnce()) -> Option<String> {
    quietly(|| catch_unwind(AssertUnwindSafe(test)).err().map(|_| LAST.take()))
}

/// The factor that `make soak` uses.
const SOAK_FACTOR: u64 = 20;

/// How much is to be done: so much for each change, and so much in `make soak`, in proportion to its factor. While
/// developing, `SIMULATION_SHARE=N` does the N-th part.
pub fn wanted(per_change: u64, soak: u64) -> u64 {
    let share = std::env::var("SIMULATION_SHARE").ok().and_then(|share| share.parse().ok());
    let part = per_change / share.unwrap_or(1).max(1);
    soak_factor().map_or(part, |factor| (soak / SOAK_FACTOR * factor).max(per_change))
}

/// Whether this is a long run.
pub fn is_soak() -> bool {
    soak_factor().is_some()
}

fn soak_factor() -> Option<u64> {
    std::env::var("SOAK_FACTOR").ok()?.parse().ok().filter(|&factor| factor > 1)
}

/// Where the cases start; `SIMULATION_SEED` sets it.
fn first_seed() -> u64 {
    std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1) << 32
}

fn try_seed(
    seed: u64,
    cases: &impl Strategy<Value = Case>,
    enough: &impl Fn() -> bool,
    test: &impl Fn(&Case),
    start: Instant,
) -> Option<Failure> {
    let config = Config {
        cases: CASES_PER_SEED,
        failure_persistence: None,
        // It would change the requests one by one and always with the same seed: see `shrink`.
        max_shrink_iters: 0,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let found_after = Cell::new(None);
    let run = |case: Case| {
        if found_after.get().is_none() && enough() {
            return Ok(());
        }
        let Some(message) = message_of(|| test(&case)) else { return Ok(()) };
        found_after.set(found_after.get().or(Some(start.elapsed())));
        Err(proptest::test_runner::TestCaseError::fail(message))
    };
    match TestRunner::new_with_rng(config, rng).run(cases, run) {
        Ok(()) => None,
        Err(TestError::Fail(reason, case)) => {
            let found_after = found_after.get().unwrap_or_default();
            Some(Failure { case, message: reason.message().to_owned(), found_after })
        }
        Err(TestError::Abort(reason)) => panic!("no cases can be made: {reason}"),
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `action` with the messages of its panics kept instead of printed.
fn quietly<T>(action: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                LAST.set(info.to_string());
            } else {
                usual(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let value = action();
    QUIET.set(before);
    value
}
