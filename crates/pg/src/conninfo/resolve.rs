//! From settings to a target (`fe-connect.c`, `conninfo_add_defaults` and `pqConnectOptions2`).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgkeep_base::Secret;

use super::keywords::{KEYWORDS, Support};
use super::parse::Settings;
use super::passfile::{IgnoredPassfile, PassFile, PasswordSource};
use super::target::{
    ChannelBinding, Host, HostKind, Keepalives, RootCertificates, SessionAttributes, SslMode, SslNegotiation,
    TlsVersion,
};
use super::{ConninfoError, Environment, Target, service};

/// Where the packaged servers, then the ones built from source, put their sockets.
pub(crate) const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const PORT_DEFAULT: u16 = 5432;
/// libpq waits for ever; a backup must not.
pub(crate) const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
/// The kernel's defaults notice a vanished server after two hours; these after two minutes.
const KEEPALIVES_IDLE_DEFAULT: Duration = Duration::from_secs(60);
const KEEPALIVES_INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
const KEEPALIVES_COUNT_DEFAULT: u32 = 6;
pub(crate) const APPLICATION_NAME_DEFAULT: &str = "pgkeep";
const HOSTS_MAX: usize = 64;

struct Resolver<'a> {
    settings: Settings,
    password_source: PasswordSource,
    environment: &'a Environment,
}

pub(crate) fn resolve(written: &Settings, environment: &Environment) -> Result<Target, ConninfoError> {
    let mut settings = written.clone();
    let mut password_source = PasswordSource::ConnectionString;
    let value = |name: &str, variable: &str| {
        written
            .get(name)
            .cloned()
            .or_else(|| environment.variable(variable))
    };
    if let Some(name) = value("service", "PGSERVICE").filter(|name| !name.is_empty()) {
        let file = value("servicefile", "PGSERVICEFILE");
        let (from_service, path) = service::read(&name, file.as_deref(), environment)?;
        for (name, value) in from_service {
            if !settings.contains_key(name) {
                if name == "password" {
                    password_source = PasswordSource::ServiceFile(path.clone());
                }
                settings.insert(name, value);
            }
        }
    }
    for keyword in KEYWORDS.iter().filter(|keyword| keyword.support == Support::Full) {
        let Some(value) = keyword
            .variable
            .and_then(|variable| environment.variable(variable))
        else {
            continue;
        };
        if !settings.contains_key(keyword.name) {
            if keyword.name == "password" {
                password_source = PasswordSource::Variable("PGPASSWORD");
            }
            settings.insert(keyword.name, value);
        }
    }
    Resolver {
        settings,
        password_source,
        environment,
    }
    .target()
}

fn bad_value(parameter: &'static str, reason: impl Into<String>) -> ConninfoError {
    ConninfoError::Value {
        parameter,
        reason: reason.into(),
    }
}

impl Resolver<'_> {
    /// A setting; the empty one counts as absent, as almost everywhere in libpq.
    fn get(&self, name: &'static str) -> Option<&str> {
        self.settings
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    fn target(&self) -> Result<Target, ConninfoError> {
        let user = self
            .get("user")
            .or_else(|| self.environment.user())
            .ok_or(ConninfoError::NoUser)?
            .to_owned();
        let database = self.get("dbname").unwrap_or(&user).to_owned();
        let password = self
            .get("password")
            .map(|password| (Secret::new(password), self.password_source.clone()));
        let (sslmode, sslrootcert) = self.tls_mode()?;
        let (sslcert, sslkey) = self.client_certificate()?;
        let (sslcrl, sslcrldir) = self.revocation_lists();
        let tls_version_min = self
            .tls_version("ssl_min_protocol_version")?
            .unwrap_or(TlsVersion::V1_2);
        let tls_version_max = self
            .tls_version("ssl_max_protocol_version")?
            .unwrap_or(TlsVersion::V1_3);
        if tls_version_min > tls_version_max {
            return Err(bad_value(
                "ssl_min_protocol_version",
                "it is above ssl_max_protocol_version",
            ));
        }
        let (passfile, passfile_ignored) = self.passfile();
        Ok(Target {
            hosts: self.hosts()?,
            user,
            database,
            password,
            passfile,
            passfile_ignored,
            sslmode,
            sslnegotiation: self.negotiation(sslmode)?,
            sslrootcert,
            sslcert,
            sslkey,
            sslcrl,
            sslcrldir,
            sslsni: self.flag("sslsni")?,
            tls_version_min,
            tls_version_max,
            channel_binding: self.choice(
                "channel_binding",
                &[
                    ("disable", ChannelBinding::Disable),
                    ("prefer", ChannelBinding::Prefer),
                    ("require", ChannelBinding::Require),
                ],
                ChannelBinding::Prefer,
            )?,
            require_auth: self.require_auth()?,
            requirepeer: self.get("requirepeer").map(str::to_owned),
            target_session_attrs: self.session_attributes()?,
            load_balance: self.choice(
                "load_balance_hosts",
                &[("disable", false), ("random", true)],
                false,
            )?,
            connect_timeout: self.connect_timeout()?,
            application_name: self
                .get("application_name")
                .or_else(|| self.get("fallback_application_name"))
                .unwrap_or(APPLICATION_NAME_DEFAULT)
                .to_owned(),
            options: self.get("options").map(str::to_owned),
            keepalives: self.keepalives()?,
            silence: crate::silence::Silence::default(),
            replication: self.get("replication").map(str::to_owned),
        })
    }

    /// One of several words.
    fn choice<T: Copy>(
        &self,
        name: &'static str,
        words: &[(&str, T)],
        default: T,
    ) -> Result<T, ConninfoError> {
        let Some(value) = self.get(name) else {
            return Ok(default);
        };
        words
            .iter()
            .find(|(word, _)| *word == value)
            .map(|(_, choice)| *choice)
            .ok_or_else(|| {
                let known = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
                bad_value(name, format!("'{value}' is none of {known}"))
            })
    }

    /// `parse_int_param`: a number with blanks around it.
    fn integer(&self, name: &'static str) -> Result<Option<i32>, ConninfoError> {
        let parse = |value: &str| {
            value
                .trim()
                .parse()
                .map_err(|_| bad_value(name, format!("'{value}' is not a number")))
        };
        self.get(name).map(parse).transpose()
    }

    /// On unless it is 0.
    fn flag(&self, name: &'static str) -> Result<bool, ConninfoError> {
        Ok(self.integer(name)?.unwrap_or(1) != 0)
    }

    /// A positive number of seconds or milliseconds; 0 and less stand for the default.
    fn positive(&self, name: &'static str) -> Result<Option<u32>, ConninfoError> {
        Ok(self
            .integer(name)?
            .and_then(|value| u32::try_from(value).ok())
            .filter(|value| *value > 0))
    }

    fn connect_timeout(&self) -> Result<Duration, ConninfoError> {
        let seconds = self.positive("connect_timeout")?;
        // libpq: "rounding connect_timeout=1 up to 2".
        Ok(seconds.map_or(CONNECT_TIMEOUT_DEFAULT, |seconds| {
            Duration::from_secs(u64::from(seconds.max(2)))
        }))
    }

    fn keepalives(&self) -> Result<Keepalives, ConninfoError> {
        let seconds = |name| {
            Ok(self
                .positive(name)?
                .map(|seconds| Duration::from_secs(u64::from(seconds))))
        };
        Ok(Keepalives {
            enabled: self.flag("keepalives")?,
            idle: seconds("keepalives_idle")?.or(Some(KEEPALIVES_IDLE_DEFAULT)),
            interval: seconds("keepalives_interval")?.or(Some(KEEPALIVES_INTERVAL_DEFAULT)),
            count: self
                .positive("keepalives_count")?
                .or(Some(KEEPALIVES_COUNT_DEFAULT)),
            user_timeout: self
                .positive("tcp_user_timeout")?
                .map(|ms| Duration::from_millis(u64::from(ms))),
        })
    }

    fn hosts(&self) -> Result<Vec<Host>, ConninfoError> {
        let names: Vec<&str> = self
            .get("host")
            .map(|list| list.split(',').collect())
            .unwrap_or_default();
        let addresses: Vec<&str> = self
            .get("hostaddr")
            .map(|list| list.split(',').collect())
            .unwrap_or_default();
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return Err(bad_value(
                "hostaddr",
                format!(
                    "there are {} host names for {} addresses",
                    names.len(),
                    addresses.len()
                ),
            ));
        }
        let count = names.len().max(addresses.len()).max(1);
        if count > HOSTS_MAX {
            return Err(bad_value(
                "host",
                format!("there are more than {HOSTS_MAX} hosts"),
            ));
        }
        let ports = self.ports(count)?;
        let host = |(index, port)| {
            let name = names.get(index).copied().unwrap_or_default();
            let address = addresses.get(index).copied().unwrap_or_default();
            Ok(Host {
                kind: host_kind(name, address, port)?,
                port,
            })
        };
        ports.into_iter().enumerate().map(host).collect()
    }

    fn ports(&self, hosts: usize) -> Result<Vec<u16>, ConninfoError> {
        let list: Vec<&str> = self
            .get("port")
            .map(|list| list.split(',').collect())
            .unwrap_or_default();
        if list.len() > 1 && list.len() != hosts {
            return Err(bad_value(
                "port",
                format!("there are {} ports for {hosts} hosts", list.len()),
            ));
        }
        let parse = |text: &str| match text.trim() {
            "" => Ok(PORT_DEFAULT),
            text => text
                .parse::<u16>()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| bad_value("port", "a port is a number from 1 to 65535")),
        };
        (0..hosts)
            .map(|index| parse(list.get(index).or(list.first()).copied().unwrap_or_default()))
            .collect()
    }

    /// `sslmode` and the root certificates, which depend on each other.
    fn tls_mode(&self) -> Result<(SslMode, RootCertificates), ConninfoError> {
        let system = self.get("sslrootcert") == Some("system");
        let legacy = self
            .environment
            .variable("PGREQUIRESSL")
            .is_some_and(|value| value.starts_with('1'));
        let default = match (system, legacy) {
            (true, _) => SslMode::VerifyFull,
            (false, true) => SslMode::Require,
            (false, false) => SslMode::Prefer,
        };
        let words = [
            SslMode::Disable,
            SslMode::Allow,
            SslMode::Prefer,
            SslMode::Require,
            SslMode::VerifyCa,
            SslMode::VerifyFull,
        ]
        .map(|mode| (mode.name(), mode));
        let mode = self.choice("sslmode", &words, default)?;
        if system && mode < SslMode::VerifyFull {
            return Err(bad_value(
                "sslmode",
                format!(
                    "'{}' is too weak for sslrootcert=system; use verify-full",
                    mode.name()
                ),
            ));
        }
        let roots = match self.get("sslrootcert") {
            Some("system") => RootCertificates::System,
            Some(path) => RootCertificates::File(PathBuf::from(path)),
            None => match self.home_file("root.crt") {
                // verify-ca and verify-full need one: the error then names the file libpq would read.
                Some(path) if mode >= SslMode::VerifyCa || path.exists() => RootCertificates::File(path),
                _ => RootCertificates::None,
            },
        };
        Ok((mode, roots))
    }

    fn negotiation(&self, mode: SslMode) -> Result<SslNegotiation, ConninfoError> {
        let words = [
            ("postgres", SslNegotiation::Postgres),
            ("direct", SslNegotiation::Direct),
        ];
        let negotiation = self.choice("sslnegotiation", &words, SslNegotiation::Postgres)?;
        if negotiation == SslNegotiation::Direct && mode < SslMode::Require {
            return Err(bad_value(
                "sslmode",
                format!(
                    "'{}' is too weak for sslnegotiation=direct; use require, verify-ca or verify-full",
                    mode.name()
                ),
            ));
        }
        if self.get("gssencmode") == Some("require") {
            return Err(bad_value(
                "gssencmode",
                "GSSAPI encryption is not supported; use sslmode=require",
            ));
        }
        Ok(negotiation)
    }

    fn home_file(&self, name: &str) -> Option<PathBuf> {
        self.environment
            .home()
            .map(|home| home.join(".postgresql").join(name))
    }

    /// The client's certificate and key: named ones must exist, those of the home directory needn't.
    fn client_certificate(&self) -> Result<(Option<PathBuf>, Option<PathBuf>), ConninfoError> {
        let mode = self.choice("sslcertmode", &[("disable", 0), ("allow", 1), ("require", 2)], 1)?;
        if self.get("sslpassword").is_some() {
            return Err(bad_value(
                "sslpassword",
                "keys with a passphrase are not supported; decrypt the key file",
            ));
        }
        if mode == 0 {
            return Ok((None, None));
        }
        let existing = |path: &PathBuf| path.exists();
        let certificate = self
            .get("sslcert")
            .map(PathBuf::from)
            .or_else(|| self.home_file("postgresql.crt").filter(existing));
        if certificate.is_none() && mode == 2 {
            return Err(bad_value(
                "sslcertmode",
                "a client certificate is required, and there is none: give sslcert=FILE",
            ));
        }
        if certificate.is_none() {
            return Ok((None, None));
        }
        let key = self
            .get("sslkey")
            .map(PathBuf::from)
            .or_else(|| self.home_file("postgresql.key"));
        Ok((certificate, key))
    }

    /// The revocation lists: as in libpq, where none are named, those of the home directory, if it has any.
    fn revocation_lists(&self) -> (Option<PathBuf>, Option<PathBuf>) {
        let file = self.get("sslcrl").map(PathBuf::from);
        let directory = self.get("sslcrldir").map(PathBuf::from);
        if file.is_some() || directory.is_some() {
            return (file, directory);
        }
        let of_home = self.home_file("root.crl").filter(|path| path.exists());
        (of_home, None)
    }

    fn tls_version(&self, name: &'static str) -> Result<Option<TlsVersion>, ConninfoError> {
        match self.get(name).map(str::to_lowercase).as_deref() {
            None => Ok(None),
            // TLS 1.0 and 1.1 are never spoken here, so as a lower limit they mean 1.2.
            Some("tlsv1" | "tlsv1.1") if name == "ssl_min_protocol_version" => Ok(Some(TlsVersion::V1_2)),
            Some("tlsv1.2") => Ok(Some(TlsVersion::V1_2)),
            Some("tlsv1.3") => Ok(Some(TlsVersion::V1_3)),
            Some(other) => Err(bad_value(
                name,
                format!("'{other}' is neither TLSv1.2 nor TLSv1.3"),
            )),
        }
    }

    fn session_attributes(&self) -> Result<SessionAttributes, ConninfoError> {
        let words = [
            SessionAttributes::Any,
            SessionAttributes::ReadWrite,
            SessionAttributes::ReadOnly,
            SessionAttributes::Primary,
            SessionAttributes::Standby,
            SessionAttributes::PreferStandby,
        ]
        .map(|attributes| (attributes.name(), attributes));
        self.choice("target_session_attrs", &words, SessionAttributes::Any)
    }

    fn require_auth(&self) -> Result<Option<(bool, Vec<String>)>, ConninfoError> {
        const METHODS: [&str; 7] = ["password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none"];
        let Some(list) = self.get("require_auth") else {
            return Ok(None);
        };
        let wanted = !list.trim_start().starts_with('!');
        let mut methods = Vec::new();
        for item in list.split(',').map(str::trim) {
            let method = item.strip_prefix('!').unwrap_or(item);
            if item.starts_with('!') == wanted {
                return Err(bad_value(
                    "require_auth",
                    "wanted and forbidden methods can't be mixed",
                ));
            }
            if !METHODS.contains(&method) {
                return Err(bad_value(
                    "require_auth",
                    format!("'{method}' is none of {}", METHODS.join(", ")),
                ));
            }
            methods.push(method.to_owned());
        }
        Ok(Some((wanted, methods)))
    }

    /// The password file, or why the one that is there isn't used.
    fn passfile(&self) -> (Option<PassFile>, Option<IgnoredPassfile>) {
        let in_home = || self.environment.home().map(|home| home.join(".pgpass"));
        let path = match self.get("password") {
            Some(_) => None,
            None => self.get("passfile").map(PathBuf::from).or_else(in_home),
        };
        match path.map(|path| PassFile::read(&path)) {
            Some(Ok(passfile)) => (passfile, None),
            Some(Err(ignored)) => (None, Some(ignored)),
            None => (None, None),
        }
    }
}

fn host_kind(name: &str, address: &str, port: u16) -> Result<HostKind, ConninfoError> {
    let parsed: Option<IpAddr> = match address {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| bad_value("hostaddr", format!("'{text}' is not an IP address")))?,
        ),
    };
    if parsed.is_none() && (name.starts_with('/') || name.starts_with('@')) {
        return Ok(HostKind::Socket(name.to_owned()));
    }
    Ok(match (name, parsed) {
        ("", None) => HostKind::Socket(default_socket_directory(port)),
        ("", Some(_)) => HostKind::Network {
            name: address.to_owned(),
            address: parsed,
        },
        (name, address) => HostKind::Network {
            name: name.to_owned(),
            address,
        },
    })
}

/// The first directory with a server's socket in it; else the first that exists.
fn default_socket_directory(port: u16) -> String {
    let with_socket = |directory: &&&str| Path::new(directory).join(format!(".s.PGSQL.{port}")).exists();
    let existing = |directory: &&&str| Path::new(directory).exists();
    let found = SOCKET_DIRECTORIES
        .iter()
        .find(with_socket)
        .or_else(|| SOCKET_DIRECTORIES.iter().find(existing));
    (*found.unwrap_or(&"/tmp")).to_owned()
}
