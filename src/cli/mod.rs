//! The command line: one file per command, the rendering, the exit codes.

mod advice;
mod bake;
mod build;
mod caches;
mod completion;
mod diff;
mod engine;
mod escape;
pub mod exit;
mod forecast;
mod hydrate;
mod inspect;
mod keys;
mod largest;
mod man;
mod notify;
mod options;
mod output;
mod place;
mod plan;
mod priority;
mod progress;
mod render;
mod signals;
mod text;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::Failure;
use output::Output;
use progress::Shown;

/// Bakes BuildKit registry caches into a machine image, so that the first build on a fresh host
/// prints CACHED for every step.
#[derive(Debug, Parser)]
#[command(name = "warmkit", version, after_long_help = exit::HELP, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bake(Box<bake::Arguments>),
    Plan(Box<plan::Arguments>),
    Forecast(forecast::Arguments),
    #[command(subcommand)]
    Keys(keys::Command),
    Verify(Box<verify::Arguments>),
    Hydrate(hydrate::Arguments),
    Inspect(Box<inspect::Arguments>),
    Diff(Box<diff::Arguments>),
    Completion(completion::Arguments),
    Man(man::Arguments),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            let _ = error.print();
            return ExitCode::from(exit::USAGE);
        }
        // Asking for help is no mistake.
        Err(help) => return ended(Default::default(), output::written(help.print()).map(|()| exit::OK)),
    };
    let (shown, result) = match arguments.command {
        Command::Bake(arguments) => ((arguments.output, arguments.baking.progress), bake::run(*arguments)),
        Command::Plan(arguments) => ((arguments.output, arguments.baking.progress), plan::run(*arguments)),
        Command::Forecast(arguments) => ((arguments.output, Shown::default()), forecast::run(&arguments)),
        Command::Keys(command) => keys::run(command),
        Command::Verify(arguments) => ((arguments.output, arguments.progress), verify::run(&arguments)),
        Command::Hydrate(arguments) => ((arguments.output, arguments.progress), hydrate::run(&arguments)),
        Command::Inspect(arguments) => ((arguments.output, arguments.progress), inspect::run(*arguments)),
        Command::Diff(arguments) => ((arguments.output, arguments.progress), diff::run(*arguments)),
        Command::Completion(arguments) => (Default::default(), completion::run(&arguments)),
        Command::Man(arguments) => (Default::default(), man::run(&arguments)),
    };
    ended(shown, result)
}

/// The exit code of a command, which is told why it failed.
fn ended((output, progress): (Output, Shown), result: Result<u8, Failure>) -> ExitCode {
    ExitCode::from(result.unwrap_or_else(|failure| progress.failure(output, &failure)))
}
