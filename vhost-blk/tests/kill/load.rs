//! Requests of all sorts, many at a time, none of them at a sector that another one is at.

use std::collections::VecDeque;
use std::ops::Range;

use benches::Error;
use benches::request::{Request, Status};
use benches::session::{Session, Ticket};
use qcow::disk::sim::Random;

use super::common::SECTOR;
use super::disk::{WINDOW_SECTORS, place, sector_bytes};
use super::model::Model;
use super::{QUEUES, SECTORS};

/// Requests in flight per queue.
const DEPTH: usize = 6;

/// Requests on all queues.
pub struct Load<'a> {
    session: &'a mut Session,
    model: &'a mut Model,
    random: &'a mut Random,
    flights: [VecDeque<Flight>; QUEUES],
}

struct Flight {
    ticket: Ticket,
    what: What,
}

enum What {
    Change(Range<usize>),
    Discard(Range<usize>),
    ReadBack(Range<usize>),
    Flush(Vec<usize>),
}

impl<'a> Load<'a> {
    pub fn new(session: &'a mut Session, model: &'a mut Model, random: &'a mut Random) -> Self {
        Self { session, model, random, flights: Default::default() }
    }

    /// Completes so many requests and leaves others in flight.
    pub fn run(&mut self, requests: u64) {
        for _ in 0..requests {
            let queue = self.random.below(QUEUES as u64) as usize;
            self.fill();
            self.complete_one(queue);
        }
        self.fill();
    }

    /// Completes at least so many requests and leaves none in flight.
    pub fn run_to_end(&mut self, requests: u64) {
        self.run(requests);
        for queue in 0..QUEUES {
            while !self.flights[queue].is_empty() {
                self.complete_one(queue);
            }
        }
    }

    /// Goes on until the daemon, which is being killed, is gone, and leaves requests in flight.
    pub fn run_until_hangup(&mut self) {
        loop {
            let queue = self.random.below(QUEUES as u64) as usize;
            self.fill();
            match self.try_complete_one(queue) {
                Err(Error::Hangup) => return,
                ended => ended.unwrap(),
            }
        }
    }

    /// What carries the requests.
    pub fn session(&mut self) -> &mut Session {
        self.session
    }

    /// With nothing in flight: every sector holds what its last request made of it.
    pub fn check_nothing_lost(&mut self) {
        self.model.check(self.session);
    }

    fn fill(&mut self) {
        for queue in 0..QUEUES {
            while self.flights[queue].len() < DEPTH {
                self.start_one(queue);
            }
        }
    }

    fn start_one(&mut self, queue: usize) {
        let kind = self.random.below(16);
        let len = [1, 3, 8, 16, 64, 128][self.random.below(6) as usize];
        let mut range = self.pick(len);
        if kind == 15 || self.model.is_busy(&range) {
            let durable = self.model.begin_flush();
            return self.send(queue, &Request::Flush, What::Flush(durable));
        }
        if kind >= 13 {
            // Whole clusters, where they are small.
            range = range.start / 8 * 8..range.end.next_multiple_of(8);
            if self.model.is_busy(&range) {
                return self.start_one(queue);
            }
        }
        let (sector, sectors) = (place(range.start), range.len() as u32);
        match kind {
            0..10 => {
                let stamp = self.model.next_stamp << 16;
                self.model.next_stamp += 1;
                let data: Vec<u8> =
                    range.clone().flat_map(|index| sector_bytes(stamp | index as u64)).collect();
                self.model.begin(&range, |index| stamp | index as u64);
                self.send(queue, &Request::Write { sector, data: &data }, What::Change(range));
            }
            10..13 => {
                self.model.begin(&range, |_| 0);
                let unmap = kind == 12;
                let request = Request::WriteZeroes { sector, sectors, unmap };
                self.send(queue, &request, What::Change(range));
            }
            _ => {
                self.model.begin(&range, |_| 0);
                self.send(queue, &Request::Discard { sector, sectors }, What::Discard(range));
            }
        }
    }

    /// Up to `len` sectors of one window.
    fn pick(&mut self, len: usize) -> Range<usize> {
        let start = self.random.below(SECTORS as u64) as usize;
        start..(start + len).min((start / WINDOW_SECTORS + 1) * WINDOW_SECTORS)
    }

    fn send(&mut self, queue: usize, request: &Request<'_>, what: What) {
        let ticket = self.session.queue(queue).start(request).unwrap();
        self.flights[queue].push_back(Flight { ticket, what });
    }

    fn complete_one(&mut self, queue: usize) {
        self.try_complete_one(queue).unwrap();
    }

    fn try_complete_one(&mut self, queue: usize) -> Result<(), Error> {
        let ticket = self.flights[queue].front().unwrap().ticket;
        let done = self.session.queue(queue).wait(ticket)?;
        assert_eq!(done.status, Some(Status::Ok));
        let Flight { what, .. } = self.flights[queue].pop_front().unwrap();
        match what {
            What::Change(range) => self.model.end(&range),
            What::Discard(range) => {
                let (sector, len) = (place(range.start), (range.len() * SECTOR) as u32);
                self.send(queue, &Request::Read { sector, len }, What::ReadBack(range));
            }
            What::ReadBack(range) => self.model.end_discard(&range, &done.data),
            What::Flush(durable) => self.model.end_flush(&durable),
        }
        Ok(())
    }
}
