//! What the fuzz targets do with their input. The same code runs in `cargo test`, on damaged images of its own making.

pub mod authenticated_image;
pub mod luks_header;
pub mod open_any_image;
pub mod sealed_slots;
