use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use crate::conninfo::Keepalives;

/// One address of a server.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    /// The path of the socket file; abstract ones begin with `@`.
    Socket(PathBuf),
    Network(SocketAddr),
}

/// A connection's bytes, however they travel.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// Connects. The caller sets the deadline.
    pub(crate) async fn connect(address: &Address, keepalives: &Keepalives) -> io::Result<Self> {
        match address {
            Address::Socket(path) => UnixStream::connect(path_of(path)).await.map(Self::Unix),
            Address::Network(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                set_keepalives(&stream, keepalives)?;
                Ok(Self::Tcp(stream))
            }
        }
    }

    /// The operating-system user of the server behind a Unix-domain socket.
    pub(crate) fn peer_user_id(&self) -> Option<u32> {
        match self {
            Self::Unix(stream) => stream.peer_cred().ok().map(|credentials| credentials.uid()),
            _ => None,
        }
    }
}

/// An abstract socket's name begins with a NUL byte for the kernel, with `@` for people.
fn path_of(path: &std::path::Path) -> PathBuf {
    match path.to_str().and_then(|text| text.strip_prefix('@')) {
        Some(name) => PathBuf::from(format!("\0{name}")),
        None => path.to_owned(),
    }
}

fn set_keepalives(stream: &TcpStream, keepalives: &Keepalives) -> io::Result<()> {
    let socket = SockRef::from(stream);
    if keepalives.enabled {
        let mut options = TcpKeepalive::new();
        if let Some(idle) = keepalives.idle {
            options = options.with_time(idle);
        }
        if let Some(interval) = keepalives.interval {
            options = options.with_interval(interval);
        }
        if let Some(count) = keepalives.count {
            options = options.with_retries(count);
        }
        socket.set_tcp_keepalive(&options)?;
    }
    #[cfg(target_os = "linux")]
    if keepalives.user_timeout.is_some() {
        socket.set_tcp_user_timeout(keepalives.user_timeout)?;
    }
    Ok(())
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, data),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, data),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
