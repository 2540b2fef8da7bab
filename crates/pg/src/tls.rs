//! TLS as libpq does it for each `sslmode` (`fe-secure-openssl.c`), by rustls.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::PgError;
use crate::certificate::{self, Verifier};
use crate::conninfo::{Host, HostKind, RootCertificates, SslMode, SslNegotiation, Target, TlsVersion};
use crate::stream::Stream;

/// The name of PostgreSQL's protocol in TLS (IANA registry; libpq offers it since 17).
const ALPN: &[u8] = b"postgresql";
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Certificate revocation lists read from one directory.
const CRL_FILES_MAX: usize = 1000;

fn tls_error(host: &Host, reason: impl Into<String>, advice: Option<&'static str>) -> PgError {
    PgError::Tls {
        endpoint: host.endpoint(),
        reason: reason.into(),
        advice,
    }
}

/// Does the handshake.
pub(crate) async fn handshake(target: &Target, host: &Host, stream: TcpStream) -> Result<Stream, PgError> {
    let config = config(target, host)?;
    let name = match &host.kind {
        HostKind::Network { name, .. } => name.clone(),
        HostKind::Socket(_) => return Err(tls_error(host, "not over a Unix-domain socket", None)),
    };
    let server_name = ServerName::try_from(name.clone()).or_else(|_| {
        // Such a name can't be verified; without verification it doesn't matter.
        let placeholder = (target.sslmode != SslMode::VerifyFull).then_some("invalid.invalid");
        ServerName::try_from(placeholder.unwrap_or_default().to_owned())
    });
    let server_name =
        server_name.map_err(|_| tls_error(host, format!("'{name}' can't stand in a certificate"), None))?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector
        .connect(server_name, stream)
        .await
        .map_err(|error| handshake_error(host, &error))?;
    if target.sslnegotiation == SslNegotiation::Direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(tls_error(
            host,
            "sslnegotiation=direct needs a server that negotiates the protocol (ALPN): PostgreSQL 17 or later",
            Some("leave out sslnegotiation=direct"),
        ));
    }
    Ok(Stream::Tls(Box::new(stream)))
}

/// The hash that binds SCRAM to this TLS session, if it is defined.
pub(crate) fn channel_binding_data(stream: &Stream) -> Option<Vec<u8>> {
    let Stream::Tls(stream) = stream else { return None };
    let leaf = stream.get_ref().1.peer_certificates()?.first()?;
    certificate::server_end_point(leaf)
}

fn handshake_error(host: &Host, error: &io::Error) -> PgError {
    let cause = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(cause) = cause else {
        return tls_error(host, format!("the handshake failed: {error}"), None);
    };
    let (reason, advice) = certificate::explain(cause);
    tls_error(host, reason, advice)
}

fn config(target: &Target, host: &Host) -> Result<ClientConfig, PgError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: Vec<&'static SupportedProtocolVersion> = [
        (TlsVersion::V1_2, &rustls::version::TLS12),
        (TlsVersion::V1_3, &rustls::version::TLS13),
    ]
    .into_iter()
    .filter(|(version, _)| (target.tls_version_min..=target.tls_version_max).contains(version))
    .map(|(_, supported)| supported)
    .collect();
    let verifier = verifier(target, host, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|error| tls_error(host, error.to_string(), None))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match client_certificate(target, host)? {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
            tls_error(
                host,
                format!("the client certificate can't be used: {error}"),
                None,
            )
        })?,
    };
    config.enable_sni = target.sslsni;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// libpq verifies the chain whenever there are root certificates, in every `sslmode`; without any, `verify-*` fails.
fn verifier(target: &Target, host: &Host, provider: &Arc<CryptoProvider>) -> Result<Verifier, PgError> {
    let roots = match &target.sslrootcert {
        RootCertificates::None => None,
        RootCertificates::System => {
            let found = rustls_native_certs::load_native_certs();
            Some(found.certs)
        }
        RootCertificates::File(path) if path.exists() => Some(certificates(host, path)?),
        RootCertificates::File(path) if target.sslmode >= SslMode::VerifyCa => {
            return Err(tls_error(
                host,
                format!("the root certificate file {} doesn't exist", path.display()),
                Some(
                    "name the certificate that signed the server's by sslrootcert=FILE, or use sslrootcert=system",
                ),
            ));
        }
        RootCertificates::File(_) => None,
    };
    let Some(roots) = roots else {
        return Ok(Verifier::unverified(provider));
    };
    let mut store = RootCertStore::empty();
    let (usable, _) = store.add_parsable_certificates(roots.iter().cloned());
    if usable == 0 {
        return Err(tls_error(host, "there is no usable root certificate", None));
    }
    let mut builder =
        WebPkiServerVerifier::builder_with_provider(Arc::new(store.clone()), Arc::clone(provider));
    let lists = revocation_lists(target, host)?;
    let has_lists = !lists.is_empty();
    if has_lists {
        // As libpq has it (X509_V_FLAG_CRL_CHECK_ALL): each certificate of the chain needs its issuer's list, and a list
        // that isn't out of date.
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    let chain: Arc<dyn ServerCertVerifier> = builder
        .build()
        .map_err(|error| tls_error(host, error.to_string(), None))?;
    Ok(Verifier::verified(
        provider,
        chain,
        roots,
        target.sslmode == SslMode::VerifyFull,
        has_lists,
    ))
}

fn read(host: &Host, path: &Path) -> Result<Vec<u8>, PgError> {
    let error = |reason: String| tls_error(host, format!("{}: {reason}", path.display()), None);
    let metadata = std::fs::metadata(path).map_err(|cause| error(cause.to_string()))?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(error("larger than 16 MiB".to_owned()));
    }
    std::fs::read(path).map_err(|cause| error(cause.to_string()))
}

fn certificates(host: &Host, path: &Path) -> Result<Vec<CertificateDer<'static>>, PgError> {
    let bytes = read(host, path)?;
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(tls_error(
            host,
            format!("{} holds no certificate (PEM)", path.display()),
            None,
        )),
        Err(error) => Err(tls_error(host, format!("{}: {error}", path.display()), None)),
    }
}

fn revocation_lists(
    target: &Target,
    host: &Host,
) -> Result<Vec<CertificateRevocationListDer<'static>>, PgError> {
    let mut paths: Vec<PathBuf> = target.sslcrl.iter().cloned().collect();
    if let Some(directory) = &target.sslcrldir {
        let entries = std::fs::read_dir(directory)
            .map_err(|error| tls_error(host, format!("{}: {error}", directory.display()), None))?;
        paths.extend(
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.is_file())
                .take(CRL_FILES_MAX),
        );
    }
    let mut lists = Vec::new();
    for path in paths {
        let bytes = read(host, &path)?;
        for list in CertificateRevocationListDer::pem_slice_iter(&bytes) {
            lists.push(list.map_err(|error| tls_error(host, format!("{}: {error}", path.display()), None))?);
        }
    }
    Ok(lists)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn client_certificate(target: &Target, host: &Host) -> Result<Option<Identity>, PgError> {
    let Some(path) = &target.sslcert else {
        return Ok(None);
    };
    let chain = certificates(host, path)?;
    let Some(key_path) = &target.sslkey else {
        return Err(tls_error(
            host,
            "there is a client certificate but no key",
            Some("name the key by sslkey=FILE"),
        ));
    };
    check_key_permissions(host, key_path)?;
    let bytes = read(host, key_path)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        tls_error(
            host,
            format!("{} holds no unencrypted private key (PEM)", key_path.display()),
            None,
        )
    })?;
    Ok(Some((chain, key)))
}

/// As libpq: a key may be read by nobody else, or, if it is root's, by its group.
fn check_key_permissions(host: &Host, path: &Path) -> Result<(), PgError> {
    let metadata = File::open(path)
        .and_then(|file| file.metadata())
        .map_err(|error| tls_error(host, format!("{}: {error}", path.display()), None))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden == 0 {
        return Ok(());
    }
    Err(tls_error(
        host,
        format!("the private key {} has group or world access", path.display()),
        Some("run: chmod 0600 on the key file (0640 if root owns it)"),
    ))
}
