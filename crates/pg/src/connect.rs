//! From a target to a session: hosts, addresses, TLS, authentication (`fe-connect.c`, `PQconnectPoll`).

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use rand::seq::SliceRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::conninfo::{Host, HostKind, SessionAttributes, SslMode, SslNegotiation, Target};
use crate::error::ConnectReason;
use crate::session::Session;
use crate::stream::{Address, Stream};
use crate::{PgError, startup, tls};

/// Addresses that are tried for one name.
const ADDRESSES_MAX: usize = 32;
/// SSLRequest: its length and its code (protocol documentation, "SSLRequest").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

pub(crate) fn connect_error(endpoint: String, reason: ConnectReason) -> PgError {
    PgError::Connect {
        endpoint,
        reason: Box::new(reason),
    }
}

/// Tries the hosts in their order; `prefer-standby` tries them twice.
pub(crate) async fn connect(target: &Target) -> Result<Session, PgError> {
    let passes: &[SessionAttributes] = match target.target_session_attrs {
        SessionAttributes::PreferStandby => &[SessionAttributes::Standby, SessionAttributes::Any],
        ref other => std::slice::from_ref(other),
    };
    let mut hosts: Vec<&Host> = target.hosts.iter().collect();
    if target.load_balance {
        hosts.shuffle(&mut rand::rng());
    }
    let mut reasons: Vec<(String, Box<ConnectReason>)> = Vec::new();
    let mut last_tls = None;
    for attributes in passes {
        for host in &hosts {
            match connect_host(target, host, *attributes).await {
                Ok(session) => return Ok(session),
                Err(PgError::Connect { endpoint, reason }) if tries_next_host(&reason) => {
                    reasons.push((endpoint, reason));
                }
                Err(
                    error @ (PgError::Tls { .. } | PgError::Protocol(_) | PgError::Io(_) | PgError::Closed),
                ) if hosts.len() > 1 => {
                    reasons.push((host.endpoint(), Box::new(ConnectReason::Io(error.to_string()))));
                    last_tls = Some(error);
                }
                // As in libpq, a host that refuses the user or the database ends the search.
                Err(error) => return Err(error),
            }
        }
    }
    match (reasons.len(), reasons.pop(), last_tls) {
        (1, _, Some(error)) => Err(error),
        (1, Some((endpoint, reason)), None) => Err(PgError::Connect { endpoint, reason }),
        (_, last, _) => {
            reasons.extend(last);
            Err(connect_error(
                target.endpoint(),
                ConnectReason::SeveralHosts(reasons),
            ))
        }
    }
}

/// "If a connection is established successfully, but authentication fails, the remaining hosts in the list are not
/// tried"; a server that can't accept connections now (57P03) is passed over.
fn tries_next_host(reason: &ConnectReason) -> bool {
    match reason {
        ConnectReason::Server(error) => error.sqlstate == "57P03",
        _ => true,
    }
}

/// The host's addresses, one after another.
async fn connect_host(
    target: &Target,
    host: &Host,
    attributes: SessionAttributes,
) -> Result<Session, PgError> {
    let mut last = None;
    for address in addresses(target, host).await? {
        let result = timeout(target.connect_timeout, connect_address(target, host, &address)).await;
        match result {
            Ok(Ok(session)) => {
                return match unsuitable(&session, attributes) {
                    None => Ok(session),
                    Some(wanted) => {
                        session.close().await;
                        Err(connect_error(
                            host.endpoint(),
                            ConnectReason::SessionAttributes(wanted.to_owned()),
                        ))
                    }
                };
            }
            Ok(Err(error @ PgError::Connect { .. })) => last = Some(error),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                last = Some(connect_error(
                    host.endpoint(),
                    ConnectReason::TimedOut(target.connect_timeout),
                ));
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        connect_error(
            host.endpoint(),
            ConnectReason::NameNotFound("it has no address".to_owned()),
        )
    }))
}

async fn addresses(target: &Target, host: &Host) -> Result<Vec<Address>, PgError> {
    let (name, address) = match &host.kind {
        HostKind::Socket(directory) => {
            let path = format!("{directory}/.s.PGSQL.{}", host.port);
            return Ok(vec![Address::Socket(PathBuf::from(path))]);
        }
        HostKind::Network { name, address } => (name, address),
    };
    if let Some(address) = address {
        return Ok(vec![Address::Network(SocketAddr::new(*address, host.port))]);
    }
    let error = |reason| connect_error(host.endpoint(), reason);
    let found = timeout(target.connect_timeout, lookup_host((name.as_str(), host.port)))
        .await
        .map_err(|_| error(ConnectReason::TimedOut(target.connect_timeout)))?
        .map_err(|cause| error(ConnectReason::NameNotFound(cause.to_string())))?;
    let mut found: Vec<SocketAddr> = found.take(ADDRESSES_MAX).collect();
    if target.load_balance {
        found.shuffle(&mut rand::rng());
    }
    Ok(found.into_iter().map(Address::Network).collect())
}

/// What the server should be and isn't.
fn unsuitable(session: &Session, attributes: SessionAttributes) -> Option<&'static str> {
    // PostgreSQL 14 and later report both.
    let on = |name| session.parameter(name) == Some("on");
    let standby = on("in_hot_standby");
    let read_only = standby || on("default_transaction_read_only");
    let suitable = match attributes {
        SessionAttributes::Any | SessionAttributes::PreferStandby => true,
        SessionAttributes::ReadWrite => !read_only,
        SessionAttributes::ReadOnly => read_only,
        SessionAttributes::Primary => !standby,
        SessionAttributes::Standby => standby,
    };
    (!suitable).then(|| attributes.name())
}

/// One address: with and without TLS, as `sslmode` allows.
async fn connect_address(target: &Target, host: &Host, address: &Address) -> Result<Session, PgError> {
    let attempts: &[bool] = match (address, target.sslmode) {
        // "sslmode is ignored for Unix domain socket communication."
        (Address::Socket(_), _) | (_, SslMode::Disable) => &[false],
        (_, SslMode::Allow) => &[false, true],
        (_, SslMode::Prefer) => &[true, false],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[true],
    };
    let mut first = None;
    for (index, tls) in attempts.iter().enumerate() {
        let result = startup::open_session(target, host, address, *tls).await;
        match result {
            Err(error) if index + 1 < attempts.len() && may_depend_on_tls(&error) => {
                tracing::debug!(tls = *tls, %error, "as sslmode allows it, the connection is tried the other way");
                first = Some(error);
            }
            Err(error) => return Err(more_telling(first, error)),
            Ok(session) => return Ok(session),
        }
    }
    Err(first.unwrap_or(PgError::Closed))
}

/// The first attempt's error tells more than "no pg_hba.conf entry ... no encryption"; but that a server has no TLS, which
/// was only preferred, is not why it refuses the password.
fn more_telling(first: Option<PgError>, last: PgError) -> PgError {
    let for_want_of_tls = matches!(&last, PgError::Authentication(error) if error.reason.contains("no encryption")
            // A line that rejects means whom it names, with TLS and without.
            && !error.reason.contains("pg_hba.conf rejects"));
    match first {
        Some(first) if for_want_of_tls || !matches!(first, PgError::Tls { .. }) => first,
        _ => last,
    }
}

/// Could it go better with, or without, TLS? libpq tries again after every error of the server and of TLS.
fn may_depend_on_tls(error: &PgError) -> bool {
    matches!(error, PgError::Tls { .. } | PgError::Authentication(_))
}

pub(crate) fn io_reason(error: &io::Error) -> ConnectReason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ConnectReason::Refused,
        io::ErrorKind::NotFound => ConnectReason::SocketMissing,
        io::ErrorKind::PermissionDenied => ConnectReason::SocketDenied,
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            ConnectReason::Closed
        }
        _ => ConnectReason::Io(error.to_string()),
    }
}

/// A stream to one address, with TLS if asked. The caller sets the deadline.
pub(crate) async fn open(
    target: &Target,
    host: &Host,
    address: &Address,
    tls: bool,
) -> Result<Stream, PgError> {
    let error = |cause: io::Error| connect_error(host.endpoint(), io_reason(&cause));
    let mut stream = Stream::connect(address, &target.keepalives)
        .await
        .map_err(error)?;
    check_peer(target, host, &stream)?;
    if !tls {
        return Ok(stream);
    }
    if target.sslnegotiation == SslNegotiation::Postgres {
        stream.write_all(&SSL_REQUEST).await.map_err(error)?;
        // Exactly one byte is read: what an attacker slips in behind it fails in the handshake (CVE-2021-23222).
        match stream.read_u8().await.map_err(error)? {
            b'S' => {}
            b'N' => {
                return Err(PgError::Tls {
                    endpoint: host.endpoint(),
                    reason: "the server doesn't support it".to_owned(),
                    advice: Some(
                        "turn it on in the server (ssl = on), or, where the network is trusted, use sslmode=prefer",
                    ),
                });
            }
            b'E' => return Err(connect_error(host.endpoint(), ConnectReason::Closed)),
            other => {
                let text = format!(
                    "to a request for TLS the server answered '{}'",
                    other.escape_ascii()
                );
                return Err(PgError::Protocol(text));
            }
        }
    }
    match stream {
        Stream::Tcp(stream) => tls::handshake(target, host, stream).await,
        other => Ok(other),
    }
}

/// `requirepeer`: who owns the server's process?
fn check_peer(target: &Target, host: &Host, stream: &Stream) -> Result<(), PgError> {
    let (Some(wanted), HostKind::Socket(_)) = (&target.requirepeer, &host.kind) else {
        return Ok(());
    };
    let user = stream
        .peer_user_id()
        .and_then(|id| {
            nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(id))
                .ok()
                .flatten()
        })
        .map(|user| user.name);
    if user.as_ref() == Some(wanted) {
        return Ok(());
    }
    let found = user.unwrap_or_else(|| "unknown".to_owned());
    let reason = format!("requirepeer specifies '{wanted}', but the server's user is '{found}'");
    Err(connect_error(host.endpoint(), ConnectReason::Peer(reason)))
}
