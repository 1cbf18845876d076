//! `warmkit keys`: what there is to know of keys without a bake. One file per command.

mod check;
mod harvest;
mod pull;
mod push;
mod replay;
mod table;

use clap::Subcommand;

/// Find out what keys there are for a cache
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Check(check::Arguments),
    Harvest(harvest::Arguments),
    Pull(pull::Arguments),
    Push(push::Arguments),
    Replay(Box<replay::Arguments>),
}

/// Runs a command and returns the exit code.
pub(super) fn run(command: Command) -> u8 {
    match command {
        Command::Check(arguments) => check::run(arguments),
        Command::Harvest(arguments) => harvest::run(&arguments),
        Command::Pull(arguments) => pull::run(&arguments),
        Command::Push(arguments) => push::run(&arguments),
        Command::Replay(arguments) => replay::run(*arguments),
    }
}
