//! Progress on standard error: a bar on a terminal, plain lines elsewhere, or events for a program.

mod console;
mod meter;
mod rawjson;
mod targets;
mod words;

use clap::{Args, ValueEnum};

pub(super) use console::take_down;

use console::{Bar, Lines};

use super::exit::{self, Failure};
use super::output::{Output, err};
use super::render;
use crate::builder::Survey;
use crate::progress::{Event, Progress};

/// How a command shows what it does.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(super) struct Shown {
    /// How progress is shown, on standard error
    #[arg(long = "progress", value_name = "HOW", default_value = "auto")]
    mode: Mode,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A bar on a terminal, plain lines elsewhere
    #[default]
    Auto,
    /// Lines, for logs
    Plain,
    /// A bar; wrong where there is no terminal
    Tty,
    /// One JSON object per line, warnings and the error among them
    Rawjson,
    /// Only warnings, and the error
    Quiet,
}

impl Shown {
    /// Where events go.
    ///
    /// # Errors
    /// A bar is asked for, and there is no terminal to draw it on.
    pub(super) fn start(self) -> Result<Box<dyn Progress>, Failure> {
        Ok(match self.mode {
            Mode::Auto => match Bar::new() {
                Some(bar) => Box::new(bar),
                None => Box::new(Lines::new()),
            },
            Mode::Plain => Box::new(Lines::new()),
            Mode::Tty => Box::new(Bar::new().ok_or_else(|| {
                let reason = "--progress tty: standard error is no terminal that a bar can be drawn on; leave it to --progress auto";
                Failure::new(reason, exit::USAGE)
            })?),
            Mode::Rawjson => Box::new(rawjson::Events::new(|line: &str| err(line))),
            Mode::Quiet => Box::new(Quiet),
        })
    }

    /// Says which targets this machine has, and what could not be looked at.
    pub(super) fn targets(self, survey: &Survey) {
        if self.mode == Mode::Rawjson {
            for seen in &survey.seen {
                err(rawjson::target(seen, targets::is_taken(survey, seen)));
            }
        } else if self.mode != Mode::Quiet {
            err(targets::text(survey));
        }
        for error in &survey.unseen {
            let message = render::chain(error);
            err(match self.mode {
                Mode::Rawjson => rawjson::warning(&message).into(),
                _ => render::warning(&message),
            });
        }
    }

    /// Says why there is no report, and gives the exit code.
    pub(super) fn failure(self, output: Output, failure: &Failure) -> u8 {
        if self.mode == Mode::Rawjson {
            err(rawjson::error(&*failure.error, failure.code));
        } else {
            err(render::failure(&*failure.error));
        }
        output.json_failure(failure)
    }
}

/// Tells only what people should know.
#[derive(Debug)]
struct Quiet;

impl Progress for Quiet {
    fn event(&self, event: Event) {
        if let Event::Warning(text) = event {
            err(render::warning(&text));
        }
    }
}
