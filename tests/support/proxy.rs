//! An HTTP proxy on loopback, by which programs reach test servers under real names.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;

use super::serve::Serving;

/// The longest head of a request that is read, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Forwards to where each `host:port` leads, and refuses what is not among them. Ends when dropped.
#[derive(Debug)]
pub struct Proxy(Serving);

impl Proxy {
    /// Starts one with these routes.
    pub fn start(routes: &[(&str, &str)]) -> Self {
        let routes: HashMap<String, SocketAddr> =
            routes.iter().map(|(name, address)| ((*name).to_owned(), address.parse().unwrap())).collect();
        Self(Serving::start(move |stream| {
            let routes = routes.clone();
            thread::spawn(move || forward(stream, &routes));
            Ok(())
        }))
    }

    /// For `HTTPS_PROXY`.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }
}

fn forward(mut client: TcpStream, routes: &HashMap<String, SocketAddr>) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let tunnel = method == "CONNECT";
    let name = match target.strip_prefix("http://") {
        Some(rest) => format!("{}:80", rest.split('/').next().unwrap_or_default()),
        None => target.to_owned(),
    };
    let Some(address) = routes.get(&name) else {
        return client.write_all(b"HTTP/1.1 502 No Such Route\r\nContent-Length: 0\r\n\r\n");
    };
    let mut server = TcpStream::connect(address)?;
    if tunnel {
        client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    } else {
        server.write_all(&head)?;
    }
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Write)
}
