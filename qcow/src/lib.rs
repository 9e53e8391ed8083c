//! The qcow2 engine: opens, makes, reads, writes and checks disk images.
//!
//! ```text
//! engine   the verbs on an open disk            one async fn per verb, any number of threads
//!   |
//! meta     what the tables say and decide       plain functions on plain data, behind one short lock
//! codec    one compressed cluster in and out
//! crypt    passphrases, key slots, and encrypted sectors in and out; `encrypted`: the same with the I/O around it
//!   |
//! format   bytes <-> validated types
//! disk     one host file: io_uring, or a deterministic simulation
//! ```
//!
//! Each layer uses only what is below it; `docs/ARCHITECTURE.md` tells the life of a request. A disk is opened through a
//! [`gate::Gate`], which decides what files an image may name, and used on the ring of the calling thread:
//!
//! ```
//! use qcow::disk::Buffer;
//! use qcow::disk::uring::{Access, CacheMode, UringDisk, block_on};
//! use qcow::engine::{CreateOptions, Image, OpenOptions, create};
//! use qcow::gate::{BackingPolicy, HostGate};
//!
//! # fn main() -> qcow::Result<()> {
//! # let directory = tempfile::tempdir().unwrap();
//! let path = directory.path().join("disk.qcow2");
//! block_on(async {
//!     let file = UringDisk::open(&path, Access::Create, CacheMode::PageCache)?;
//!     create(&file, &CreateOptions { size: 1 << 30, ..CreateOptions::default() }).await?;
//!     drop(file);
//!
//!     let gate = HostGate { cache: CacheMode::PageCache, shared: false, backing: BackingPolicy::Deny };
//!     let options = OpenOptions { writable: true, ..OpenOptions::default() };
//!     let image = Image::open(&gate, &path, &options).await?;
//!     image.write(4096, &Buffer::from_bytes(b"hello").payload()).await?;
//!     image.flush().await?;
//!     image.close().await
//! })
//! # }
//! ```

pub mod addr;
pub mod codec;
pub mod crypt;
pub mod disk;
pub mod encrypted;
pub mod engine;
pub mod error;
pub mod exec;
pub mod foreign;
pub mod format;
pub mod gate;
pub mod limits;
pub mod meta;
pub mod seeded_bugs;
pub mod size;
pub mod sync;

pub use engine::Image;
pub use error::{Error, ErrorKind, Result};
