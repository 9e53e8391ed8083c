//! Replacing the header of an image in use by another one: which sectors are written, and in which order.
//!
//! A sector is written as a whole or not at all, and the first one holds all fields. So everything of the new header that
//! lies in later sectors is written first, to places where the old header has nothing, and the first sector last: until
//! then the image has the old header, from then on the new one.
//!
//! ```text
//! old        | fields, records .. | .. records, end, name |          |              |
//! detour     | fields, filler -------------------------------------> | records, name |
//! new        | fields, records .. | .. records, end, name |
//! ```
//!
//! Where the old header is in the way, the new one takes a detour: a filler, a record that means nothing, leads over the
//! old records to new ones behind them. That is the new header already. From there it moves to the front, in the same way.
//! In small clusters there may be room for a name of its own place only, or for nothing at all.

use std::ops::Range;

use super::Header;
use super::append::HeaderStep;
use super::encode::{encode, encode_at};
use super::parse::{checked_fixed, extension_area, parse};
use crate::addr::HostOffset;
use crate::error::{Error, ErrorKind, Result};
use crate::format::extension::find_places;
use crate::limits::SECTOR_BYTES;

const SECTOR: usize = SECTOR_BYTES as usize;
/// Records start at multiples of this.
const ALIGNMENT: usize = 8;

/// How a header is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// The header that the image has after the last step: the wanted one, perhaps without what is there for information
    /// only and has no room.
    pub header: Header,
    /// The steps, in order, each to be durable before the next. None where nothing changes.
    pub steps: Vec<HeaderStep>,
}

/// Plans the way from the header in `cluster0`, all of the first cluster, to `new`.
pub(super) fn plan(cluster0: &[u8], new: &Header, file_len: u64) -> Result<Replacement> {
    let mut refusal = None;
    for header in candidates(new) {
        match plan_for(cluster0, &header, file_len) {
            Ok(steps) => return Ok(Replacement { header, steps }),
            Err(e) if e.kind() == ErrorKind::Limit => refusal = refusal.or(Some(e)),
            Err(e) => return Err(e),
        }
    }
    Err(refusal.expect("there is at least one candidate"))
}

/// The header itself, and what is left of it without what nobody needs.
fn candidates(new: &Header) -> Vec<Header> {
    let mut candidates = vec![new.clone()];
    let mut less = new.clone();
    if less.extensions.feature_names.take().is_some() {
        candidates.push(less.clone());
    }
    if less.extensions.mark.take().is_some() {
        candidates.push(less);
    }
    candidates
}

fn plan_for(cluster0: &[u8], new: &Header, file_len: u64) -> Result<Vec<HeaderStep>> {
    let cluster_size = cluster0.len();
    let end = padded(encode(new)?, cluster_size);
    if parse(&end, file_len)? != *new {
        return Err(Error::invalid("the new header would not be read as what it is to say"));
    }
    let end_used = used_ranges(&end)?;
    let old_used = used_ranges(cluster0)?;
    let start = Plan { new, file_len, bytes: cluster0.to_vec(), steps: Vec::new() };

    let mut plan = start.clone();
    if plan.go(&end, &end_used)? {
        return plan.finish(&old_used);
    }
    let behind = end_of(&old_used).max(end_of(&end_used)).next_multiple_of(ALIGNMENT);
    if let Some(detour) = detour_by_filler(new, behind, cluster_size)? {
        let mut plan = start.clone();
        let used = vec![0..SECTOR, behind..detour.len()];
        if plan.go(&padded(detour, cluster_size), &used)? && plan.go(&end, &end_used)? {
            return plan.finish(&[old_used, used].concat());
        }
    }
    for place in name_places(new, &old_used, cluster_size)? {
        let mut plan = start.clone();
        let moved = padded(encode_at(new, None, Some(place))?, cluster_size);
        let used = used_ranges(&moved)?;
        if plan.go(&moved, &used)? {
            // It may stay there.
            plan.go(&end, &end_used)?;
            return plan.finish(&[old_used, used].concat());
        }
    }
    Err(no_room(cluster_size))
}

/// A way that has been found up to here.
#[derive(Clone)]
struct Plan<'a> {
    new: &'a Header,
    file_len: u64,
    /// The header cluster after all steps so far.
    bytes: Vec<u8>,
    steps: Vec<HeaderStep>,
}

impl Plan<'_> {
    /// Goes on to a header that has the bytes of `target` in `ranges`, if that is safe.
    fn go(&mut self, target: &[u8], ranges: &[Range<usize>]) -> Result<bool> {
        let mut bytes = self.bytes.clone();
        for range in ranges {
            bytes[range.clone()].copy_from_slice(&target[range.clone()]);
        }
        // Nothing is written that is not read as what it is to say. A filler may be one record too many.
        let is_meant = parse(&bytes, self.file_len).is_ok_and(|read| read == *self.new);
        let Some(steps) = direct(&self.bytes, &bytes)?.filter(|_| is_meant) else {
            return Ok(false);
        };
        self.steps.extend(steps);
        self.bytes = bytes;
        Ok(true)
    }

    /// Ends with zeros where former headers were: `left`.
    fn finish(mut self, left: &[Range<usize>]) -> Result<Vec<HeaderStep>> {
        let mut bytes = vec![0; self.bytes.len()];
        bytes[end_of(left)..].copy_from_slice(&self.bytes[end_of(left)..]);
        for range in used_ranges(&self.bytes)? {
            bytes[range.clone()].copy_from_slice(&self.bytes[range]);
        }
        self.steps.extend(direct(&self.bytes, &bytes)?.unwrap_or_default());
        Ok(self.steps)
    }
}

/// The steps from `old` to `new` without a detour: at most one for the later sectors, and one for the first. `None` where
/// a cut off write could leave something else.
fn direct(old: &[u8], new: &[u8]) -> Result<Option<Vec<HeaderStep>>> {
    let changed = |range: Range<usize>| -> Vec<usize> {
        range.step_by(SECTOR).filter(|&at| sector(old, at) != sector(new, at)).collect()
    };
    let (first, later) = (changed(0..SECTOR), changed(SECTOR..old.len()));
    let is_safe = first.len() + later.len() <= 1 || {
        let used = used_ranges(old)?;
        later.iter().all(|&at| used.iter().all(|range| is_kept(old, new, at, range)))
    };
    let step = |sectors: Vec<usize>| HeaderStep {
        writes: sectors
            .into_iter()
            .map(|at| (HostOffset::new(at as u64), sector(new, at).to_vec()))
            .collect(),
    };
    let steps = [later, first].into_iter().filter(|sectors| !sectors.is_empty()).map(step);
    Ok(is_safe.then(|| steps.collect()))
}

fn end_of(ranges: &[Range<usize>]) -> usize {
    ranges.iter().map(|range| range.end).max().unwrap_or(0)
}

fn sector(bytes: &[u8], at: usize) -> &[u8] {
    &bytes[at..at + SECTOR]
}

/// Whether the sector at `at` holds the same bytes of `range` in both.
fn is_kept(old: &[u8], new: &[u8], at: usize, range: &Range<usize>) -> bool {
    let part = at.max(range.start)..(at + SECTOR).min(range.end);
    part.is_empty() || old[part.clone()] == new[part]
}

/// What a reader of this header looks at: fields and records up to the end marker but for what fillers hold, and the backing
/// file name.
fn used_ranges(cluster0: &[u8]) -> Result<Vec<Range<usize>>> {
    let fixed = checked_fixed(cluster0)?;
    let area = extension_area(&fixed, cluster0)?;
    let start = fixed.v3.header_length as usize;
    let places = find_places(area)?;
    let records = places.end.map_or(area.len(), |end| end + ALIGNMENT);
    let (mut used, mut from) = (Vec::new(), 0);
    for filler in places.fillers {
        used.push(from..start + filler.start);
        from = start + filler.end;
    }
    used.push(from..start + records);
    let name = match fixed.backing_file_offset {
        0 => 0..0,
        _ => {
            let start = start + area.len();
            let end = start + fixed.backing_file_size as usize;
            start..end.min(cluster0.len())
        }
    };
    used.push(name);
    Ok(used)
}

/// The header with everything behind its fields from `place` on; `None` where that passes the end of the cluster, or a
/// filler does not fit the first sector.
fn detour_by_filler(new: &Header, place: usize, cluster_size: usize) -> Result<Option<Vec<u8>>> {
    if new.header_length as usize + ALIGNMENT > SECTOR {
        return Ok(None);
    }
    let bytes = match encode_at(new, Some(place), None) {
        Err(e) if e.kind() == ErrorKind::Limit => return Ok(None),
        bytes => bytes?,
    };
    Ok((bytes.len() <= cluster_size).then_some(bytes))
}

/// Where the backing file name may go while the old header is in place: behind the new records and clear of the old ones.
fn name_places(new: &Header, used: &[Range<usize>], cluster_size: usize) -> Result<Vec<usize>> {
    let Some(name) = &new.backing_name else { return Ok(Vec::new()) };
    let nameless = Header { backing_name: None, ..new.clone() };
    let records_end = end_of(&used_ranges(&padded(encode(&nameless)?, cluster_size))?);
    let ends = used.iter().map(|range| range.end);
    let places = std::iter::once(0).chain(ends).map(|end| records_end.max(end));
    Ok(places
        .map(|place| place.next_multiple_of(ALIGNMENT))
        .filter(|place| place + name.len() <= cluster_size)
        .collect())
}

fn padded(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.resize(len, 0);
    bytes
}

fn no_room(cluster_size: usize) -> Error {
    Error::limit(format!(
        "the header cluster of {cluster_size} bytes has no room for the old header beside the new one, without which \
         a crash could destroy both; use a shorter backing file name"
    ))
}
