//! Bytes to validated types and back. No I/O, no clock, no allocation by hostile numbers.

pub mod bitmap;
pub(crate) mod bytes;
pub mod compression;
pub mod crypt;
pub mod entry;
pub mod extension;
pub mod feature;
pub mod header;
pub mod mark;
pub mod sealed;
pub mod snapshot;
pub mod subcluster;
mod table;
#[cfg(test)]
pub(crate) mod test_images;
