//! The qcow2 engine.

pub mod addr;
pub mod codec;
pub mod disk;
pub mod engine;
pub mod error;
pub mod exec;
pub mod foreign;
pub mod format;
pub mod gate;
pub mod limits;
pub mod meta;
pub mod sync;

pub use engine::Image;
pub use error::{Error, ErrorKind, Result};
