use super::*;
use crate::addr::HostCluster;
use crate::format::entry::Owned;

const ROOM: u64 = 3;

fn geometry() -> Geometry {
    Geometry::new(16, 4)
}

fn memory(records: u64) -> Arc<Box<[AtomicU64]>> {
    Arc::new((0..words_for(records)).map(|_| AtomicU64::new(0)).collect())
}

fn log(memory: &Arc<Box<[AtomicU64]>>) -> Redo {
    let memory: Arc<dyn SharedWords> = memory.clone();
    Redo::start(memory, Session::of(7)).expect("large enough")
}

fn data(cluster: u64) -> Mapping {
    Mapping::Data(Owned { cluster: HostCluster::new(cluster), copied: true })
}

fn note(redo: &mut Redo, entries: impl IntoIterator<Item = (u64, Mapping)>) {
    for (guest, mapping) in entries {
        redo.note(geometry(), GuestCluster::new(guest), mapping);
    }
    redo.publish();
}

fn last(memory: &Arc<Box<[AtomicU64]>>) -> Vec<(u64, u64)> {
    let contents = Contents::read(&**memory).expect("sound");
    let last = contents.last_entries(geometry()).expect("sound");
    last.into_iter().map(|(guest, [word, _])| (guest.get(), word & OFFSET_MASK)).collect()
}

#[test]
fn what_is_published_is_found_and_the_last_entry_counts() {
    let memory = memory(ROOM);
    assert_eq!(Contents::read(&*memory).expect("fresh").session(), None);
    let mut redo = log(&memory);
    redo.note(geometry(), GuestCluster::new(5), data(9));
    assert_eq!(last(&memory), [], "not published yet");
    note(&mut redo, [(6, data(10)), (7, data(11)), (6, Mapping::Unallocated)]);
    assert_eq!(last(&memory), [(5, 9 << 16), (6, 0), (7, 11 << 16)]);
    assert_eq!(redo.tail, 2, "a run is one record");
    assert_eq!(Contents::read(&*memory).expect("sound").session(), Some(Session::of(7)));
}

#[test]
fn runs_go_on_with_what_goes_on() {
    let memory = memory(10);
    let mut redo = log(&memory);
    let zeros = Mapping::Zero { preallocated: None };
    note(&mut redo, (0..700).map(|guest| (guest, zeros)));
    assert_eq!(redo.tail, 1);
    note(&mut redo, [(700, zeros)]);
    assert_eq!(redo.tail, 2, "what is published stays as it is");
    note(&mut redo, [(1, data(4)), (2, data(5)), (3, data(7)), (5, data(8))]);
    assert_eq!(redo.tail, 5);
    assert_eq!(last(&memory).len(), 701);
    assert_eq!(
        last(&memory)[1..6],
        [(1, 4), (2, 5), (3, 7), (4, 0), (5, 8)].map(|(g, c)| (g, c << 16))
    );
}

#[test]
fn a_flush_drops_what_it_has_captured_and_makes_room() {
    let memory = memory(ROOM);
    let mut redo = log(&memory);
    for round in 0..10 {
        note(&mut redo, [(round, data(10)), (round + 20, data(20))]);
        assert!(redo.wants_flush());
        let covered = redo.cover();
        note(&mut redo, [(50, data(30 + round))]);
        redo.end_flush(&covered, round % 2 == 0);
        let kept = last(&memory).len();
        assert_eq!(kept, if round % 2 == 0 { 1 } else { 3 });
        let covered = redo.cover();
        redo.end_flush(&covered, true);
        assert_eq!(last(&memory), [], "all of it is flushed");
        assert!(!redo.wants_flush() && !redo.is_lacking());
    }
}

#[test]
fn what_finds_no_room_is_lacking_until_a_flush_has_it() {
    let memory = memory(1);
    let mut redo = log(&memory);
    note(&mut redo, [(1, data(10)), (9, data(20))]);
    assert!(redo.is_lacking());
    assert_eq!(last(&memory), [(1, 10 << 16)]);
    let covered = redo.cover();
    assert!(redo.is_lacking(), "the flush is still running");
    redo.end_flush(&covered, false);
    assert!(redo.is_lacking(), "it has failed");
    let covered = redo.cover();
    redo.lacks = true;
    redo.end_flush(&covered, true);
    assert!(redo.is_lacking(), "another one came after the capture");
    let covered = redo.cover();
    redo.end_flush(&covered, true);
    assert!(!redo.is_lacking());
}

#[test]
fn a_flush_that_began_with_another_log_drops_nothing() {
    let memory = memory(ROOM);
    let mut redo = log(&memory);
    note(&mut redo, [(1, data(10)), (9, data(20))]);
    let covered = redo.cover();
    let mut redo = log(&memory);
    note(&mut redo, [(3, data(30))]);
    redo.end_flush(&covered, true);
    assert_eq!(last(&memory), [(3, 30 << 16)]);
}

#[test]
fn a_void_log_says_nothing() {
    let memory = memory(ROOM);
    let mut redo = log(&memory);
    note(&mut redo, [(1, data(10))]);
    redo.void();
    assert_eq!(Contents::read(&*memory).expect("void").session(), None);
}

#[test]
fn memory_that_holds_no_log_is_refused() {
    let kind = |memory: &Arc<Box<[AtomicU64]>>| {
        let read = Contents::read(&**memory);
        read.and_then(|contents| contents.last_entries(geometry())).map_err(|e| e.kind()).err()
    };
    assert_eq!(kind(&memory(0)), Some(crate::ErrorKind::Invalid));
    let record = HEADER_WORDS;
    let wrong = [
        (MAGIC_AT, 77),
        (SESSION_AT, 1 << 48),
        (ROOM_AT, 4),
        (HEAD_AT, 2),
        (TAIL_AT, u64::MAX),
        (record, 1),
        (record, (1 << 48) - 1),
        (record + 1, OFFSET_MASK),
    ];
    for (at, word) in wrong {
        let memory = memory(ROOM);
        note(&mut log(&memory), [(1, data(10)), (2, data(11))]);
        assert_eq!(kind(&memory), None);
        memory[at].store(word, Ordering::Relaxed);
        assert_eq!(kind(&memory), Some(crate::ErrorKind::Corrupt), "{word:#x} in word {at}");
    }
}

#[test]
fn a_record_never_stands_for_too_many_clusters() {
    let memory = memory(40);
    let mut redo = log(&memory);
    let zeros = Mapping::Zero { preallocated: None };
    note(&mut redo, (0..REDO_CLUSTERS_MAX + 1).map(|guest| (guest, zeros)));
    assert!(redo.is_lacking());
    let found = last(&memory).len() as u64;
    assert!(found <= REDO_CLUSTERS_MAX && found > REDO_CLUSTERS_MAX - COUNT_MAX);
}
