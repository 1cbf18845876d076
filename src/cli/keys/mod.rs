//! `warmkit keys`: what there is to know of keys without a bake. One file per command.

mod replay;

use clap::Subcommand;

/// Find out what keys there are for a cache
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Replay(replay::Arguments),
}

/// Runs a command and returns the exit code.
pub(super) fn run(command: Command) -> u8 {
    match command {
        Command::Replay(arguments) => replay::run(&arguments),
    }
}
