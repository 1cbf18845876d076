//! What stands in for a machine in a cloud: the Debian of the disk image in namespaces of its own, and in
//! memory. Nothing in it can write to a file of the machine that it runs on, but the network is that machine's.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::Scratch;
use super::command::{Ended, run};
use super::machine::{Emulator, PARTITION};

/// The user that logs in: not root, but allowed to sudo without a password, as in the images of clouds.
pub const USER: &str = "admin";

/// `$1` is a partition in a disk image, `$2` a directory. Lives until standard input is closed.
const INIT: &str = r#"
set -eu
# The kernel's own number of this process, which the namespace's will not be.
read -r pid _ </proc/self/stat
mount -t tmpfs -o mode=0755 tmpfs "$2"
debugfs -R "rdump / $2" "$1" >/dev/null 2>&1
cd "$2"
# debugfs gives away a file after its mode is set, which takes such a bit off.
chmod u+s usr/bin/sudo
mount -t proc proc proc
mount -t tmpfs -o mode=0755 tmpfs dev
mount -t tmpfs -o mode=0755 tmpfs run
mkdir -m 1777 dev/shm
mount -t tmpfs -o mode=1777 tmpfs dev/shm
for device in 'null 3' 'zero 5' 'full 7' 'random 8' 'urandom 9'; do
    mknod -m 0666 "dev/${device% *}" c 1 "${device#* }"
done
for link in 'fd ' 'stdin /0' 'stdout /1' 'stderr /2'; do
    ln -s "/proc/self/fd${link#* }" "dev/${link% *}"
done
pivot_root . mnt
umount -l /mnt
hostname instance
echo '127.0.0.1 localhost instance' >/etc/hosts
mkdir /run/sshd
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
useradd --create-home --shell /bin/bash "$3"
printf '%s ALL=(ALL) NOPASSWD:ALL\n' "$3" >"/etc/sudoers.d/$3"
install -d -m 0700 -o "$3" -g "$3" "/home/$3/.ssh"
echo "$pid"
exec cat
"#;

/// A running one. Gone when dropped.
#[derive(Debug)]
pub struct Instance {
    init: Child,
    // It ends when this is closed.
    _input: ChildStdin,
    pid: String,
    /// Where its ssh server is on loopback.
    pub port: u16,
    scratch: Scratch,
}

impl Instance {
    /// Boots one; when somebody wants to log in for the first time, `first_login` may give it the public
    /// key of who may. RSA with SHA-1 is let in, which is all that Debian's Packer has for such keys.
    pub fn boot(emulator: &Emulator, first_login: impl FnOnce() -> String + Send + 'static) -> Self {
        let scratch = Scratch::new();
        let (raw, root) = (scratch.join("raw"), scratch.join("root"));
        emulator.to_raw(&emulator.disk, &raw);
        fs::create_dir(&root).unwrap();
        let mut init = Command::new("unshare")
            .args(["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--"])
            .args(["sh", "-c", INIT, "init"])
            .arg(format!("{}?offset={PARTITION}", raw.display()))
            .args([root.to_str().unwrap(), USER])
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pid = String::new();
        BufReader::new(init.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        let pid = pid.trim().to_owned();
        assert!(!pid.is_empty(), "the instance does not come up: {:?}", init.wait());
        fs::remove_file(raw).unwrap();
        let input = init.stdin.take().unwrap();

        // The server is started for each connection, with it: so the kernel can pick the port.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = File::create(scratch.join("sshd.log")).unwrap();
        let instance = Self { init, _input: input, pid, port, scratch };
        let sshd =
            instance.command("/usr/sbin/sshd", &["-i", "-e", "-o", "PubkeyAcceptedAlgorithms=+ssh-rsa"]);
        let ssh_dir = instance.path(&format!("home/{USER}/.ssh"));
        thread::spawn(move || serve(&listener, sshd, &log, &ssh_dir, first_login));
        instance
    }

    /// A file of it, as this machine sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(&self.pid).join("root").join(path.trim_start_matches('/'))
    }

    /// What its ssh server said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("sshd.log")).unwrap()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Vec<String> {
        let enter = [
            "nsenter", "--target", &self.pid, "--mount", "--pid", "--ipc", "--uts", "--root", "--wd=/", "--",
        ];
        enter.iter().chain([&program]).chain(arguments).map(|&word| word.to_owned()).collect()
    }

    /// Runs a shell command in it, as root.
    #[track_caller]
    pub fn run(&self, script: &str) -> Ended {
        let words = self.command("/bin/sh", &["-c", script]);
        run(Command::new(&words[0]).args(&words[1..]), Duration::from_secs(60))
    }
}

fn serve(
    listener: &TcpListener,
    sshd: Vec<String>,
    log: &File,
    ssh_dir: &Path,
    first_login: impl FnOnce() -> String,
) {
    let mut first_login = Some(first_login);
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        if let Some(first_login) = first_login.take() {
            fs::write(ssh_dir.join("authorized_keys"), first_login()).unwrap();
        }
        let output = stream.try_clone().unwrap();
        let child = Command::new(&sshd[0])
            .args(&sshd[1..])
            .stdin(Stdio::from(OwnedFd::from(stream)))
            .stdout(Stdio::from(OwnedFd::from(output)))
            .stderr(log.try_clone().unwrap())
            .spawn();
        let mut child = child.unwrap();
        thread::spawn(move || child.wait());
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.init.kill();
        let _ = self.init.wait();
    }
}
