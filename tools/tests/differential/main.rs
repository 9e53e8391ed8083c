//! `qcow` against QEMU's own tools: both run the same commands on equal files, and must say and do the same.

mod amend;
mod authenticated;
mod bad_input;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compact;
mod compare;
mod compress;
mod convert;
mod convert_snapshots;
mod convert_usage;
mod create;
mod data_file;
mod dd;
mod encryption;
mod info;
mod io;
mod layers;
mod luks;
mod manual;
mod map;
mod measure;
mod messages;
mod rebase;
mod resize;
mod secrets;
#[path = "../sides/mod.rs"]
mod sides;
mod snapshot;
mod tool;
