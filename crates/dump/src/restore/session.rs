//! Sessions in the target: what the database's and the role's own settings say is for whoever works there, and keeps no restore
//! from its end. (The settings of a restored database are there before its mark goes.)

use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_pg::{PgError, Session, Target};

use crate::connect::{self, connecting};
use crate::error::{Context, DumpError};

/// What every session has, whatever `ALTER DATABASE` and `ALTER ROLE` say.
const SETTINGS: [(&str, &str); 8] = [
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("default_transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
];
/// The first release with `transaction_timeout`.
const TRANSACTION_TIMEOUT_SINCE: u32 = 17;

/// A statement timeout of a few milliseconds may hit the statement that turns it off, on a busy machine.
const ATTEMPTS_MAX: u32 = 100;
/// `query_canceled`
const SQLSTATE_QUERY_CANCELED: &str = "57014";

/// The database's own `role` gives way to what the connecting role has everywhere; `session_replication_role` to the usual one.
const WHO: &str = "SELECT pg_catalog.set_config('role', coalesce((
      SELECT pg_catalog.substr(c, 6) FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) c
      WHERE s.setdatabase = 0 AND s.setrole = r.oid AND pg_catalog.starts_with(c, 'role=')), 'none'), false)
    FROM pg_catalog.pg_roles r, pg_catalog.pg_database d
    WHERE r.rolname = SESSION_USER AND d.datname = pg_catalog.current_database() AND EXISTS (
      SELECT FROM pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) c
      WHERE s.setdatabase = d.oid AND s.setrole IN (0, r.oid) AND pg_catalog.starts_with(c, 'role='));
    SELECT pg_catalog.set_config('session_replication_role', 'origin', false)
    WHERE pg_catalog.current_setting('session_replication_role') <> 'origin'
      AND pg_catalog.has_parameter_privilege('session_replication_role', 'SET')";

fn settings(server_major: u32) -> Vec<(&'static str, &'static str)> {
    let mut settings = SETTINGS.to_vec();
    if server_major >= TRANSACTION_TIMEOUT_SINCE {
        settings.push(("transaction_timeout", "0"));
    }
    settings
}

/// Connects; the session is as if neither the database nor the role had settings that get into a restore's way.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn connect(target: &Target) -> Result<Session, DumpError> {
    let context = || connecting(target);
    let mut session = connect::connect(target).await?;
    let sets: Vec<String> = settings(session.server_version_num() / 10_000)
        .into_iter()
        .map(|(name, value)| format!("SET {} = {}", quote_identifier(name), quote_literal(value)))
        .collect();
    // On its own: by a search path of somebody else's, the operators of what follows might be somebody else's too.
    let sets = format!("{}; SET search_path = ''", sets.join("; "));
    persistently(&mut session, &sets).await.context(context)?;
    persistently(&mut session, WHO).await.context(context)?;
    Ok(session)
}

async fn persistently(session: &mut Session, sql: &str) -> Result<(), PgError> {
    let mut attempt = 1;
    loop {
        match session.execute(sql).await {
            Ok(_) => return Ok(()),
            Err(error) if error.sqlstate() == Some(SQLSTATE_QUERY_CANCELED) && attempt < ATTEMPTS_MAX => {
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The same for the sessions of pg_restore, which sets most of it itself, but not all, and not at their beginning:
/// `name=value` each.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn settings_of_programs(target: &Target) -> Result<Vec<String>, DumpError> {
    let context = || format!("reading the settings of database '{}'", target.database());
    let mut session = connect(target).await?;
    let mut all: Vec<String> = settings(session.server_version_num() / 10_000)
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let sql = "SELECT pg_catalog.current_setting('role'), pg_catalog.has_parameter_privilege('session_replication_role', 'SET')";
    for row in session.query(sql).await.context(context)? {
        let (role, may_set): (String, bool) = (row.get(0).context(context)?, row.get(1).context(context)?);
        all.push(format!("role={role}"));
        if may_set {
            all.push("session_replication_role=origin".to_owned());
        }
    }
    session.close().await;
    Ok(all)
}

/// A setting as `PGOPTIONS` takes it (`pg_split_opts` in postinit.c).
pub(crate) fn as_option(setting: &str) -> String {
    let mut option = "-c ".to_owned();
    for character in setting.chars() {
        if character.is_ascii_whitespace() || character == '\\' {
            option.push('\\');
        }
        option.push(character);
    }
    option
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_with_spaces_is_one_option() {
        assert_eq!(as_option("role=none"), "-c role=none");
        assert_eq!(as_option(r"role=the \ owner"), r"-c role=the\ \\\ owner");
    }
}
