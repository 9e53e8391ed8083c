//! The `qcow` command: a drop-in for `qemu-img`, and for `qemu-io` as `qcow io`.
//!
//! One file per subcommand, each with its arguments and a `run`. What they share: [`image`] opens, [`new_image`] makes,
//! [`keyval`] and [`size`] read what people type, [`output`] and [`failure`] speak to them.

use std::process::ExitCode;

mod arguments;
mod bounded;
mod cache;
mod cli;
mod content;
mod creation_options;
mod encryption;
mod failure;
mod image;
mod integrity;
mod json_text;
mod key_slots;
mod keyval;
mod new_image;
mod objects;
mod output;
mod partial;
mod program;
mod progress;
mod rate;
mod secrets;
mod size;
mod snapshot_choice;
mod source;
mod unbuilt;

mod amend;
mod bench;
mod bitmap;
mod check;
mod commit;
mod compact;
mod compare;
mod convert;
mod create;
mod dd;
mod info;
mod io;
mod layers;
mod manual;
mod map;
mod measure;
mod rebase;
mod resize;
mod snapshot;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    program::set_name(arguments.first().map(std::ffi::OsString::as_os_str));
    let code = match cli::parse(&arguments).and_then(|command| command.run()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    };
    match output::finish() {
        Ok(()) => code,
        Err(error) => {
            failure::tell(&format!("standard output: {}", qcow::error::reason(&error)));
            ExitCode::FAILURE
        }
    }
}
