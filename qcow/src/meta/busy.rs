//! Guest clusters, or parts of them, whose mapping is about to change: writers that need a change wait for each other,
//! all others do not.
//!
//! What is held are subclusters, so that requests to different subclusters of a cluster do not wait for each other.
//! A holder may only wait for what lies above all that it holds; so two holders never wait for each other.

use std::ops::Range;

use super::span::Span;

/// The ranges that are held, one per change under way.
#[derive(Debug, Default)]
pub struct BusyClusters {
    ranges: Vec<Range<u64>>,
    /// Written in place, where a change of the mapping has to wait for that: one range per write.
    written: Vec<Range<u64>>,
}

impl BusyClusters {
    /// The part of `span` before the first subcluster that is busy.
    pub fn free_prefix(&self, span: Span) -> Span {
        free_prefix(self.ranges.iter().chain(&self.written), span)
    }

    /// As [`Self::free_prefix`], for a write in place: other such writes do not matter to it.
    pub fn writable_prefix(&self, span: Span) -> Span {
        free_prefix(self.ranges.iter(), span)
    }

    /// Keeps the mapping of what is writable from being changed.
    pub fn hold_written(&mut self, span: Span) {
        assert_eq!(self.writable_prefix(span), span, "nobody is changing the mapping");
        self.written.push(range(span));
    }

    /// Takes back a [`Self::hold_written`].
    pub fn release_written(&mut self, span: Span) {
        remove(&mut self.written, span);
    }

    /// Whether nobody holds any part of `span`.
    pub fn is_free(&self, span: Span) -> bool {
        self.free_prefix(span) == span
    }

    /// Marks what is free as busy.
    pub fn hold(&mut self, span: Span) {
        assert!(self.is_free(span), "nothing is held twice");
        self.ranges.push(range(span));
    }

    /// Takes back a [`Self::hold`].
    pub fn release(&mut self, span: Span) {
        remove(&mut self.ranges, span);
    }
}

fn free_prefix<'r>(ranges: impl Iterator<Item = &'r Range<u64>>, span: Span) -> Span {
    let (start, end) = (span.first.get(), span.end().get());
    let clash = ranges.filter(|r| r.start < end && start < r.end);
    let free = clash.map(|r| r.start.saturating_sub(start)).min();
    free.map_or(span, |count| span.truncated(count))
}

fn remove(ranges: &mut Vec<Range<u64>>, span: Span) {
    let at = ranges.iter().position(|r| *r == range(span)).expect("only a held range is released");
    ranges.swap_remove(at);
}

fn range(span: Span) -> Range<u64> {
    span.first.get()..span.end().get()
}
