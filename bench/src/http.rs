//! As much of HTTP/1.1 as a load generator needs: reading answers, and one plain GET.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// More head than this is taken for a fault of the server.
const MAX_HEAD: usize = 64 * 1024;
/// More body than this is taken for a fault of the server.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// A whole answer, borrowed from the buffer it was read into.
#[derive(Debug, PartialEq)]
pub(crate) struct Response<'a> {
    /// The status code.
    pub(crate) status: u16,
    /// The body, as long as `Content-Length` said.
    pub(crate) body: &'a [u8],
    /// The server said that it closes the connection after this answer.
    pub(crate) close: bool,
}

/// Reads the answer in `buffer`, which starts at its first byte. `None`: it is not all there yet.
///
/// Exactly one answer is expected, because no request is sent before the last one is answered.
/// A body without `Content-Length` is refused and not guessed at.
pub(crate) fn parse(buffer: &[u8]) -> Result<Option<Response<'_>>> {
    let mut lines = Lines { rest: buffer };
    let Some(status_line) = lines.next()? else {
        return Ok(None);
    };
    let status = status(status_line)?;
    let mut length = None;
    let mut close = false;
    loop {
        let Some(line) = lines.next()? else {
            return Ok(None);
        };
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let colon = colon.context("a header line without a colon")?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let found = decimal(value).context("an unusable Content-Length")?;
            ensure!(length.is_none_or(|known| known == found), "two different Content-Length headers");
            length = Some(found);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            bail!(
                "the answer has `Transfer-Encoding: {}`; this client reads bodies with Content-Length only",
                String::from_utf8_lossy(value)
            );
        } else if name.eq_ignore_ascii_case(b"connection") {
            close |= value.eq_ignore_ascii_case(b"close");
        }
    }
    let length = length.context("the answer has no Content-Length")?;
    ensure!(length <= MAX_BODY, "a body of {length} bytes");
    if lines.rest.len() < length {
        return Ok(None);
    }
    ensure!(lines.rest.len() == length, "{} bytes after the end of the answer", lines.rest.len() - length);
    Ok(Some(Response { status, body: lines.rest, close }))
}

/// The lines of a head, each without its CR LF.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    /// `None`: the line has not ended yet.
    fn next(&mut self) -> Result<Option<&'a [u8]>> {
        let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') else {
            ensure!(self.rest.len() <= MAX_HEAD, "a head without an end");
            return Ok(None);
        };
        let line = self.rest[..end].strip_suffix(b"\r");
        self.rest = &self.rest[end + 1..];
        Ok(Some(line.context("a head line that ends without CR")?))
    }
}

fn status(line: &[u8]) -> Result<u16> {
    let code = line
        .strip_prefix(b"HTTP/1.1 ")
        .filter(|rest| rest.len() == 3 || rest.get(3) == Some(&b' '))
        .and_then(|rest| decimal(&rest[..3]));
    match code {
        // An interim answer is only sent to clients that asked for one.
        Some(code @ 200..=599) => Ok(code as u16),
        _ => bail!("not a usable status line: `{}`", String::from_utf8_lossy(line)),
    }
}

/// Digits only: `usize::from_str` would also take a sign.
fn decimal(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// One GET over a connection of its own: the status and the body.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, Vec<u8>)> {
    Reader::open(address)?.get(path)
}

/// A connection that is kept for one GET after the other.
pub(crate) struct Reader {
    address: SocketAddr,
    stream: TcpStream,
}

impl Reader {
    /// Connects.
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let limit = Duration::from_secs(30);
        let stream = TcpStream::connect_timeout(&address, limit).context("connecting")?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self { address, stream })
    }

    /// One GET: the status and the body.
    pub(crate) fn get(&mut self, path: &str) -> Result<(u16, Vec<u8>)> {
        self.send("GET", path, "", &[])
    }

    /// One request with more lines of its head, each with its end: the status and the body of the answer.
    pub(crate) fn send(&mut self, method: &str, path: &str, head: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let fault = || format!("{method} {path}");
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{head}{length}\r\n", self.address);
        self.stream.write_all(request.as_bytes()).with_context(fault)?;
        self.stream.write_all(body).with_context(fault)?;
        let mut buffer = Vec::new();
        let mut piece = [0; 65536];
        loop {
            let count = self.stream.read(&mut piece).with_context(fault)?;
            ensure!(count > 0, "{method} {path}: closed before the answer was whole");
            buffer.extend_from_slice(&piece[..count]);
            if let Some(response) = parse(&buffer).with_context(fault)? {
                return Ok((response.status, response.body.to_vec()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &[u8] =
        b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\nCONTENT-LENGTH:  7 \r\n\r\n{\"a\":1}";

    #[test]
    fn every_part_of_an_answer_is_partial_and_the_whole_is_read() {
        for cut in 0..WHOLE.len() {
            assert_eq!(parse(&WHOLE[..cut]).expect("no fault"), None, "cut at {cut}");
        }
        let response = parse(WHOLE).expect("no fault").expect("whole");
        assert_eq!(response.status, 202);
        assert_eq!(response.body, b"{\"a\":1}");
        assert!(!response.close);
    }

    #[test]
    fn an_empty_body_and_connection_close() {
        let response = parse(b"HTTP/1.1 200\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n");
        let response = response.expect("no fault").expect("whole");
        assert_eq!((response.status, response.body), (200, &b""[..]));
        assert!(response.close);
    }

    fn refused(bytes: &[u8], reason: &str) {
        let error = parse(bytes).expect_err(reason).to_string();
        assert!(error.contains(reason), "`{error}` should name `{reason}`");
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_reason() {
        refused(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked");
        refused(b"HTTP/1.1 200 OK\r\n\r\n", "no Content-Length");
        refused(b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n", "unusable");
        refused(b"HTTP/1.1 200 OK\r\nContent-Length: \r\n", "unusable");
        refused(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n", "two different");
        refused(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", "a body of 99999999");
        refused(b"HTTP/1.1 100 Continue\r\n", "status line");
        refused(b"HTTP/1.0 200 OK\r\n", "status line");
        refused(b"HTTP/1.1 2000 OK\r\n", "status line");
        refused(b"HTTP/1.1 200 OK\n", "without CR");
        refused(b"HTTP/1.1 200 OK\r\nnonsense\r\n", "without a colon");
        refused(&[b'x'; MAX_HEAD + 1], "without an end");
        let mut longer = WHOLE.to_vec();
        longer.push(b'H');
        refused(&longer, "1 bytes after the end");
    }
}
