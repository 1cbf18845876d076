//! `warmkit completion`.

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::shells::{Bash, Fish, Zsh};

use super::exit::{self, Failure};
use super::output::out_bytes;
use super::place::TARGETS;

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

/// What `bash` calls: a word that ends in a colon goes on, so no space follows it.
const BASH: &str = r#"
_warmkit_with_open_words() {
    _warmkit "$@"
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *: ]]; then
        compopt -o nospace 2>/dev/null || true
    fi
}
"#;

/// Has [`BASH`] called.
fn with_open_words(script: &str) -> String {
    script.replace("complete -F _warmkit ", "complete -F _warmkit_with_open_words ") + BASH
}

/// The same for `zsh`, which offers a list of values with a space behind each.
fn with_open_targets(script: &str) -> String {
    const BEGIN: &str = ":TARGET:((auto";
    const END: &str = "))'";
    let quoted = |(name, help): &(&str, &str)| {
        format!("        '{}:{}'\n", name.replace(':', "\\:"), help.replace('\'', "'\\''"))
    };
    let (open, whole): (Vec<_>, Vec<_>) = TARGETS.iter().partition(|(name, _)| name.ends_with(':'));
    let [open, whole] = [open, whole].map(|all| all.into_iter().map(quoted).collect::<String>());
    let mut text = String::new();
    let mut rest = script;
    while let Some((before, (_, behind))) =
        rest.split_once(BEGIN).and_then(|(before, values)| Some((before, values.split_once(END)?)))
    {
        text += before;
        text += ":TARGET:_warmkit__targets'";
        rest = behind;
    }
    // The file calls what it defines at its end.
    let (definitions, call) = rest.rsplit_once("\nif [ ").unwrap_or((rest, ""));
    format!(
        "{text}{definitions}\n(( $+functions[_warmkit__targets] )) ||\n_warmkit__targets() {{\n    local -a whole open\n    \
         whole=(\n{whole}    )\n    open=(\n{open}    )\n    _describe target whole -- open -S ''\n}}\n\nif [ {call}"
    )
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
    // fish itself adds no space to a word that ends so.
    let script = String::from_utf8_lossy(&script);
    let script = match arguments.shell {
        Shell::Bash => with_open_words(&script),
        Shell::Fish => script.into_owned(),
        Shell::Zsh => with_open_targets(&script),
    };
    out_bytes(script.as_bytes())?;
    Ok(exit::OK)
}
