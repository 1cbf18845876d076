//! The connection, and what each request carries.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::runtime::{Builder, Runtime};
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::wire::{self, Empty};
use super::{Error, Result};

/// How long connecting may take, and calls that only look or note something.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the largest message that containerd sends, unless it is told otherwise: its leases, all in one.
const LARGEST: usize = 16 << 20;
/// How long what was given up may take to end.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a call goes on after it is no more wanted.
const GLANCE: Duration = Duration::from_millis(50);
/// The oldest release that is used, as major and minor.
const OLDEST: (u32, u32) = (1, 6);

/// What it says where its disk is full: the words of the system, for which gRPC has no code.
const FULL: [&str; 2] = ["no space left on device", "disk quota exceeded"];

const NAMESPACE: &str = "containerd-namespace";
const LEASE: &str = "containerd-lease";

/// Tells whether calls that are under way are no more wanted.
pub type Stopped = Box<dyn Fn() -> bool + Send + Sync>;

/// A connection to a containerd, for one namespace. Calls block, and may come from several threads at once.
pub struct Client {
    runtime: Runtime,
    channel: Channel,
    socket: PathBuf,
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
    stopped: Stopped,
    /// How long a call may take that only looks or notes something.
    patience: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, lease, .. } = self;
        f.debug_struct("Client").field("namespace", namespace).field("lease", lease).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the socket at `address`, a path with or without `unix://`. Nothing is changed.
    ///
    /// # Errors
    /// Nobody listens there, or not a containerd that is new enough.
    pub fn connect(address: &str, namespace: &str, stopped: Stopped) -> Result<Self> {
        Self::connect_within(PATIENCE, address, namespace, stopped)
    }

    fn connect_within(patience: Duration, address: &str, namespace: &str, stopped: Stopped) -> Result<Self> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let connect = |source| Error::Connect { address: path.to_owned(), source };
        // A path has more to say of what is wrong with it than a channel.
        UnixStream::connect(path).map_err(connect)?;
        let not = |detail: String| Error::NotContainerd { address: path.to_owned(), detail };
        let namespace = ascii(namespace).ok_or_else(|| Error::Namespace { name: namespace.to_owned() })?;
        let path_of_socket: PathBuf = std::path::absolute(Path::new(path)).map_err(connect)?;
        // What follows the scheme is a path as it is, and no URI.
        let text = path_of_socket.to_str().ok_or_else(|| not("its path is not UTF-8".to_owned()))?;
        let endpoint =
            Endpoint::from_shared(format!("unix://{text}")).map_err(|error| not(error.to_string()))?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(Error::Setup)?;
        let channel = {
            // The channel spawns what it needs when it is made.
            let _inside = runtime.enter();
            endpoint.connect_timeout(patience).connect_lazy()
        };
        let client =
            Self { runtime, channel, socket: path_of_socket, namespace, lease: None, stopped, patience };
        let version: wire::Version = match client.short(wire::VERSION, Empty {}) {
            Ok(version) => version,
            Err(Failure::Stopped) => return Err(Error::Stopped),
            Err(Failure::Status(status)) => return Err(not(status.message().to_owned())),
        };
        if !is_recent(&version.version) {
            return Err(Error::Version { address: path.to_owned(), version: version.version });
        }
        Ok(client)
    }

    /// From here on each request carries this lease, which then holds what they make.
    pub(super) fn carry(&mut self, lease: &str) {
        self.lease = ascii(lease);
    }

    /// Where it listens: an absolute path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.namespace.to_str().unwrap_or_default()
    }

    /// What it is connected for, in messages.
    pub(super) fn what(&self) -> String {
        format!("namespace {}", self.namespace())
    }

    /// A message with all that a request carries.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(NAMESPACE, self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert(LEASE, lease.clone());
        }
        request
    }

    /// A call with one answer, that may take its time.
    pub(super) fn call<Q, A>(&self, path: &'static str, message: Q) -> std::result::Result<A, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.run(self.unary(path, message))
    }

    /// A call with one answer, that takes no time unless something is wrong.
    pub(super) fn short<Q, A>(&self, path: &'static str, message: Q) -> std::result::Result<A, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.run(self.in_time(path, message))
    }

    /// A call with a list as answer, which comes in parts.
    pub(super) fn list<Q, A>(&self, path: &'static str, message: Q) -> std::result::Result<Vec<A>, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let request = self.request(message);
        self.run(async {
            let mut grpc = self.ready().await?;
            let codec = ProstCodec::<Q, A>::default();
            let mut parts =
                grpc.server_streaming(request, PathAndQuery::from_static(path), codec).await?.into_inner();
            let mut all = Vec::new();
            while let Some(part) = parts.message().await? {
                all.push(part);
            }
            Ok(all)
        })
    }

    /// As [`Self::short`], also when nobody wants anything any more.
    pub(super) fn after_all<Q, A>(&self, path: &'static str, message: Q) -> std::result::Result<A, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.runtime.block_on(self.in_time(path, message)).map_err(Failure::Status)
    }

    async fn unary<Q, A>(&self, path: &'static str, message: Q) -> std::result::Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let request = self.request(message);
        let mut grpc = self.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
    }

    async fn in_time<Q, A>(&self, path: &'static str, message: Q) -> std::result::Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let late = |_| Status::deadline_exceeded(format!("no answer within {:?}", self.patience));
        tokio::time::timeout(self.patience, self.unary(path, message)).await.map_err(late)?
    }

    pub(super) async fn ready(&self) -> std::result::Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST);
        grpc.ready().await.map_err(|error| Status::unavailable(said(&error)))?;
        Ok(grpc)
    }

    /// Lets some time pass, in which the connection goes on.
    pub(super) fn pause(&self) -> std::result::Result<(), Failure> {
        self.run(async {
            tokio::time::sleep(2 * GLANCE).await;
            Ok(())
        })
    }

    /// Waits for the end of something that was given up, also when nobody wants anything any more.
    pub(super) fn see_off(&self, end: impl Future<Output = ()>) {
        // Whoever does not answer is not waited for.
        let _ = self.runtime.block_on(async { tokio::time::timeout(FAREWELL, end).await });
    }

    /// Waits for `answer`, unless it is no more wanted.
    pub(super) fn run<A>(
        &self,
        answer: impl Future<Output = std::result::Result<A, Status>>,
    ) -> std::result::Result<A, Failure> {
        self.runtime.block_on(async {
            let mut answer = std::pin::pin!(answer);
            loop {
                match tokio::time::timeout(GLANCE, &mut answer).await {
                    Ok(answered) => return answered.map_err(Failure::Status),
                    Err(_) if (self.stopped)() => return Err(Failure::Stopped),
                    Err(_) => {}
                }
            }
        })
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    Status(Status),
    Stopped,
}

impl Failure {
    /// Whether it is this one.
    pub(super) fn is(&self, code: Code) -> bool {
        matches!(self, Self::Status(status) if status.code() == code)
    }

    /// With what was tried, and on what.
    pub(super) fn at(self, action: &'static str, what: impl Into<String>) -> Error {
        match self {
            Self::Stopped => Error::Stopped,
            Self::Status(status) if status.code() == Code::NotFound => {
                Error::Missing { action, what: what.into(), message: status.message().to_owned() }
            }
            Self::Status(status) if FULL.iter().any(|said| status.message().contains(said)) => {
                Error::Full { action, what: what.into(), message: status.message().to_owned() }
            }
            Self::Status(status) => Error::Call {
                action,
                what: what.into(),
                code: status.code(),
                message: status.message().to_owned(),
            },
        }
    }
}

/// An error with its causes, which those of a connection tell only there.
fn said(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn ascii(text: &str) -> Option<MetadataValue<Ascii>> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    text.parse().ok().filter(|_| is_plain)
}

/// Whether a version, as `v2.1.4` or `1.6.20~ds1`, is [`OLDEST`] or later. What tells none was built by its user.
fn is_recent(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '~', '+']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn connect(address: &str) -> Error {
        Client::connect(address, "buildkit", Box::new(|| false)).unwrap_err()
    }

    #[test]
    fn who_does_not_listen_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("sock").display().to_string();
        let error = connect(&format!("unix://{socket}"));
        assert!(matches!(&error, Error::Connect { address, .. } if *address == socket), "{error}");
        assert!(error.to_string().contains("--for containerd:ADDRESS"), "{error}");
    }

    #[test]
    fn what_is_no_namespace_is_said_to_be_none() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("sock").display().to_string();
        let _listener = UnixListener::bind(&socket).unwrap();
        for name in ["", "b\u{fc}ild", "a\nb", "a b"] {
            let error = Client::connect(&socket, name, Box::new(|| false)).unwrap_err();
            assert!(matches!(&error, Error::Namespace { name: said } if said == name), "{error}");
        }
    }

    #[test]
    fn who_is_no_containerd_is_told_from_one() {
        let directory = tempfile::tempdir().unwrap();
        // A path is no URI.
        let socket = directory.path().join("a b?c#d%20e&=\u{fc}").display().to_string();
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            // The first is the look whether anybody is there.
            for _ in 0..2 {
                use std::io::Write as _;
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        });
        let error = connect(&socket);
        assert!(matches!(error, Error::NotContainerd { .. }), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn who_never_answers_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("sock").display().to_string();
        // It takes connections, and that is all.
        let _listener = UnixListener::bind(&socket).unwrap();
        let patience = Duration::from_millis(100);
        let connected = Client::connect_within(patience, &socket, "buildkit", Box::new(|| false));
        let error = connected.unwrap_err().to_string();
        for said in [socket.as_str(), "no answer within 100ms", "start it again", "--for containerd:ADDRESS"]
        {
            assert!(error.contains(said), "no {said:?} in {error}");
        }
    }

    #[test]
    fn versions_are_compared() {
        for (version, expected) in [
            ("1.6.20~ds1", true),
            ("v1.7.24", true),
            ("v2.1.4-3-gabc", true),
            ("2.0.0", true),
            ("1.5.18", false),
            ("v1.4.0", false),
            ("v0.2.9", false),
            ("", true),
            ("dev", true),
        ] {
            assert_eq!(is_recent(version), expected, "{version}");
        }
    }
}
