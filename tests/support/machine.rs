//! Emulated machines: booted from a disk image, without a network, and reached from here by ssh.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;

use super::command::{self, Ended, run};
use super::tools::{directory, on_path};
use super::{BuildRequest, Scratch, skip::skip};

/// Where the one partition of the disk image begins, in bytes.
pub const PARTITION: u64 = 1 << 20;

/// How long a machine may take to boot, to run a command, to shut down. All of it is emulated, on a host
/// that may have other things to do.
const LIMIT: Duration = Duration::from_secs(480);

/// What machines are made with, all found.
#[derive(Debug)]
pub struct Emulator {
    qemu: PathBuf,
    qemu_img: PathBuf,
    ssh: PathBuf,
    scp: PathBuf,
    /// The disk image that `scripts/tools` makes: Debian, and BuildKit that has never run.
    pub disk: PathBuf,
    /// The key that machines let in.
    pub key: Key,
    scratch: Scratch,
}

/// A new pair of keys for ssh.
#[derive(Debug)]
pub struct Key {
    /// The file of the private one.
    pub private: PathBuf,
    /// The public one, as `authorized_keys` has it.
    pub public: String,
}

impl Key {
    /// Makes one in `directory`.
    pub fn generate(directory: &Path) -> Self {
        let private = directory.join("key");
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(&private);
        run(&mut command, Duration::from_secs(60)).expect_success("ssh-keygen");
        let public = fs::read_to_string(private.with_extension("pub")).unwrap();
        Self { private, public: public.trim().to_owned() }
    }
}

impl Emulator {
    /// Finds everything.
    ///
    /// `None` when something is missing, after it said what; the test is then to return.
    ///
    /// # Panics
    ///
    /// When something is missing and `WARMKIT_REQUIRE_REAL=1`.
    #[track_caller]
    pub fn find() -> Option<Self> {
        match Self::look_for() {
            Ok(found) => Some(found),
            Err(missing) => {
                skip(&missing);
                None
            }
        }
    }

    fn look_for() -> Result<Self, String> {
        let program = |name| on_path(name).ok_or(format!("no {name} in $PATH"));
        let (qemu, qemu_img) = (program("qemu-system-x86_64")?, program("qemu-img")?);
        let (ssh, scp) = (program("ssh")?, program("scp")?);
        let disk = directory().map(|base| base.join("disk/disk.qcow2")).filter(|file| file.is_file());
        let disk = disk.ok_or("no disk image")?;
        let scratch = Scratch::new();
        let key = Key::generate(scratch.path());
        Ok(Self { qemu, qemu_img, ssh, scp, disk, key, scratch })
    }

    /// Boots a machine called `name` from a disk image, which stays as it is.
    #[track_caller]
    pub fn boot(&self, disk: &Path, name: &str) -> Machine<'_> {
        let overlay = self.scratch.join(format!("{name}.qcow2"));
        self.qemu_img(&[
            "create".as_ref(),
            "-qfqcow2".as_ref(),
            "-Fqcow2".as_ref(),
            "-b".as_ref(),
            disk.as_ref(),
            overlay.as_ref(),
        ]);
        self.boot_on(overlay, name)
    }

    /// Boots a machine called `name` on a disk of its own, such as [`Machine::power_off`] gives.
    #[track_caller]
    pub fn boot_on(&self, overlay: PathBuf, name: &str) -> Machine<'_> {
        let credential = |id: &str, value: &str| {
            let value = base64::engine::general_purpose::STANDARD.encode(value);
            format!("type=11,value=io.systemd.credential.binary:{id}={value}")
        };
        let console = self.scratch.join(format!("{name}.console"));
        let mut child = Command::new(&self.qemu)
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-monitor", "stdio"])
            // la57: this kernel does not boot with it in an emulation.
            .args(["-accel", "tcg", "-cpu", "max,la57=off", "-m", "1024"])
            .args(["-device", "virtio-rng-pci", "-device", "virtio-net-pci,netdev=net,romfile="])
            // restrict: it reaches nothing. With port 0 the kernel picks one.
            .args(["-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"])
            .args(["-smbios", &credential("ssh.authorized_keys.root", &self.key.public)])
            .args(["-smbios", &credential("hostname", name)])
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=qcow2", overlay.display()))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut monitor = child.stdin.take().unwrap();
        let port = forwarded_port(&mut monitor, child.stdout.take().unwrap());
        let name = name.to_owned();
        let mut machine = Machine { emulator: self, child, _monitor: monitor, port, name, console, overlay };
        machine.wait_for_ssh();
        machine
    }

    /// Writes a disk image as raw bytes.
    #[track_caller]
    pub fn to_raw(&self, disk: &Path, raw: &Path) {
        self.qemu_img(&["convert".as_ref(), "-Oraw".as_ref(), disk.as_ref(), raw.as_ref()]);
    }

    #[track_caller]
    fn qemu_img(&self, arguments: &[&OsStr]) {
        run(Command::new(&self.qemu_img).args(arguments), LIMIT).expect_success("qemu-img");
    }
}

/// The port that the host forwards to the machine's ssh, as the monitor tells it:
/// `TCP[HOST_FORWARD]  12  127.0.0.1 46231  10.0.2.15  22 …`.
#[track_caller]
fn forwarded_port(monitor: &mut ChildStdin, answers: ChildStdout) -> u16 {
    writeln!(monitor, "info usernet").unwrap();
    let mut answers = BufReader::new(answers);
    let mut said = String::new();
    let port = loop {
        let start = said.len();
        let read = answers.read_line(&mut said).unwrap();
        assert!(read > 0, "qemu ended: {said}");
        let mut words = said[start..].split_whitespace();
        if words.next() == Some("TCP[HOST_FORWARD]") {
            break words.nth(2).and_then(|port| port.parse().ok());
        }
    };
    // It must not block on a full pipe.
    thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    port.unwrap_or_else(|| panic!("no port in:\n{said}"))
}

/// A running machine. Cut off when dropped.
#[derive(Debug)]
pub struct Machine<'a> {
    emulator: &'a Emulator,
    child: Child,
    // It ends when this is closed.
    _monitor: ChildStdin,
    port: u16,
    name: String,
    console: PathBuf,
    overlay: PathBuf,
}

impl Machine<'_> {
    /// Waits until its ssh server says that it is one. Until then connections are refused, or answered by nobody.
    #[track_caller]
    fn wait_for_ssh(&mut self) {
        let deadline = Instant::now() + LIMIT;
        while !greets(self.port) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{} has no ssh within {LIMIT:?}: {ended:?}\n{}",
                self.name,
                self.console()
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    fn options(&self, command: &mut Command) {
        command.args(["-F", "none", "-q", "-i"]).arg(&self.emulator.key.private);
        // Its host key is new; nobody is between it and us.
        command.args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        command.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "KexAlgorithms=curve25519-sha256"]);
    }

    /// Runs a shell command as root.
    #[track_caller]
    pub fn try_run(&self, script: &str) -> Ended {
        let mut command = Command::new(&self.emulator.ssh);
        self.options(&mut command);
        command.args(["-p", &self.port.to_string(), "root@127.0.0.1", script]);
        run(&mut command, LIMIT)
    }

    /// Runs a shell command that succeeds, as root; gives what it printed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let ended = self.try_run(script).expect_success(&format!("on {}: {script}", self.name));
        ended.stdout.trim().to_owned()
    }

    /// Copies a directory to it, with its modes.
    #[track_caller]
    pub fn copy(&self, from: &Path, to: &str) {
        let mut command = Command::new(&self.emulator.scp);
        self.options(&mut command);
        command
            .args(["-r", "-p", "-P", &self.port.to_string()])
            .arg(from)
            .arg(format!("root@127.0.0.1:{to}"));
        run(&mut command, LIMIT).expect_success("scp");
    }

    /// Runs `buildctl build` on it; gives the log. Paths of the request are its own.
    #[track_caller]
    pub fn build(&self, request: &BuildRequest) -> String {
        let mut command = Command::new("buildctl");
        request.arguments(&mut command);
        let quote = |word: &OsStr| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"));
        let words: Vec<_> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect();
        self.try_run(&words.join(" ")).expect_success("buildctl build").stderr
    }

    /// Shuts it down, and waits until it is off. Gives its disk.
    #[track_caller]
    pub fn power_off(mut self) -> PathBuf {
        // The connection may be gone before the answer is there.
        self.try_run("systemctl poweroff");
        let status = command::wait(&mut self.child, LIMIT);
        assert!(
            status.is_some_and(|s| s.success()),
            "{} is not off: {status:?}\n{}",
            self.name,
            self.console()
        );
        self.overlay.clone()
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether somebody who speaks ssh answers at a port of this machine.
fn greets(port: u16) -> bool {
    let greeting = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut start = [0; 4];
        stream.read_exact(&mut start)?;
        Ok::<_, std::io::Error>(start)
    };
    greeting().is_ok_and(|start| &start == b"SSH-")
}
