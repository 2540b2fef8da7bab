//! Which certificates are accepted, where libpq (OpenSSL) and rustls differ.

use std::net::IpAddr;
use std::sync::Arc;

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Verifies servers' certificates as libpq does.
#[derive(Debug)]
pub(crate) struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// Without it, nothing is verified but that the server has the key of the certificate it shows.
    chain: Option<Chain>,
}

#[derive(Debug)]
struct Chain {
    webpki: Arc<dyn ServerCertVerifier>,
    roots: Vec<CertificateDer<'static>>,
    /// `verify-full`.
    names: bool,
    /// There are revocation lists, which only webpki compares with.
    has_lists: bool,
}

impl Verifier {
    pub(crate) fn unverified(provider: &CryptoProvider) -> Self {
        Self {
            algorithms: provider.signature_verification_algorithms,
            chain: None,
        }
    }

    pub(crate) fn verified(
        provider: &CryptoProvider,
        webpki: Arc<dyn ServerCertVerifier>,
        roots: Vec<CertificateDer<'static>>,
        names: bool,
        has_lists: bool,
    ) -> Self {
        Self {
            algorithms: provider.signature_verification_algorithms,
            chain: Some(Chain {
                webpki,
                roots,
                names,
                has_lists,
            }),
        }
    }

    /// Verifies a signature of the handshake with the certificate's key. webpki reads X.509 version 3 only; OpenSSL
    /// makes version 1 by the recipe of PostgreSQL's documentation, so the key is taken out by another parser.
    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
        by_webpki: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        if !matches!(&by_webpki, Err(Error::InvalidCertificate(_))) {
            return by_webpki;
        }
        let Some(parsed) = parse_version_1(certificate) else {
            return by_webpki;
        };
        let algorithms = self
            .algorithms
            .mapping
            .iter()
            .find(|(scheme, _)| *scheme == signed.scheme);
        let candidates = algorithms.map(|(_, candidates)| *candidates).unwrap_or_default();
        let valid = candidates.iter().any(|algorithm| {
            key_of(&parsed).is_some_and(|(identifier, key)| {
                algorithm.public_key_alg_id().as_ref() == identifier.as_slice()
                    && algorithm
                        .verify_signature(&key, message, signed.signature())
                        .is_ok()
            })
        });
        if valid {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified =
            chain
                .webpki
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // webpki checks the chain first, so that with an error about the name the chain is right.
            Ok(_) => {}
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => {}
            Err(error) => chain
                .accept_otherwise(end_entity, &self.algorithms, now)
                .ok_or(error)?,
        }
        if chain.names {
            verify_name(end_entity, server_name)
        } else {
            Ok(ServerCertVerified::assertion())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let by_webpki =
            rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms);
        self.verify_signature(message, certificate, signed, by_webpki)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let by_webpki =
            rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms);
        self.verify_signature(message, certificate, signed, by_webpki)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Chain {
    /// What OpenSSL accepts and webpki doesn't: the server's certificate is itself a configured root (PostgreSQL's
    /// documented self-signed certificate: CaUsedAsEndEntity), or it is of X.509 version 1, without extensions that
    /// could restrict it, and signed directly by a configured root. Where there are revocation lists, neither: nothing here
    /// could tell whether it was revoked.
    fn accept_otherwise(
        &self,
        leaf: &CertificateDer<'_>,
        algorithms: &WebPkiSupportedAlgorithms,
        now: UnixTime,
    ) -> Option<()> {
        if self.has_lists {
            return None;
        }
        let parsed = Certificate::from_der(leaf).ok()?;
        let validity = parsed.tbs_certificate().validity();
        let now = now.as_secs();
        if now < validity.not_before.to_unix_duration().as_secs()
            || now > validity.not_after.to_unix_duration().as_secs()
        {
            return None;
        }
        if self.roots.iter().any(|root| root.as_ref() == leaf.as_ref()) {
            return Some(());
        }
        let parsed = parse_version_1(leaf)?;
        let issued = self
            .roots
            .iter()
            .any(|root| is_issuer(root, &parsed, algorithms).unwrap_or(false));
        issued.then_some(())
    }
}

/// The certificate, if it is one of version 1.
fn parse_version_1(certificate: &CertificateDer<'_>) -> Option<Certificate> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let tbs = parsed.tbs_certificate();
    (tbs.version() == x509_cert::Version::V1 && tbs.extensions().is_none()).then_some(parsed)
}

/// The contents of the key's AlgorithmIdentifier and the key, as webpki's algorithms want them.
fn key_of(certificate: &Certificate) -> Option<(Vec<u8>, Vec<u8>)> {
    let info = certificate.tbs_certificate().subject_public_key_info();
    Some((
        sequence_contents(&info.algorithm.to_der().ok()?)?,
        info.subject_public_key.as_bytes()?.to_vec(),
    ))
}

/// What is inside of a DER SEQUENCE.
fn sequence_contents(der: &[u8]) -> Option<Vec<u8>> {
    let any = x509_cert::der::asn1::AnyRef::from_der(der).ok()?;
    Some(any.value().to_vec())
}

/// Did this root sign that certificate?
fn is_issuer(
    root: &CertificateDer<'_>,
    certificate: &Certificate,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Option<bool> {
    let root = Certificate::from_der(root).ok()?;
    if root.tbs_certificate().subject() != certificate.tbs_certificate().issuer() {
        return Some(false);
    }
    let (key_algorithm, key) = key_of(&root)?;
    let signature_algorithm = sequence_contents(&certificate.signature_algorithm().to_der().ok()?)?;
    if certificate.signature_algorithm() != certificate.tbs_certificate().signature() {
        return Some(false);
    }
    let message = certificate.tbs_certificate().to_der().ok()?;
    let signature = certificate.signature().as_bytes()?;
    Some(algorithms.all.iter().any(|algorithm| {
        algorithm.public_key_alg_id().as_ref() == key_algorithm.as_slice()
            && algorithm.signature_alg_id().as_ref() == signature_algorithm.as_slice()
            && algorithm.verify_signature(&key, &message, signature).is_ok()
    }))
}

/// `pq_verify_peer_name_matches_certificate`: the subject's alternative names, or, where it has none of a fitting kind,
/// its common name.
fn verify_name(leaf: &CertificateDer<'_>, server_name: &ServerName<'_>) -> Result<ServerCertVerified, Error> {
    let by_webpki =
        ParsedCertificate::try_from(leaf).and_then(|parsed| verify_server_name(&parsed, server_name));
    let Err(error) = by_webpki else {
        return Ok(ServerCertVerified::assertion());
    };
    let parsed = Certificate::from_der(leaf).map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let alternatives = parsed
        .tbs_certificate()
        .get_extension::<SubjectAltName>()
        .ok()
        .flatten();
    let names_a_host = alternatives.is_some_and(|(_, names)| {
        names
            .0
            .iter()
            .any(|name| matches!(name, GeneralName::DnsName(_) | GeneralName::IpAddress(_)))
    });
    if names_a_host {
        return Err(error);
    }
    let common_name = common_name(&parsed).ok_or(error)?;
    let wanted = server_name.to_str();
    if name_matches(&common_name, &wanted) {
        return Ok(ServerCertVerified::assertion());
    }
    Err(Error::InvalidCertificate(CertificateError::Other(OtherError(
        Arc::new(OtherName {
            certificate: common_name,
            wanted: wanted.into_owned(),
        }),
    ))))
}

#[derive(Debug, thiserror::Error)]
#[error("it is for '{certificate}', not for '{wanted}'")]
struct OtherName {
    certificate: String,
    wanted: String,
}

fn common_name(certificate: &Certificate) -> Option<String> {
    /// id-at-commonName.
    const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
    let subject = certificate.tbs_certificate().subject();
    // libpq takes the first one that OpenSSL finds.
    let attribute = subject.iter().find(|attribute| attribute.oid == COMMON_NAME)?;
    let text = std::str::from_utf8(attribute.value.value()).ok()?;
    // A NUL would hide what follows from C programs.
    (!text.contains('\0')).then(|| text.to_owned())
}

/// Case doesn't count; `*.` stands for one label (`wildcard_certificate_match`); addresses match only as a whole.
fn name_matches(pattern: &str, name: &str) -> bool {
    if pattern.eq_ignore_ascii_case(name) {
        return true;
    }
    if name.parse::<IpAddr>().is_ok() {
        return false;
    }
    match (pattern.strip_prefix("*."), name.split_once('.')) {
        (Some(suffix), Some((label, rest))) => {
            !label.is_empty() && suffix.contains('.') && suffix.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

/// `tls-server-end-point` (RFC 5929): the certificate's hash, by the hash function of its signature; SHA-256 instead of
/// MD5 and SHA-1. Not defined for signatures without one (Ed25519).
pub(crate) fn server_end_point(leaf: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(leaf).ok()?;
    let algorithm = match certificate.signature_algorithm().oid.to_string().as_str() {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, leaf).as_ref().to_vec())
}

/// A reason and advice for a failed handshake.
pub(crate) fn explain(error: &Error) -> (String, Option<&'static str>) {
    const OTHER_ROOT: &str = "name the certificate that signed the server's by sslrootcert=FILE";
    const OTHER_NAME: &str = "connect by a name that is in the certificate, or use sslmode=verify-ca";
    let advice = match error {
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer => Some(OTHER_ROOT),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Some(OTHER_NAME)
            }
            CertificateError::Other(OtherError(inner)) if inner.is::<OtherName>() => Some(OTHER_NAME),
            CertificateError::Other(OtherError(inner)) if inner.to_string().contains("CaUsedAsEndEntity") => {
                Some(
                    "the server shows a certificate of a CA: give it one of its own, or name that very one by sslrootcert=FILE",
                )
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Some("renew the server's certificate; check this machine's clock")
            }
            CertificateError::UnknownRevocationStatus => Some(
                "give sslcrl=FILE the list of each issuer in the server's chain, or leave sslcrl, sslcrldir and \
                 ~/.postgresql/root.crl out",
            ),
            CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => {
                Some("fetch the issuer's present revocation list; check this machine's clock")
            }
            CertificateError::Revoked => Some("renew the server's certificate: it was revoked"),
            _ => None,
        },
        Error::AlertReceived(_) => {
            Some("the server refused the handshake: its log says why (client certificate, TLS version)")
        }
        _ => None,
    };
    let reason = match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            format!("the server's certificate is not accepted: {inner}")
        }
        Error::InvalidCertificate(reason) => format!("the server's certificate is not accepted: {reason}"),
        other => format!("the handshake failed: {other}"),
    };
    (reason, advice)
}
