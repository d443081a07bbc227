//! A server that speaks S3, and a way to it that can be disturbed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use super::{PATIENCE, free_port, request};

/// A server with one bucket, in memory; gone when dropped.
pub(crate) struct Bucket {
    server: Child,
    pub(crate) port: u16,
}

impl Bucket {
    pub(crate) fn start() -> Self {
        let python = std::env::var("ASSAY_TEST_PYTHON").expect("set by `cargo xtask test`");
        let port = free_port();
        let server = Command::new(Path::new(&python).with_file_name("moto_server"))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let bucket = Self { server, port };
        let started = Instant::now();
        while request(port, "PUT", "/kept", "").is_none_or(|(status, _)| status != 200) {
            assert!(
                started.elapsed() < PATIENCE,
                "waited in vain for the server"
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        bucket
    }

    /// The usual variables, for whoever reaches the server by a port.
    pub(crate) fn environment(&self, port: u16) -> [(&'static str, String); 6] {
        [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_TIMEOUT", "2s".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "anyone".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "anything".to_owned()),
        ]
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// What happens to requests on their way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The server says that it is overloaded.
    Unavailable,
    /// No answer comes.
    Hang,
    /// The request is served, but the connection breaks before the answer is there.
    Cut,
}

const FAULTS: [Fault; 4] = [Fault::None, Fault::Unavailable, Fault::Hang, Fault::Cut];

/// A way to a server, each request on a connection of its own.
pub(crate) struct Way {
    pub(crate) port: u16,
    fault: Arc<AtomicU8>,
    disturbed: Arc<AtomicU64>,
}

impl Way {
    pub(crate) fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let way = Self {
            port: listener.local_addr().unwrap().port(),
            fault: Arc::default(),
            disturbed: Arc::default(),
        };
        let (fault, disturbed) = (Arc::clone(&way.fault), Arc::clone(&way.disturbed));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (fault, disturbed) = (Arc::clone(&fault), Arc::clone(&disturbed));
                std::thread::spawn(move || {
                    // A client or a server that goes away ends the connection, as it should.
                    let _ = pass(client?, server, &fault, &disturbed);
                    std::io::Result::Ok(())
                });
            }
        });
        way
    }

    pub(crate) fn disturb(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::SeqCst);
    }

    /// How many requests were disturbed.
    pub(crate) fn disturbed(&self) -> u64 {
        self.disturbed.load(Ordering::SeqCst)
    }
}

/// Passes the requests of one connection on, one after another.
fn pass(
    mut client: TcpStream,
    server: u16,
    fault: &AtomicU8,
    disturbed: &AtomicU64,
) -> std::io::Result<()> {
    while let Some(request) = read_message(&mut client)? {
        let fault = FAULTS[usize::from(fault.load(Ordering::SeqCst))];
        if fault != Fault::None {
            disturbed.fetch_add(1, Ordering::SeqCst);
        }
        match fault {
            Fault::Unavailable => {
                client.write_all(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")?;
                continue;
            }
            // Until the client loses its patience.
            Fault::Hang => return client.read(&mut [0]).map(drop),
            Fault::None | Fault::Cut => {}
        }
        let mut upstream = TcpStream::connect(("127.0.0.1", server))?;
        upstream.write_all(&request)?;
        let answer = read_answer(&mut upstream, request.starts_with(b"HEAD "))?;
        if fault == Fault::Cut {
            return client.shutdown(Shutdown::Both);
        }
        client.write_all(&answer)?;
    }
    Ok(())
}

/// A whole message whose length its head says; none at the end of the connection.
fn read_message(stream: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut message = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        if let Some(head) = head_length(&message)
            && message.len() >= head + body_length(&message[..head])
        {
            return Ok(Some(message));
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(None),
            read => message.extend_from_slice(&buffer[..read]),
        }
    }
}

fn read_answer(stream: &mut TcpStream, head_only: bool) -> std::io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        if let Some(head) = head_length(&answer)
            && (head_only || answer.len() >= head + body_length(&answer[..head]))
        {
            return Ok(answer);
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(answer),
            read => answer.extend_from_slice(&buffer[..read]),
        }
    }
}

fn head_length(message: &[u8]) -> Option<usize> {
    let end = b"\r\n\r\n";
    let at = message
        .windows(end.len())
        .position(|window| window == end)?;
    Some(at + end.len())
}

fn body_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    length.map_or(0, |length| length.trim().parse().unwrap())
}
