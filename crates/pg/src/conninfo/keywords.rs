/// One connection parameter as libpq knows it (`src/interfaces/libpq/fe-connect.c`, `PQconninfoOptions`).
pub(crate) struct Keyword {
    pub(crate) name: &'static str,
    /// The environment variable that gives its default.
    pub(crate) variable: Option<&'static str>,
    /// Never shown.
    pub(crate) secret: bool,
    pub(crate) support: Support,
}

/// What pgkeep does with a parameter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    /// It acts as in libpq.
    Full,
    /// It is accepted and has no effect here, which is safe.
    Ignored,
    /// It would weaken or change what the user asked for if it were ignored, so it is an error.
    Refused,
}

const fn keyword(name: &'static str, variable: &'static str) -> Keyword {
    Keyword {
        name,
        variable: Some(variable),
        secret: false,
        support: Support::Full,
    }
}

const fn plain(name: &'static str) -> Keyword {
    Keyword {
        name,
        variable: None,
        secret: false,
        support: Support::Full,
    }
}

const fn secret(name: &'static str, variable: Option<&'static str>) -> Keyword {
    Keyword {
        name,
        variable,
        secret: true,
        support: Support::Full,
    }
}

const fn ignored(name: &'static str, variable: Option<&'static str>) -> Keyword {
    Keyword {
        name,
        variable,
        secret: false,
        support: Support::Ignored,
    }
}

const fn refused(name: &'static str, variable: Option<&'static str>, secret: bool) -> Keyword {
    Keyword {
        name,
        variable,
        secret,
        support: Support::Refused,
    }
}

/// Every parameter of libpq 18, in its order.
pub(crate) const KEYWORDS: &[Keyword] = &[
    keyword("service", "PGSERVICE"),
    keyword("servicefile", "PGSERVICEFILE"),
    keyword("user", "PGUSER"),
    secret("password", Some("PGPASSWORD")),
    keyword("passfile", "PGPASSFILE"),
    keyword("channel_binding", "PGCHANNELBINDING"),
    keyword("connect_timeout", "PGCONNECT_TIMEOUT"),
    keyword("dbname", "PGDATABASE"),
    keyword("host", "PGHOST"),
    keyword("hostaddr", "PGHOSTADDR"),
    keyword("port", "PGPORT"),
    // The session always speaks UTF-8; a caller that wants another encoding sets it by SQL.
    ignored("client_encoding", Some("PGCLIENTENCODING")),
    keyword("options", "PGOPTIONS"),
    keyword("application_name", "PGAPPNAME"),
    plain("fallback_application_name"),
    plain("keepalives"),
    plain("keepalives_idle"),
    plain("keepalives_interval"),
    plain("keepalives_count"),
    plain("tcp_user_timeout"),
    keyword("sslmode", "PGSSLMODE"),
    keyword("sslnegotiation", "PGSSLNEGOTIATION"),
    ignored("sslcompression", Some("PGSSLCOMPRESSION")),
    keyword("sslcert", "PGSSLCERT"),
    keyword("sslkey", "PGSSLKEY"),
    keyword("sslcertmode", "PGSSLCERTMODE"),
    secret("sslpassword", None),
    keyword("sslrootcert", "PGSSLROOTCERT"),
    keyword("sslcrl", "PGSSLCRL"),
    keyword("sslcrldir", "PGSSLCRLDIR"),
    keyword("sslsni", "PGSSLSNI"),
    keyword("requirepeer", "PGREQUIREPEER"),
    keyword("require_auth", "PGREQUIREAUTH"),
    ignored("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    ignored("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
    keyword("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    keyword("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    keyword("gssencmode", "PGGSSENCMODE"),
    ignored("krbsrvname", Some("PGKRBSRVNAME")),
    ignored("gsslib", Some("PGGSSLIB")),
    ignored("gssdelegation", Some("PGGSSDELEGATION")),
    plain("replication"),
    keyword("target_session_attrs", "PGTARGETSESSIONATTRS"),
    keyword("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    refused("scram_client_key", None, true),
    refused("scram_server_key", None, true),
    refused("oauth_issuer", None, false),
    refused("oauth_client_id", None, false),
    refused("oauth_client_secret", None, true),
    refused("oauth_scope", None, false),
    // It would write the session's keys to a file.
    refused("sslkeylogfile", None, false),
];

/// The keyword of that exact name.
pub(crate) fn find(name: &str) -> Option<&'static Keyword> {
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

/// The known name most like `name`, if one is like it at all.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    // People also write what other drivers call it.
    match name {
        "database" | "db" => return Some("dbname"),
        "username" => return Some("user"),
        "hostname" | "server" => return Some("host"),
        "ssl" => return Some("sslmode"),
        _ => {}
    }
    pgkeep_base::nearest(name, KEYWORDS.iter().map(|keyword| keyword.name))
}
