//! Progress: a bar with rate and time left on a terminal, `(NN.NN/100%)` elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::output;
use crate::size;

/// Least change that is shown where stdout is not a terminal, in percent.
const STEP: f64 = 1.0;
/// Least time between two pictures on a terminal.
const REDRAW: Duration = Duration::from_millis(100);
/// Characters of the bar.
const BAR_LEN: usize = 30;

/// How far a command has come.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    total: u64,
    done: u64,
    started: Instant,
}

#[derive(Debug)]
enum Style {
    Off,
    /// The percentage that was shown last.
    Percent(f64),
    /// When the bar was drawn last.
    Bar(Instant),
}

impl Progress {
    /// Nothing done of `total` bytes; silent unless `shown`.
    pub fn new(shown: bool, total: u64) -> Self {
        let started = Instant::now();
        let style = match shown {
            false => Style::Off,
            true if std::io::stdout().is_terminal() => Style::Bar(started),
            true => {
                print_percent(0.0);
                Style::Percent(0.0)
            }
        };
        Self { style, total, done: 0, started }
    }

    /// Another `bytes` are done.
    pub fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        let percent = self.percent();
        match &mut self.style {
            Style::Off => {}
            Style::Percent(last) => {
                if percent - *last >= STEP || percent >= 100.0 {
                    *last = percent;
                    print_percent(percent);
                }
            }
            Style::Bar(last) => {
                if last.elapsed() >= REDRAW {
                    *last = Instant::now();
                    self.draw_bar();
                }
            }
        }
    }

    /// Everything is done.
    pub fn finish(&mut self) {
        self.done = self.total;
        match self.style {
            Style::Off => {}
            Style::Percent(_) => print_percent(100.0),
            Style::Bar(_) => self.draw_bar(),
        }
    }

    fn percent(&self) -> f64 {
        if self.total == 0 { 100.0 } else { self.done as f64 * 100.0 / self.total as f64 }
    }

    fn draw_bar(&self) {
        let percent = self.percent();
        let filled = (percent / 100.0 * BAR_LEN as f64) as usize;
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let rate = self.done as f64 / seconds;
        let left = (self.total - self.done.min(self.total)) as f64 / rate.max(1.0);
        output::write(format_args!(
            "\r[{:<BAR_LEN$}] {percent:5.1}%  {}/s  {}:{:02} left \x1b[K",
            "#".repeat(filled.min(BAR_LEN)),
            size::human(rate as u64),
            left as u64 / 60,
            left as u64 % 60,
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if !matches!(self.style, Style::Off) {
            output::write(format_args!("\n"));
        }
    }
}

fn print_percent(percent: f64) {
    output::write(format_args!("    ({percent:.2}/100%)\r"));
    output::flush();
}
