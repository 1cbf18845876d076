//! `warmkit keys`: what there is to know of keys without a bake. One file per command.

mod check;
mod file;
mod harvest;
mod pull;
mod push;
mod replay;
mod table;

use clap::Subcommand;

use super::exit::Failure;
use super::output::Output;
use super::progress::Shown;

/// Find out what keys there are for a cache
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Check(check::Arguments),
    Harvest(harvest::Arguments),
    Pull(pull::Arguments),
    Push(push::Arguments),
    Replay(Box<replay::Arguments>),
}

/// Runs a command; gives how it prints and shows progress, and its exit code.
pub(super) fn run(command: Command) -> ((Output, Shown), Result<u8, Failure>) {
    match command {
        Command::Check(arguments) => ((arguments.output, arguments.progress), check::run(arguments)),
        Command::Harvest(arguments) => ((arguments.output, arguments.progress), harvest::run(&arguments)),
        Command::Pull(arguments) => ((arguments.output, arguments.progress), pull::run(&arguments)),
        Command::Push(arguments) => ((arguments.output, arguments.progress), push::run(&arguments)),
        Command::Replay(arguments) => ((arguments.output, arguments.progress), replay::run(*arguments)),
    }
}
