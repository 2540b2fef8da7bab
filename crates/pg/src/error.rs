use std::fmt;
use std::time::Duration;

use pgkeep_base::{Classified, Hint, RetryClass, quote_identifier};

use crate::conninfo::PasswordSource;

/// An error or notice of the server, with the fields of the protocol's `ErrorResponse`
/// (PostgreSQL documentation, "Error and Notice Message Fields").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `PANIC`, or for notices `WARNING`, `NOTICE`, ...; never translated.
    pub severity: String,
    /// The five characters of the SQLSTATE code.
    pub sqlstate: String,
    /// The message.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// The server's own hint.
    pub hint: Option<String>,
    /// The call stack (`where` in the protocol): functions, or the line of a COPY.
    pub context: Option<String>,
    /// The schema concerned.
    pub schema: Option<String>,
    /// The table concerned.
    pub table: Option<String>,
    /// The constraint concerned.
    pub constraint: Option<String>,
    /// Where in the statement, in characters from 1.
    pub position: Option<u32>,
    /// The server's function that found it: the same whatever language its messages are in.
    pub routine: Option<String>,
}

/// A field longer than this is cut: a message may quote a whole row.
const FIELD_BYTES_MAX: usize = 16 * 1024;

impl ServerError {
    /// Reads the body of an `ErrorResponse` or `NoticeResponse`. Any bytes will do: what isn't there stays empty.
    pub fn from_body(body: &[u8]) -> Self {
        let mut error = Self::default();
        let mut localized_severity = String::new();
        for field in body.split(|byte| *byte == 0) {
            let Some((kind, value)) = field.split_first() else {
                break;
            };
            let mut text = String::from_utf8_lossy(value).into_owned();
            if text.len() > FIELD_BYTES_MAX {
                let end = (0..=FIELD_BYTES_MAX)
                    .rev()
                    .find(|end| text.is_char_boundary(*end))
                    .unwrap_or_default();
                text.truncate(end);
                text.push_str(" [cut]");
            }
            match kind {
                b'S' => localized_severity = text,
                b'V' => error.severity = text,
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                b'W' => error.context = Some(text),
                b's' => error.schema = Some(text),
                b't' => error.table = Some(text),
                b'n' => error.constraint = Some(text),
                b'P' => error.position = text.parse().ok(),
                b'R' => error.routine = Some(text),
                _ => {}
            }
        }
        if error.severity.is_empty() {
            error.severity = localized_severity;
        }
        error
    }

    /// Does the server end the session with it?
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} (SQLSTATE {})",
            self.severity, self.message, self.sqlstate
        )?;
        for (name, text) in [
            ("detail", &self.detail),
            ("hint", &self.hint),
            ("context", &self.context),
        ] {
            if let Some(text) = text {
                write!(f, "; {name}: {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// Why no connection came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectReason {
    /// Nobody listens there.
    Refused,
    /// The socket file isn't there.
    SocketMissing,
    /// The socket file may not be used by this user.
    SocketDenied,
    /// The name has no address.
    NameNotFound(String),
    /// It took longer than `connect_timeout`.
    TimedOut(Duration),
    /// The server answered with an error other than a failed authentication.
    Server(Box<ServerError>),
    /// The connection was cut before the session began.
    Closed,
    /// A server was reached, but `target_session_attrs` asks for another kind.
    SessionAttributes(String),
    /// The server's operating-system user is another one than `requirepeer` says.
    Peer(String),
    /// Any other failure of the network.
    Io(String),
    /// None of several hosts would do: one reason for each.
    SeveralHosts(Vec<(String, Box<ConnectReason>)>),
}

impl fmt::Display for ConnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::SocketMissing => f.write_str("there is no such socket"),
            Self::SocketDenied => f.write_str("permission denied"),
            Self::NameNotFound(reason) => write!(f, "the host name could not be resolved: {reason}"),
            Self::TimedOut(after) => write!(f, "no answer within {} s", after.as_secs()),
            Self::Server(error) => error.fmt(f),
            Self::Closed => f.write_str("the server closed the connection at once"),
            Self::SessionAttributes(wanted) => {
                write!(f, "the server is not {wanted}, as target_session_attrs asks")
            }
            Self::Peer(reason) | Self::Io(reason) => f.write_str(reason),
            Self::SeveralHosts(reasons) => {
                for (index, (endpoint, reason)) in reasons.iter().enumerate() {
                    let separator = if index == 0 { "" } else { "; " };
                    write!(f, "{separator}{endpoint}: {reason}")?;
                }
                Ok(())
            }
        }
    }
}

/// The server doesn't let a user in, or this side doesn't accept how it would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{endpoint} refuses the user '{user}': {reason}")]
pub struct AuthenticationError {
    /// `host:port` or the socket's path.
    pub endpoint: String,
    /// The role.
    pub user: String,
    /// Why.
    pub reason: String,
    /// The server's code, if it gave one.
    pub sqlstate: Option<String>,
    /// Where the password came from that was sent; `None`: none was sent.
    pub password_source: Option<PasswordSource>,
}

/// What can go wrong between this program and a PostgreSQL server. No message holds a password.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// The server refused a statement.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// There is no connection.
    #[error("cannot connect to {endpoint}: {reason}")]
    Connect {
        /// `host:port` or the socket's path.
        endpoint: String,
        /// Why.
        reason: Box<ConnectReason>,
    },
    /// There is a connection, but not the TLS that was asked for.
    #[error("cannot connect to {endpoint}: TLS: {reason}")]
    Tls {
        /// `host:port`.
        endpoint: String,
        /// Why.
        reason: String,
        /// What to do.
        advice: Option<&'static str>,
    },
    /// The server doesn't let this user in.
    #[error("{0}")]
    Authentication(Box<AuthenticationError>),
    /// What the server sent is not the PostgreSQL protocol, or not what may come here.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// The connection was cut.
    #[error("the server closed the connection unexpectedly")]
    Closed,
    /// The server was silent for too long.
    #[error("no answer from the server within {} s{}", after.as_secs_f64(),
        if *cancelled { "; the statement was cancelled" } else { "; the connection was given up" })]
    Deadline {
        /// How long it was waited for.
        after: Duration,
        /// Did the server confirm that the statement was cancelled?
        cancelled: bool,
    },
    /// The server was silent for long, and didn't answer when it was asked whether it's there, or was silent for much too
    /// long.
    #[error("{endpoint} said nothing for {} s, {reason}", after.as_secs())]
    Silent {
        /// `host:port` or the socket's path.
        endpoint: String,
        /// How long it was waited for.
        after: Duration,
        /// What came of asking.
        reason: String,
    },
    /// The network failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// An earlier failure, or a call that was given up half-way, left the session in an unknown state.
    #[error("the session can't be used any more after an earlier failure")]
    Broken,
    /// A value is not what the caller asked for.
    #[error("column {index}{} is not {expected}", name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default())]
    Value {
        /// The column, from 0.
        index: usize,
        /// Its name.
        name: Option<String>,
        /// What was expected.
        expected: &'static str,
    },
    /// The statement or one of its parameters can't be put into a message: a NUL character, too many parameters.
    #[error("the statement can't be sent: {0}")]
    Statement(String),
    /// A result is larger than a caller that collects it allows.
    #[error("the result is larger than {0} bytes")]
    TooLarge(usize),
}

/// SQLSTATE codes and classes after which the same thing may succeed (PostgreSQL documentation, appendix A).
fn sqlstate_class(code: &str) -> RetryClass {
    match code {
        // admin_shutdown, crash_shutdown, cannot_connect_now, too_many_connections, serialization_failure,
        // deadlock_detected, lock_not_available.
        "57P01" | "57P02" | "57P03" | "53300" | "40001" | "40P01" | "55P03" => RetryClass::Transient,
        _ if code.starts_with("08") => RetryClass::Transient,
        _ => RetryClass::Permanent,
    }
}

impl PgError {
    /// Whether the server refuses to read because a policy hides rows from the role, which takes something else than a
    /// privilege (`check_enable_rls` in PostgreSQL's rls.c).
    pub fn hides_rows(&self) -> bool {
        matches!(self, Self::Server(error) if error.routine.as_deref() == Some(ROW_SECURITY_ROUTINE))
    }

    /// The server's code, if the error is the server's.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => Some(&error.sqlstate),
            Self::Connect { reason, .. } => match reason.as_ref() {
                ConnectReason::Server(error) => Some(&error.sqlstate),
                _ => None,
            },
            Self::Authentication(error) => error.sqlstate.as_deref(),
            _ => None,
        }
    }

    pub(crate) fn protocol(text: impl Into<String>) -> Self {
        Self::Protocol(text.into())
    }

    /// Is the connection gone with it?
    pub(crate) fn ends_session(&self) -> bool {
        match self {
            Self::Server(error) => error.is_fatal(),
            Self::Deadline { cancelled, .. } => !cancelled,
            Self::Value { .. } | Self::TooLarge(_) | Self::Statement(_) => false,
            _ => true,
        }
    }
}

fn reason_class(reason: &ConnectReason) -> RetryClass {
    match reason {
        ConnectReason::Server(error) => sqlstate_class(&error.sqlstate),
        ConnectReason::SocketDenied | ConnectReason::Peer(_) => RetryClass::Permanent,
        ConnectReason::SeveralHosts(reasons) => {
            let transient = reasons
                .iter()
                .any(|(_, reason)| reason_class(reason) == RetryClass::Transient);
            if transient {
                RetryClass::Transient
            } else {
                RetryClass::Permanent
            }
        }
        // A server that restarts refuses, loses its socket, or doesn't answer; names and standbys come and go.
        ConnectReason::Refused
        | ConnectReason::SocketMissing
        | ConnectReason::NameNotFound(_)
        | ConnectReason::TimedOut(_)
        | ConnectReason::Closed
        | ConnectReason::SessionAttributes(_)
        | ConnectReason::Io(_) => RetryClass::Transient,
    }
}

impl Classified for PgError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Server(error) => sqlstate_class(&error.sqlstate),
            Self::Connect { reason, .. } => reason_class(reason),
            Self::Closed | Self::Deadline { .. } | Self::Silent { .. } | Self::Io(_) | Self::Broken => {
                RetryClass::Transient
            }
            Self::Tls { .. }
            | Self::Authentication(_)
            | Self::Protocol(_)
            | Self::Value { .. }
            | Self::Statement(_)
            | Self::TooLarge(_) => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        match self {
            Self::Server(error) => server_hint(error).or_else(|| error.hint.clone().map(Hint::new)),
            Self::Connect { endpoint, reason } => reason_hint(endpoint, reason),
            Self::Tls { advice, .. } => advice.map(Hint::new),
            Self::Authentication(error) => Some(authentication_hint(error)),
            Self::Protocol(_) => Some(Hint::new(
                "check that host and port are those of a PostgreSQL server (15 to 18), and that no proxy in between \
                 changes the protocol",
            )),
            Self::Closed | Self::Io(_) => Some(Hint::new(
                "look into the server's log for a restart or a crash, then run it again",
            )),
            Self::Deadline { .. } => Some(Hint::new(
                "see what the server is waiting for: SELECT pid, wait_event_type, wait_event, query FROM pg_stat_activity",
            )),
            Self::Silent { .. } => Some(Hint::new(
                "look whether the server is stopped or paused (ps -C postgres -o pid,stat,wchan,args; docker ps), or waits for \
                 its storage (dmesg), then run it again",
            )),
            Self::TooLarge(_) | Self::Broken | Self::Value { .. } | Self::Statement(_) => None,
        }
    }
}

/// The server's function that finds a reader who may not see all rows.
const ROW_SECURITY_ROUTINE: &str = "check_enable_rls";

/// Rows that a policy hides would be missing from a dump.
pub(crate) const ROW_SECURITY_HINT: &str = "policies hide rows from this role, and a dump without them would not be whole: let \
     it read all (as a superuser: ALTER ROLE name BYPASSRLS), or connect as a superuser or as the owner of the tables";

fn server_hint(error: &ServerError) -> Option<Hint> {
    let text = match error.sqlstate.as_str() {
        "53300" => "all connections are taken: lower --jobs, or raise max_connections",
        "55P03" => {
            "another session holds the lock: SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity WHERE \
             cardinality(pg_blocking_pids(pid)) > 0"
        }
        // Its messages are in the server's language.
        "42501" if error.routine.as_deref() == Some(ROW_SECURITY_ROUTINE) => ROW_SECURITY_HINT,
        "53100" => "the server's disk is full: free some space, then run it again",
        _ => return None,
    };
    Some(Hint::new(text))
}

fn reason_hint(endpoint: &str, reason: &ConnectReason) -> Option<Hint> {
    let text = match reason {
        ConnectReason::Refused => format!("no server listens on {endpoint}: start it, or correct host and port; test with: pg_isready"),
        ConnectReason::SocketMissing => format!(
            "no server has its socket at {endpoint}: start it, or give host=DIRECTORY (SHOW unix_socket_directories) \
             or host=localhost"
        ),
        ConnectReason::SocketDenied => "run as a user who may enter the socket's directory, or connect with host=localhost".to_owned(),
        ConnectReason::NameNotFound(_) => "correct the host name; within Docker Compose it is the service's name".to_owned(),
        ConnectReason::TimedOut(_) => {
            "a firewall or security group may drop the packets, or the address is wrong; connect_timeout=SECONDS waits longer".to_owned()
        }
        ConnectReason::Server(error) => match error.sqlstate.as_str() {
            "42501" if error.message.contains("for database") => {
                "let the role in, as the database's owner or a superuser: GRANT CONNECT ON DATABASE ... TO ...".to_owned()
            }
            "3D000" => "name an existing database (dbname=... or the path of the URI); list them with: psql -l".to_owned(),
            "57P03" => "the server is starting up or shutting down: try again in a moment".to_owned(),
            "53300" => "all connections are taken: lower --jobs, or raise max_connections".to_owned(),
            _ => return error.hint.clone().map(Hint::new),
        },
        ConnectReason::SeveralHosts(reasons) => {
            let (endpoint, reason) = reasons.first()?;
            return reason_hint(endpoint, reason);
        }
        ConnectReason::Closed | ConnectReason::SessionAttributes(_) | ConnectReason::Peer(_) | ConnectReason::Io(_) => return None,
    };
    Some(Hint::new(text))
}

fn authentication_hint(error: &AuthenticationError) -> Hint {
    if error.sqlstate.as_deref() == Some("28000") && error.reason.contains("pg_hba.conf") {
        return Hint::new(if error.reason.contains("no encryption") {
            "the server may want TLS: try sslmode=require; else add a line for this host, user and database to its \
             pg_hba.conf and run: SELECT pg_reload_conf()"
        } else {
            "add a line for this host, user and database to the server's pg_hba.conf and run: SELECT pg_reload_conf()"
        });
    }
    let missing = format!("role \"{}\" does not exist", error.user);
    if error.reason.contains(&missing) {
        return Hint::new(format!(
            "correct the user's name, or make the role as a superuser: CREATE ROLE {} LOGIN PASSWORD '...' IN ROLE \
             pg_read_all_data",
            quote_identifier(&error.user)
        ));
    }
    match &error.password_source {
        Some(source) => Hint::new(format!(
            "the password that was sent came from {source}: correct it there"
        )),
        None => Hint::new(format!(
            "give the password of '{}' by ~/.pgpass (host:port:database:user:password, chmod 0600) or PGPASSWORD",
            error.user
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the server's function: its messages may be in any language.
    #[test]
    fn hidden_rows_have_a_mend_of_their_own() {
        let hint = |routine: &str| {
            let body = format!("SFEHLER\0VERROR\0C42501\0MAnfrage\0R{routine}\0\0");
            let error = PgError::Server(Box::new(ServerError::from_body(body.as_bytes())));
            error.hint().map(|hint| hint.to_string())
        };
        let hidden = hint("check_enable_rls").unwrap();
        assert!(hidden.contains("ALTER ROLE name BYPASSRLS"), "{hidden}");
        // What the role lacks depends on what it was about to do.
        assert_eq!(hint("aclcheck_error"), None);
    }
}
