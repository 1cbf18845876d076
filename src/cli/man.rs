//! `warmkit man`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory as _, ValueHint};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::exit::{self, Failure};

const EXAMPLES: &str = "\
Examples:
  # for man warmkit, man warmkit-bake and so on, of whoever runs this
  warmkit man ~/.local/share/man/man1

  # for everybody on this host
  warmkit man /usr/local/share/man/man1
";

/// Write the manual pages, one for each command
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Where to; made if it is not there, and pages in it are replaced
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,
}

/// Writes the pages and returns the exit code.
pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let failed = |path: &Path, error: io::Error| {
        Failure::new(format!("cannot write {}: {error}", path.display()), exit::FAILURE)
    };
    let dir = &arguments.dir;
    fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    let mut command = super::Arguments::command().disable_help_subcommand(true);
    command.build();
    for (name, page) in pages(&command).map_err(|error| failed(dir, error))? {
        let path = dir.join(name);
        fs::write(&path, page).map_err(|error| failed(&path, error))?;
    }
    Ok(exit::OK)
}

/// The page of a command and those of its subcommands, each with the name of its file.
fn pages(command: &Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut pages = vec![(format!("{}.1", title(command)), page(command)?)];
    for subcommand in command.get_subcommands() {
        pages.extend(self::pages(subcommand)?);
    }
    Ok(pages)
}

/// `warmkit-keys-check` for `warmkit keys check`.
fn title(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

/// A page without a date: the same program writes the same pages.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(command.clone())
        .title(title(command).to_uppercase())
        .source(concat!("warmkit ", env!("CARGO_PKG_VERSION")))
        .manual("warmkit");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    sections(&help).to_writer(&mut page)?;
    if title(command) != "warmkit" {
        let mut roff = Roff::new();
        roff.control("SH", ["SEE ALSO"]).text([bold("warmkit"), roman("(1)")]);
        roff.to_writer(&mut page)?;
    }
    Ok(page)
}

/// What `--help` ends with, in sections of its own. Its lines stay as they are: they are tables and commands.
fn sections(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut open = false;
    let mut blank = false;
    for line in help.lines() {
        let heading = line.strip_suffix(':').filter(|heading| !heading.starts_with(' '));
        if let Some(heading) = heading {
            if open {
                roff.control("fi", []);
            }
            let heading = if heading == "Exit codes" { "Exit status" } else { heading };
            roff.control("SH", [heading.to_uppercase().as_str()]).control("nf", []);
            (open, blank) = (true, false);
        } else if line.is_empty() {
            blank = true;
        } else {
            if std::mem::take(&mut blank) {
                roff.control("sp", []);
            }
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
    }
    if open {
        roff.control("fi", []);
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_help_ends_with_keeps_its_lines() {
        let help = "Exit codes:\n  0  success\n  1  failure\n\nExamples:\n  # one\n  a \\\n    --b\n\n  # two\n  .c\n";
        let page = sections(help).render();
        let (_, body) = page.split_once(".SH").unwrap();
        assert_eq!(
            body,
            " \"EXIT STATUS\"\n.nf\n0  success\n1  failure\n.fi\n\
             .SH EXAMPLES\n.nf\n# one\na \\\\\n  \\-\\-b\n.sp\n# two\n\\&.c\n.fi\n"
        );
    }
}
