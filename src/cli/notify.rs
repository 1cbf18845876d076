//! Telling systemd how far a service is: sd_notify(3), a datagram to the socket that it names.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::Duration;

use crate::progress::{Event, Phase, Progress};

const READY: &str = "READY=1";

/// Passes events on, and tells systemd of some: once the databases are read, the service has started.
pub(super) struct Notifying<'a> {
    inner: &'a dyn Progress,
    manager: Option<SocketAddr>,
}

impl<'a> Notifying<'a> {
    /// Talks to the service manager that started this process, if one did and wants to be told. After
    /// `patience` the service has started in any case: nobody waits for longer, and the work goes on.
    pub(super) fn new(inner: &'a dyn Progress, patience: Duration) -> Self {
        Self::to(inner, env::var_os("NOTIFY_SOCKET").and_then(|name| address(&name)), patience)
    }

    fn to(inner: &'a dyn Progress, manager: Option<SocketAddr>, patience: Duration) -> Self {
        if let Some(manager) = manager.clone() {
            thread::spawn(move || {
                thread::sleep(patience);
                tell(&manager, READY);
            });
        }
        Self { inner, manager }
    }

    fn tell(&self, state: &str) {
        if let Some(manager) = &self.manager {
            tell(manager, state);
        }
    }
}

fn tell(manager: &SocketAddr, state: &str) {
    // Nobody there is nobody who wants to know.
    let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(state.as_bytes(), manager));
}

/// A path, or with `@` in front a name in the abstract namespace.
fn address(name: &OsStr) -> Option<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        [b'/', ..] => SocketAddr::from_pathname(name).ok(),
        _ => None,
    }
}

impl Progress for Notifying<'_> {
    fn event(&self, event: Event) {
        match event {
            Event::Started(Phase::Databases) => self.tell("STATUS=reading databases"),
            Event::Finished(Phase::Databases, _) => self.tell(READY),
            Event::Started(Phase::FirstBuild) => self.tell("READY=1\nSTATUS=reading what steps are built on"),
            Event::Started(Phase::Rest) => self.tell("READY=1\nSTATUS=reading the rest"),
            _ => {}
        }
        self.inner.event(event);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::progress::Silent;

    struct Seen(Mutex<Vec<Event>>);

    impl Progress for Seen {
        fn event(&self, event: Event) {
            self.0.lock().unwrap().push(event);
        }
    }

    #[test]
    fn a_service_has_started_once_the_databases_are_read() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let seen = Seen(Mutex::default());
        let manager = address(path.as_os_str());
        let notifying = Notifying::to(&seen, manager, Duration::from_secs(3600));
        let finished = Event::Finished(Phase::Databases, Duration::ZERO);
        for event in [Event::Started(Phase::Databases), finished, Event::Started(Phase::FirstBuild)] {
            notifying.event(event);
        }
        drop(notifying);
        assert_eq!(seen.0.lock().unwrap().len(), 3);
        let mut told = Vec::new();
        listener.set_nonblocking(true).unwrap();
        let mut buffer = [0; 256];
        while let Ok(read) = listener.recv(&mut buffer) {
            told.push(String::from_utf8(buffer[..read].to_vec()).unwrap());
        }
        assert_eq!(
            told,
            ["STATUS=reading databases", "READY=1", "READY=1\nSTATUS=reading what steps are built on"]
        );
    }

    #[test]
    fn nobody_waits_for_longer_than_he_can() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let notifying = Notifying::to(&Silent, address(path.as_os_str()), Duration::ZERO);
        let mut buffer = [0; 256];
        let read = listener.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..read], READY.as_bytes());
        drop(notifying);
    }

    #[test]
    fn addresses_are_paths_and_abstract_names() {
        for (name, good) in [("/run/notify", true), ("@abstract", true), ("relative", false), ("", false)] {
            assert_eq!(address(OsStr::new(name)).is_some(), good, "{name}");
        }
    }
}
