//! One keep-alive connection with at most one request in flight.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::http::{self, Response};

/// A non-blocking connection with its buffers, which are reused from request to request.
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    filled: usize,
    /// What the socket did not take at once; nearly always empty.
    unsent: Vec<u8>,
    /// The input of the request in flight.
    pub(crate) input: Vec<u8>,
    /// When the request in flight was sent; `None` while there is none.
    pub(crate) sent: Option<Instant>,
}

impl Connection {
    /// Connects. The connecting itself blocks: it happens before the clock starts, or after an
    /// error, which is counted.
    pub(crate) fn open(address: SocketAddr) -> std::io::Result<Self> {
        Ok(Self {
            stream: connect(address)?,
            received: vec![0; 4096],
            filled: 0,
            unsent: Vec::new(),
            input: Vec::new(),
            sent: None,
        })
    }

    /// Puts a new socket in the place of the old one and forgets what was under way.
    pub(crate) fn reopen(&mut self, address: SocketAddr) -> std::io::Result<()> {
        self.stream = connect(address)?;
        self.filled = 0;
        self.unsent.clear();
        self.sent = None;
        Ok(())
    }

    /// Sends `request`, in one write when the socket takes it. `false`: a rest is kept, and
    /// [`Connection::send_rest`] must be called when the socket can be written to.
    pub(crate) fn send(&mut self, request: &[u8]) -> std::io::Result<bool> {
        let count = write_some(&self.stream, request)?;
        self.unsent.extend_from_slice(&request[count..]);
        Ok(self.unsent.is_empty())
    }

    /// Goes on with what [`Connection::send`] left over.
    pub(crate) fn send_rest(&mut self) -> std::io::Result<bool> {
        if !self.unsent.is_empty() {
            let count = write_some(&self.stream, &self.unsent)?;
            self.unsent.drain(..count);
        }
        Ok(self.unsent.is_empty())
    }

    /// Reads once. `None`: the answer is not whole yet.
    pub(crate) fn receive(&mut self) -> Result<Option<Response<'_>>> {
        if self.filled == self.received.len() {
            self.received.resize(self.filled * 2, 0);
        }
        match (&self.stream).read(&mut self.received[self.filled..]) {
            Ok(0) if self.filled == 0 => bail!("the server closed the connection"),
            Ok(0) => bail!("the server closed the connection in the middle of an answer"),
            Ok(count) => self.filled += count,
            Err(error) if is_not_yet(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let response = http::parse(&self.received[..self.filled])?;
        if response.is_some() {
            self.filled = 0;
        }
        Ok(response)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn write_some(mut stream: &TcpStream, bytes: &[u8]) -> std::io::Result<usize> {
    match stream.write(bytes) {
        Err(error) if is_not_yet(&error) => Ok(0),
        other => other,
    }
}

fn is_not_yet(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let connection = Connection::open(address).expect("a connection");
        (connection, listener.accept().expect("the other end").0)
    }

    /// Reads until something other than "not yet" is known.
    fn settle(connection: &mut Connection) -> Result<(u16, Vec<u8>)> {
        loop {
            if let Some(response) = connection.receive()? {
                return Ok((response.status, response.body.to_vec()));
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_answer_in_single_bytes_longer_than_the_buffer_is_read() {
        let (mut connection, mut server) = pair();
        let body = "z".repeat(10_000);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n{body}");
        let writer = std::thread::spawn(move || {
            server.set_nodelay(true).expect("an option");
            for byte in answer.as_bytes() {
                server.write_all(&[*byte]).expect("written");
            }
            server
        });
        let (status, found) = settle(&mut connection).expect("an answer");
        assert_eq!((status, found), (200, body.into_bytes()));
        drop(writer.join());
        let error = settle(&mut connection).expect_err("closed").to_string();
        assert_eq!(error, "the server closed the connection");
    }

    #[test]
    fn a_connection_closed_within_an_answer_is_an_error() {
        let (mut connection, mut server) = pair();
        server.write_all(b"HTTP/1.1 200 OK\r\nConte").expect("written");
        drop(server);
        let error = settle(&mut connection).expect_err("closed").to_string();
        assert!(error.contains("in the middle"), "{error}");
    }

    #[test]
    fn a_request_that_the_socket_does_not_take_at_once_is_sent_whole() {
        let (mut connection, mut server) = pair();
        let request = vec![b'r'; 16 * 1024 * 1024];
        let length = request.len();
        let mut whole = connection.send(&request).expect("sent in part");
        assert!(!whole, "16 MiB fit into the socket");
        let reader = std::thread::spawn(move || {
            let mut received = vec![0; length];
            server.read_exact(&mut received).expect("all of it");
            received
        });
        while !whole {
            whole = connection.send_rest().expect("sent");
            std::thread::yield_now();
        }
        assert!(reader.join().expect("no panic").iter().all(|&byte| byte == b'r'));
    }
}
