//! A terminal: a pty that a program writes to, and what a person then sees.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// How long a program may take to write what is waited for; one that never does fails the test.
const PATIENCE: Duration = Duration::from_secs(60);

/// The streams of a program that are the terminal; the others are pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    Errors,
    Both,
}

/// A program that runs on a terminal.
#[derive(Debug)]
pub struct Running {
    child: Child,
    master: File,
    bytes: Vec<u8>,
    /// All that was written so far, as text.
    pub written: String,
}

/// Starts a program on a terminal with as many columns; 0 is one that does not know how many it has.
pub fn start(mut command: Command, shown: Shown, columns: u16) -> Running {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let size =
        Winsize { ws_row: if columns == 0 { 0 } else { 24 }, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let open = || -> OwnedFd {
        rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
            .unwrap()
    };
    command.stdin(Stdio::null()).stderr(open());
    match shown {
        Shown::Both => command.stdout(open()),
        Shown::Errors => command.stdout(Stdio::piped()),
    };
    let child = command.spawn().unwrap();
    // With the command go our ends of the terminal: it is hung up when the program ends.
    drop(command);
    Running { child, master: master.into(), bytes: Vec::new(), written: String::new() }
}

impl Running {
    /// Reads once; false at the end.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::from_borrowed_fd(self.master.as_fd(), PollFlags::IN)];
        let timeout = rustix::event::Timespec::try_from(left).unwrap();
        assert!(poll(&mut ready, Some(&timeout)).unwrap() > 0, "nothing more after: {:?}", self.tail());
        let mut bytes = [0; 4096];
        // A terminal that nobody has open any more is an error to read from.
        let read = self.master.read(&mut bytes).unwrap_or_default();
        self.bytes.extend(&bytes[..read]);
        self.written = String::from_utf8_lossy(&self.bytes).into_owned();
        read > 0
    }

    /// The end of what was written, for a message.
    fn tail(&self) -> &str {
        let start = self.written.char_indices().rev().nth(500).map_or(0, |(start, _)| start);
        &self.written[start..]
    }

    /// Reads until `found` says so of all that was written.
    pub fn until(&mut self, found: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !found(&self.written) {
            assert!(self.read(deadline), "it ended after: {:?}", self.tail());
        }
    }

    /// Reads to the end; gives what standard output had where it is no terminal, and the exit code.
    pub fn end(&mut self) -> (String, Option<i32>) {
        let deadline = Instant::now() + PATIENCE;
        while self.read(deadline) {}
        let mut piped = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut piped).unwrap();
        }
        (piped, self.child.wait().unwrap().code())
    }
}

/// What is on the screen after all this was written to it, without empty lines at its end.
pub fn screen(written: &str) -> Vec<String> {
    let mut lines: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0, 0);
    let mut characters = written.chars();
    while let Some(c) = characters.next() {
        match c {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                if row == lines.len() {
                    lines.push(Vec::new());
                }
            }
            '\u{1b}' => {
                assert_eq!(characters.next(), Some('['), "an escape that is no control sequence");
                let mut argument = String::new();
                let end = characters.by_ref().find(|c| {
                    argument.push(*c);
                    c.is_ascii_alphabetic()
                });
                let number = argument.trim_end_matches(char::is_alphabetic);
                let count = number.parse().unwrap_or(1);
                match (end, number) {
                    (Some('m'), _) => {}
                    (Some('K'), "2") => lines[row].clear(),
                    (Some('K'), "" | "0") => lines[row].truncate(column),
                    (Some('J'), "" | "0") => {
                        lines[row].truncate(column);
                        lines.truncate(row + 1);
                    }
                    (Some('A'), _) => row -= count,
                    (Some('B'), _) => row += count,
                    _ => panic!("a control sequence that this terminal does not know: {argument:?}"),
                }
            }
            c => {
                let line = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                column += 1;
            }
        }
    }
    let mut lines: Vec<String> =
        lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned()).collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}
