//! `warmkit completion`.

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::shells::{Bash, Fish, Zsh};

use super::exit::{self, Failure};
use super::output::out_bytes;

const EXAMPLES: &str = "\
Examples:
  # for the shell that runs
  source <(warmkit completion bash)

  # for every bash of this host
  warmkit completion bash >/usr/share/bash-completion/completions/warmkit

  # for every zsh and every fish
  warmkit completion zsh >/usr/local/share/zsh/site-functions/_warmkit
  warmkit completion fish >/etc/fish/completions/warmkit.fish
";

/// Print what a shell needs to complete warmkit's commands and flags
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Fish,
    Zsh,
}

/// Prints the script and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let mut script = Vec::new();
    let mut command = super::Arguments::command();
    let name = command.get_name().to_owned();
    match arguments.shell {
        Shell::Bash => clap_complete::generate(Bash, &mut command, name, &mut script),
        Shell::Fish => clap_complete::generate(Fish, &mut command, name, &mut script),
        Shell::Zsh => clap_complete::generate(Zsh, &mut command, name, &mut script),
    }
    out_bytes(&script)?;
    Ok(exit::OK)
}
