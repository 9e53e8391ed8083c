//! As much of HTTP/1.1 (RFC 9112) as the API needs: a request with a small body, an answer of JSON.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Most bytes of a request's head, and of its body.
const HEAD_LEN_MAX: usize = 8 << 10;
const BODY_LEN_MAX: usize = 64 << 10;
const HEADER_COUNT_MAX: usize = 32;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, ..
    pub method: String,
    /// Without a query.
    pub path: String,
    /// `null` if there is none.
    pub body: Value,
    /// Whether the client wants to ask more.
    pub keep_alive: bool,
}

/// What it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Nothing is sent for `null`.
    pub body: Value,
}

impl Response {
    /// Done; there is nothing to say.
    pub fn done() -> Self {
        Self { status: 204, body: Value::Null }
    }

    /// Here it is.
    pub fn ok(body: Value) -> Self {
        Self { status: 200, body }
    }

    /// It cannot be done.
    pub fn error(status: u16, what: &str) -> Self {
        Self { status, body: serde_json::json!({ "error": what }) }
    }

    fn reason(&self) -> &'static str {
        match self.status {
            200 => "OK",
            204 => "No Content",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            _ => "Internal Server Error",
        }
    }
}

/// The next request from `stream`; `None` if there is none. `rest` is what has been read beyond the last one.
pub fn read(stream: &mut impl Read, rest: &mut Vec<u8>) -> Result<Option<Request>> {
    let head_len = loop {
        if let Some(at) = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at + 4;
        }
        ensure!(rest.len() < HEAD_LEN_MAX, "a request with too long a head");
        if !fill(stream, rest)? {
            ensure!(rest.is_empty(), "half a request");
            return Ok(None);
        }
    };
    let (mut request, body_len) = parse(&rest[..head_len])?;
    while rest.len() < head_len + body_len {
        ensure!(fill(stream, rest)?, "half a request");
    }
    let body = &rest[head_len..head_len + body_len];
    if body.iter().any(|byte| !byte.is_ascii_whitespace()) {
        request.body = serde_json::from_slice(body).context("a body that is not JSON")?;
    }
    rest.drain(..head_len + body_len);
    Ok(Some(request))
}

/// Whether more has come.
fn fill(stream: &mut impl Read, rest: &mut Vec<u8>) -> Result<bool> {
    let mut bytes = [0; 1024];
    let len = stream.read(&mut bytes)?;
    rest.extend(&bytes[..len]);
    Ok(len > 0)
}

/// A request without its body, and the length of that.
fn parse(head: &[u8]) -> Result<(Request, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_COUNT_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed.parse(head).context("not an HTTP request")?;
    let mut body_len = 0;
    let mut keep_alive = parsed.version == Some(1);
    for header in parsed.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        match header.name.to_ascii_lowercase().as_str() {
            "content-length" => body_len = value.parse().context("a strange Content-Length")?,
            "transfer-encoding" => bail!("a body in chunks; say its length"),
            "connection" => keep_alive &= !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    ensure!(body_len <= BODY_LEN_MAX, "a body of {body_len} bytes is too long");
    let path = parsed.path.unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default().to_owned();
    let method = parsed.method.unwrap_or_default().to_owned();
    Ok((Request { method, path, body: Value::Null, keep_alive }, body_len))
}

/// Sends `response`.
pub fn write(stream: &mut impl Write, response: &Response, keep_alive: bool) -> Result<()> {
    let mut body = match &response.body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    if !body.is_empty() {
        body.push('\n');
    }
    let mut text = format!("HTTP/1.1 {} {}\r\n", response.status, response.reason());
    if response.status != 204 {
        text += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    if !keep_alive {
        text += "Connection: close\r\n";
    }
    text += "\r\n";
    text += &body;
    Ok(stream.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Result<Vec<Request>> {
        let mut stream = text.as_bytes();
        let mut rest = Vec::new();
        let mut requests = Vec::new();
        while let Some(request) = read(&mut stream, &mut rest)? {
            requests.push(request);
        }
        Ok(requests)
    }

    #[test]
    fn requests_follow_each_other() {
        let requests = read_all(
            "GET /v1/info?x=1 HTTP/1.1\r\nHost: x\r\n\r\n\
             POST /v1/shutdown HTTP/1.1\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{\"force\":true}",
        );
        let requests = requests.expect("whole");
        assert_eq!((requests[0].path.as_str(), requests[0].keep_alive), ("/v1/info", true));
        assert_eq!(requests[1].body["force"], true);
        assert!(!requests[1].keep_alive);
    }

    #[test]
    fn bad_ones_are_refused() {
        for bad in [
            "GET /\r\n\r\n",
            "GET / HTTP/1.1\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{}",
            "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{x",
            "POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(HEAD_LEN_MAX)),
        ] {
            assert!(read_all(bad).is_err(), "{bad:.60}");
        }
    }
}
