//! What can go wrong with one operation.

/// A fault of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It fails after any part of it has taken effect (EIO). A sync loses some of what it was to make durable, and
    /// forgets about all of it.
    Io,
    /// It fails because the host is full (ENOSPC), without effect; a sync as above.
    NoSpace,
    /// The first half of it takes effect, the rest fails.
    Short,
    /// It takes effect only when nothing else can go on.
    Late,
    /// It never ends; whether it takes effect is unknown.
    Never,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 5] = [Self::Io, Self::NoSpace, Self::Short, Self::Late, Self::Never];
}
