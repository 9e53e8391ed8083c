//! Persistent bitmaps: this engine and QEMU's record into the same bitmaps, change them and read what the other stored.
//!
//! What a power cut leaves is the simulation's business.

mod hostile;
mod model;
mod place;
mod script;
mod verbs;
