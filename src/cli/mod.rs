//! The command line: one file per command, the rendering, the exit codes.

mod bake;
mod build;
mod caches;
pub mod exit;
mod keys;
mod progress;
mod render;
mod signals;
mod verify;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Bakes BuildKit registry caches into a machine image, so that the first build on a fresh host
/// prints CACHED for every step.
#[derive(Debug, Parser)]
#[command(name = "warmkit", version, after_help = exit::HELP, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bake(bake::Arguments),
    #[command(subcommand)]
    Keys(keys::Command),
    Verify(verify::Arguments),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Asking for help is no mistake; clap knows which stream each goes to.
            let code = if error.use_stderr() { exit::USAGE } else { exit::OK };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let code = match arguments.command {
        Command::Bake(arguments) => bake::run(arguments),
        Command::Keys(command) => keys::run(command),
        Command::Verify(arguments) => verify::run(&arguments),
    };
    ExitCode::from(code)
}

/// Prints a line on standard output; a reader that went away is no failure of ours.
fn out(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a line on standard error.
fn err(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
