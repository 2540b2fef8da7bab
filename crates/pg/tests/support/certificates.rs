//! Certificates, and servers that show them.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgkeep_base::{Classified, RetryClass};
use pgkeep_pg::{PgError, Session, Target};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

use super::{TestServer, major};

pub fn params(common_name: &str, names: &[&str], ca: bool) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        });
    }
    if ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params
}

/// A certificate that signs, and what it signs with.
pub struct Root {
    pub certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Root {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = params(name, &[], true);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn sign(&self, params: CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }
}

impl Root {
    /// The list of what it has revoked.
    pub fn revocation_list(&self, revoked: &[u64], until_year: i32) -> String {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until_year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

pub fn write(path: &Path, text: &str) -> PathBuf {
    std::fs::write(path, text).unwrap();
    path.to_owned()
}

/// Gives the server a certificate and turns TLS on; works on a running server too.
pub async fn install(server: &TestServer, certificate: &str, key: &str) {
    use std::os::unix::fs::MetadataExt;
    let data = server.server.data_directory();
    write(&data.join("server.crt"), certificate);
    // The server refuses a key of somebody else.
    let path = write(&data.join("server.key"), key);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let owner = std::fs::metadata(data).unwrap();
    std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    std::os::unix::fs::chown(data.join("server.crt"), Some(owner.uid()), Some(owner.gid())).unwrap();
}

pub async fn tls_server(certificate: &str, key: &str, settings: &[(&str, &str)]) -> TestServer {
    let mut server = TestServer::new(major()).await;
    install(&server, certificate, key).await;
    let settings: Vec<_> = [("ssl", "on")].iter().chain(settings).copied().collect();
    server.start(&settings).await;
    server
}

/// Is the session encrypted, as the server sees it?
pub async fn encrypted(target: &Target) -> Result<bool, PgError> {
    let mut session = Session::connect(target).await?;
    let rows = session
        .query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .await?;
    session.close().await;
    rows[0].get(0)
}

pub fn tls_reason(result: Result<bool, PgError>) -> String {
    match result {
        Err(error @ PgError::Tls { .. }) => {
            assert_eq!(error.retry_class(), RetryClass::Permanent);
            error.to_string()
        }
        other => panic!("expected an error of TLS: {other:?}"),
    }
}
