//! The HTTP port. Until the volume API comes it answers only `GET /hello`, as heketi does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 8 << 10;
/// Connections at a time.
const CONNECTIONS: usize = 64;
/// Time in which a request must have been asked and answered.
const TIME: Duration = Duration::from_secs(5);

/// Binds the port and serves it on the current runtime; gives the address bound.
///
/// # Errors
/// If the port is taken.
pub async fn start(addr: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(addr).await?;
    let bound = listener.local_addr()?;
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(async move {
                        // Whoever is too slow or gone gets nothing.
                        let _ = tokio::time::timeout(TIME, serve(stream)).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the HTTP port does not accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(bound)
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut piece).await?;
        if count == 0 || head.len() + count > MAX_HEAD {
            return stream
                .write_all(&response("400 Bad Request", "bad request\n", true))
                .await;
        }
        head.extend_from_slice(&piece[..count]);
    }
    stream.write_all(&respond(&head)).await?;
    stream.shutdown().await
}

fn respond(head: &[u8]) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next();
    match (method, path) {
        (Some(b"GET"), Some(b"/hello")) => response("200 OK", "Hello from Heketi", true),
        (Some(b"HEAD"), Some(b"/hello")) => response("200 OK", "Hello from Heketi", false),
        (_, Some(b"/hello")) => response("405 Method Not Allowed", "method not allowed\n", true),
        _ => response("404 Not Found", "404 page not found\n", true),
    }
}

fn response(status: &str, text: &str, with_body: bool) -> Vec<u8> {
    let length = text.len();
    let body = if with_body { text } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(addr: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn says_hello_and_nothing_else() {
        let addr = start(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let hello = ask(addr, b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(hello.starts_with("HTTP/1.1 200 OK\r\n"), "{hello}");
        assert!(hello.ends_with("\r\n\r\nHello from Heketi"), "{hello}");
        let other = ask(addr, b"GET /volumes HTTP/1.1\r\n\r\n").await;
        assert!(other.starts_with("HTTP/1.1 404"), "{other}");
        let post = ask(addr, b"POST /hello HTTP/1.1\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405"), "{post}");
        let nonsense = ask(addr, &[0xff; MAX_HEAD + 1]).await;
        assert!(
            nonsense.is_empty() || nonsense.starts_with("HTTP/1.1 400"),
            "{nonsense}"
        );
    }
}
