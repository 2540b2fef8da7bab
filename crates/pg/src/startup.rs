//! The first messages of a session: startup, authentication, parameters (`fe-auth.c`, `fe-auth-scram.c`).

use std::collections::BTreeMap;

use bytes::BytesMut;
use pgkeep_base::Secret;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, ScramSha256};
use postgres_protocol::message::{backend, frontend};

use crate::cancel::CancelHandle;
use crate::conninfo::{ChannelBinding, Host, PasswordSource, Target};
use crate::error::{AuthenticationError, ConnectReason, ServerError};
use crate::session::{Opened, Session, parameter_status};
use crate::stream::{Address, Stream};
use crate::wire::Wire;
use crate::{PgError, connect, tls};

/// Parameters, notices and the like before the first ReadyForQuery.
const MESSAGES_MAX: usize = 1000;

/// Codes of AuthenticationRequest (protocol documentation, "Message Formats").
mod request {
    pub(super) const OK: i32 = 0;
    pub(super) const CLEARTEXT: i32 = 3;
    pub(super) const MD5: i32 = 5;
    pub(super) const SASL: i32 = 10;
    pub(super) const SASL_CONTINUE: i32 = 11;
    pub(super) const SASL_FINAL: i32 = 12;
}

/// Opens a stream and goes through the startup.
pub(crate) async fn open_session(
    target: &Target,
    host: &Host,
    address: &Address,
    tls: bool,
) -> Result<Session, PgError> {
    let stream = connect::open(target, host, address, tls).await?;
    begin_session(stream, target, host, address, tls).await
}

/// Goes through the startup on an open stream.
pub(crate) async fn begin_session(
    stream: Stream,
    target: &Target,
    host: &Host,
    address: &Address,
    tls: bool,
) -> Result<Session, PgError> {
    let binding = tls::channel_binding_data(&stream);
    let mut startup = Startup {
        wire: Wire::new(stream),
        target,
        host,
        tls,
        binding,
        password: target.password_for(host),
        password_sent: false,
        method: "none",
        notices: Vec::new(),
    };
    let (parameters, (process_id, secret_key)) = match startup.run().await {
        Ok(known) => known,
        Err(error) => return Err(startup.in_context(error)),
    };
    startup.wire.authenticated();
    let cancel = CancelHandle {
        target: target.pinned(host, address),
        host: host.clone(),
        address: address.clone(),
        tls,
        process_id,
        secret_key,
    };
    let Startup { wire, notices, .. } = startup;
    Ok(Session::opened(Opened {
        wire,
        target: target.pinned(host, address),
        cancel,
        process_id,
        parameters,
        notices,
    }))
}

type Parameters = BTreeMap<String, String>;

struct Startup<'a> {
    wire: Wire,
    target: &'a Target,
    host: &'a Host,
    tls: bool,
    /// The hash of the server's certificate, if there is TLS and the hash is defined.
    binding: Option<Vec<u8>>,
    password: Option<(Secret, PasswordSource)>,
    password_sent: bool,
    /// As `require_auth` calls it.
    method: &'static str,
    notices: Vec<ServerError>,
}

impl Startup<'_> {
    /// Parameters and cancel key of the new session.
    async fn run(&mut self) -> Result<(Parameters, (i32, i32)), PgError> {
        self.send_startup().await?;
        self.authenticate().await?;
        let mut parameters = Parameters::new();
        let mut key = (0, 0);
        for _ in 0..MESSAGES_MAX {
            let frame = self.wire.next_frame().await?;
            let body = self.wire.body(frame);
            match frame.tag {
                backend::PARAMETER_STATUS_TAG => parameters.extend(parameter_status(body)),
                backend::BACKEND_KEY_DATA_TAG => key = key_data(body)?,
                backend::NOTICE_RESPONSE_TAG => self.notices.push(ServerError::from_body(body)),
                backend::ERROR_RESPONSE_TAG => {
                    return Err(PgError::Server(Box::new(ServerError::from_body(body))));
                }
                backend::READY_FOR_QUERY_TAG => return Ok((parameters, key)),
                tag => {
                    return Err(PgError::protocol(format!(
                        "unexpected '{}' at startup",
                        tag.escape_ascii()
                    )));
                }
            }
        }
        Err(PgError::protocol(format!(
            "more than {MESSAGES_MAX} messages at startup"
        )))
    }

    async fn send_startup(&mut self) -> Result<(), PgError> {
        let target = self.target;
        let mut parameters = vec![
            ("user", target.user.as_str()),
            ("database", target.database.as_str()),
            ("client_encoding", "UTF8"),
            ("application_name", target.application_name.as_str()),
        ];
        parameters.extend(target.options.as_deref().map(|options| ("options", options)));
        parameters.extend(
            target
                .replication
                .as_deref()
                .map(|replication| ("replication", replication)),
        );
        let mut message = BytesMut::new();
        frontend::startup_message(parameters, &mut message)?;
        self.wire.write_all(&message).await
    }

    async fn send(&mut self, message: &BytesMut) -> Result<(), PgError> {
        self.wire.write_all(message).await
    }

    /// The next AuthenticationRequest: its code and its data.
    async fn next_request(&mut self) -> Result<(i32, Vec<u8>), PgError> {
        for _ in 0..MESSAGES_MAX {
            let frame = self.wire.next_frame().await?;
            let body = self.wire.body(frame);
            match frame.tag {
                backend::AUTHENTICATION_TAG => {
                    let (code, data) = body
                        .split_first_chunk::<4>()
                        .ok_or_else(|| PgError::protocol("an AuthenticationRequest is broken"))?;
                    return Ok((i32::from_be_bytes(*code), data.to_vec()));
                }
                backend::ERROR_RESPONSE_TAG => {
                    return Err(PgError::Server(Box::new(ServerError::from_body(body))));
                }
                backend::NOTICE_RESPONSE_TAG => self.notices.push(ServerError::from_body(body)),
                // The server doesn't know protocol 3.0 options; only those that begin with _pq_ come here.
                b'v' => {}
                tag => {
                    let text = format!(
                        "expected an authentication request, but received '{}'",
                        tag.escape_ascii()
                    );
                    return Err(PgError::Protocol(text));
                }
            }
        }
        Err(PgError::protocol(format!(
            "more than {MESSAGES_MAX} messages at startup"
        )))
    }

    async fn authenticate(&mut self) -> Result<(), PgError> {
        let (code, data) = self.next_request().await?;
        match code {
            request::OK => self.check_method("none"),
            request::CLEARTEXT => {
                self.check_method("password")?;
                let password = self.password()?;
                self.send_password(password.expose().as_bytes()).await
            }
            request::MD5 => {
                self.check_method("md5")?;
                let salt: [u8; 4] = data
                    .try_into()
                    .map_err(|_| PgError::protocol("the salt for md5 has not 4 bytes"))?;
                let password = self.password()?;
                let hash = md5_hash(self.target.user.as_bytes(), password.expose().as_bytes(), salt);
                self.send_password(hash.as_bytes()).await
            }
            request::SASL => self.sasl(&data).await,
            other => {
                let name = match other {
                    2 => "Kerberos 5".to_owned(),
                    7 | 8 => "GSSAPI".to_owned(),
                    9 => "SSPI".to_owned(),
                    code => format!("number {code}"),
                };
                Err(self.refused(format!(
                    "the server asks for the authentication method {name}, which is not supported"
                )))
            }
        }
    }

    /// Sends a password or its hash, and expects to be let in.
    async fn send_password(&mut self, password: &[u8]) -> Result<(), PgError> {
        if password.contains(&0) {
            return Err(self.refused("the password holds a NUL character".to_owned()));
        }
        let mut message = BytesMut::new();
        frontend::password_message(password, &mut message)?;
        self.password_sent = true;
        self.send(&message).await?;
        self.expect_ok().await
    }

    async fn expect_ok(&mut self) -> Result<(), PgError> {
        match self.next_request().await? {
            (request::OK, _) => Ok(()),
            (code, _) => Err(PgError::protocol(format!(
                "unexpected authentication request {code}"
            ))),
        }
    }

    fn password(&self) -> Result<Secret, PgError> {
        match &self.password {
            Some((password, _)) => Ok(password.clone()),
            None => Err(self.refused("the server asks for a password, and there is none".to_owned())),
        }
    }

    /// `require_auth` and `channel_binding=require`: may the server authenticate this way?
    fn check_method(&mut self, method: &'static str) -> Result<(), PgError> {
        self.method = method;
        if let Some((wanted, methods)) = &self.target.require_auth
            && methods.iter().any(|name| name == method) != *wanted
        {
            return Err(self.refused(format!(
                "require_auth doesn't allow the server's method '{method}'"
            )));
        }
        if self.target.channel_binding == ChannelBinding::Require && method != "scram-sha-256" {
            return Err(self.refused(format!(
                "channel_binding=require, but the server's method '{method}' has no channel binding"
            )));
        }
        Ok(())
    }

    /// SCRAM-SHA-256, with channel binding where both sides can (RFC 5802, RFC 5929, protocol documentation, "SASL
    /// Authentication").
    async fn sasl(&mut self, mechanisms: &[u8]) -> Result<(), PgError> {
        self.check_method("scram-sha-256")?;
        let offers = |name: &str| {
            mechanisms
                .split(|byte| *byte == 0)
                .any(|mechanism| mechanism == name.as_bytes())
        };
        let wanted = self.target.channel_binding;
        let binding = self
            .binding
            .clone()
            .filter(|_| self.tls && wanted != ChannelBinding::Disable);
        let plus = offers(sasl::SCRAM_SHA_256_PLUS);
        let (mechanism, binding) = match binding {
            Some(hash) if plus => (
                sasl::SCRAM_SHA_256_PLUS,
                sasl::ChannelBinding::tls_server_end_point(hash),
            ),
            _ if wanted == ChannelBinding::Require => {
                return Err(self.refused(
                    "channel_binding=require, but the connection or the server can't do it".to_owned(),
                ));
            }
            _ if !offers(sasl::SCRAM_SHA_256) => {
                return Err(self.refused("the server offers no SASL mechanism that is supported".to_owned()));
            }
            // "y": this side could, and believes that the server can't; a server that can then knows it was lied to.
            Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
            None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        };
        let password = self.password()?;
        let mut scram = ScramSha256::new(password.expose().as_bytes(), binding);
        let mut message = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut message)?;
        self.password_sent = true;
        self.send(&message).await?;
        let data = self.expect_request(request::SASL_CONTINUE).await?;
        scram
            .update(&data)
            .map_err(|error| self.refused(format!("SCRAM: {error}")))?;
        message.clear();
        frontend::sasl_response(scram.message(), &mut message)?;
        self.send(&message).await?;
        let data = self.expect_request(request::SASL_FINAL).await?;
        // Proves that the server knows the password too.
        scram
            .finish(&data)
            .map_err(|error| self.refused(format!("SCRAM: the server's proof is wrong: {error}")))?;
        self.expect_ok().await
    }

    async fn expect_request(&mut self, wanted: i32) -> Result<Vec<u8>, PgError> {
        match self.next_request().await? {
            (code, data) if code == wanted => Ok(data),
            (code, _) => Err(PgError::protocol(format!(
                "unexpected authentication request {code} within SASL"
            ))),
        }
    }

    fn refused(&self, reason: String) -> PgError {
        PgError::Authentication(Box::new(AuthenticationError {
            endpoint: self.host.endpoint(),
            user: self.target.user.clone(),
            reason,
            sqlstate: None,
            password_source: None,
        }))
    }

    /// Says where and as whom.
    fn in_context(&self, error: PgError) -> PgError {
        let endpoint = self.host.endpoint();
        match error {
            // Class 28: invalid authorization specification.
            PgError::Server(error) if error.sqlstate.starts_with("28") => {
                let source = self
                    .password
                    .clone()
                    .filter(|_| self.password_sent)
                    .map(|(_, source)| source);
                PgError::Authentication(Box::new(AuthenticationError {
                    endpoint,
                    user: self.target.user.clone(),
                    reason: error.message.clone(),
                    sqlstate: Some(error.sqlstate.clone()),
                    password_source: source,
                }))
            }
            PgError::Server(error) => connect::connect_error(endpoint, ConnectReason::Server(error)),
            PgError::Closed => connect::connect_error(endpoint, ConnectReason::Closed),
            PgError::Io(error) => connect::connect_error(endpoint, connect::io_reason(&error)),
            other => other,
        }
    }
}

/// Process and key for cancel requests.
fn key_data(body: &[u8]) -> Result<(i32, i32), PgError> {
    let broken = || PgError::protocol("BackendKeyData is broken");
    let (process_id, rest) = body.split_first_chunk::<4>().ok_or_else(broken)?;
    let key: [u8; 4] = rest.try_into().map_err(|_| broken())?;
    Ok((i32::from_be_bytes(*process_id), i32::from_be_bytes(key)))
}
