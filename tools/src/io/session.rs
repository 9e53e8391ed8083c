//! A run of commands on one image: what is open, and which asynchronous requests are under way.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use qcow::disk::uring::block_on;

use super::open::{self, OpenArgs, OpenImage};
use crate::failure::{Failure, Outcome};
use crate::image;

/// What follows a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// The next command.
    Continue,
    /// Nothing.
    Quit,
}

/// What a command can do with the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// No image is needed.
    Nothing,
    /// An open image.
    Image,
    /// One that may be written to.
    Writable,
}

/// A request that goes on while other commands run. It tells its result itself.
type Background = Pin<Box<dyn Future<Output = ()>>>;

/// The state that commands share.
pub struct Session {
    /// Images are called by option strings.
    pub image_opts: bool,
    current: Option<OpenImage>,
    background: Vec<Background>,
}

impl Session {
    /// Nothing is open. With `image_opts`, images are called by option strings.
    pub fn new(image_opts: bool) -> Self {
        Self { image_opts, current: None, background: Vec::new() }
    }

    /// Opens an image.
    pub fn open(&mut self, args: &OpenArgs) -> Outcome {
        let opened = open::open(args).map_err(|reason| {
            let device = args.name.as_ref().map(|name| format!(" device {}", name.display()));
            Failure::new(format!("can't open{}: {reason}", device.unwrap_or_default()))
        })?;
        if opened.guessed_raw && !args.read_only {
            image::warn_of_guess(opened.source.path());
        }
        self.current = Some(opened);
        Ok(())
    }

    /// Opens the open image anew; where that fails, it is opened as it was.
    pub fn reopen(&mut self, args: &OpenArgs) -> Outcome {
        self.drain();
        let Some(open) = self.current.take() else { return Ok(()) };
        close(&open)?;
        let OpenImage { image, args: former, source, temporary, .. } = open;
        drop(image);
        let again = |args: &OpenArgs| match temporary {
            Some(_) => open::open_top(args, source.clone()),
            None => open::open(args),
        };
        let (opened, outcome) = match again(args) {
            Ok(opened) => (Some(opened), Ok(())),
            Err(reason) => (again(&former).ok(), Err(Failure::new(reason))),
        };
        self.current = opened.map(|opened| OpenImage { temporary, ..opened });
        outcome
    }

    /// The open image. Commands that need one are only run if there is one.
    pub fn current(&self) -> Option<&OpenImage> {
        self.current.as_ref()
    }

    /// Runs `work` to its end; requests in the background go on meanwhile.
    pub fn wait<T>(&mut self, work: impl Future<Output = T>) -> T {
        let background = &mut self.background;
        let mut work = pin!(work);
        block_on(std::future::poll_fn(|context| {
            poll_all(background, context);
            work.as_mut().poll(context)
        }))
    }

    /// Starts `work`, and lets it go on while other commands run.
    pub fn spawn(&mut self, work: impl Future<Output = ()> + 'static) {
        self.background.push(Box::pin(work));
        // One turn, so that it reaches the disk before later commands do.
        self.wait(qcow::exec::yield_now());
    }

    /// Waits for everything in the background.
    pub fn drain(&mut self) {
        let background = &mut self.background;
        block_on(std::future::poll_fn(|context| {
            poll_all(background, context);
            if background.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        }));
    }

    /// Closes the image, if one is open.
    pub fn close(&mut self) -> Outcome {
        self.drain();
        self.current.take().map_or(Ok(()), |open| close(&open))
    }
}

fn close(open: &OpenImage) -> Outcome {
    if open.image.is_writable() {
        block_on(open.image.close())?;
    }
    Ok(())
}

fn poll_all(background: &mut Vec<Background>, context: &mut Context<'_>) {
    background.retain_mut(|request| request.as_mut().poll(context).is_pending());
}

/// A command has failed, and has said why.
#[derive(Debug)]
pub struct Failed;

/// What a command comes to.
pub type Done<T = Flow> = Result<T, Failed>;
