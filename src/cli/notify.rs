//! Telling systemd how far a service is: sd_notify(3), a datagram to the socket that it names.

use std::env;
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::progress::{Event, Phase, Progress};

/// Passes events on, and tells systemd of some: once the databases are read, the service has started.
pub(super) struct Notifying<'a> {
    inner: &'a dyn Progress,
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl<'a> Notifying<'a> {
    /// Talks to the service manager that started this process, if one did and wants to be told.
    pub(super) fn new(inner: &'a dyn Progress) -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let address = address(&name)?;
            Some((UnixDatagram::unbound().ok()?, address))
        });
        Self { inner, socket }
    }

    fn tell(&self, state: &str) {
        if let Some((socket, address)) = &self.socket {
            // Nobody there is nobody who wants to know.
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }
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
            Event::Finished(Phase::Databases, _) => self.tell("READY=1"),
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
    use std::time::Duration;

    use super::*;

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
        let socket = (UnixDatagram::unbound().unwrap(), address(path.as_os_str()).unwrap());
        let notifying = Notifying { inner: &seen, socket: Some(socket) };
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
    fn addresses_are_paths_and_abstract_names() {
        for (name, good) in [("/run/notify", true), ("@abstract", true), ("relative", false), ("", false)] {
            assert_eq!(address(OsStr::new(name)).is_some(), good, "{name}");
        }
    }
}
