//! The `warmkit` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    warmkit::cli::main()
}
