//! What a database holds that only a superuser may dump: pg_dump leaves it out with a warning, or without one.

use pgkeep_base::{one_line, shown_name};
use pgkeep_pg::Session;

use crate::error::{Context, DumpError};
use crate::manifest::Filters;

/// More of a kind are counted.
const SHOWN_MAX: usize = 10;

/// `getSubscriptions` in pg_dump.c: "subscriptions not dumped because current user is not a superuser".
const SUBSCRIPTIONS_SQL: &str = "SELECT s.subname FROM pg_catalog.pg_subscription s
    JOIN pg_catalog.pg_database d ON d.oid = s.subdbid AND d.datname = pg_catalog.current_database()
    WHERE NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) ORDER BY 1";

/// The view shows no options where the role may not see them, which to `dumpUserMappings` looks as if there were none. Its
/// own condition is in system_views.sql.
const USER_MAPPINGS_SQL: &str = "SELECT CASE m.umuser WHEN 0 THEN 'PUBLIC' ELSE m.usename END || ' on server ' || m.srvname
    FROM pg_catalog.pg_user_mappings m JOIN pg_catalog.pg_foreign_server s ON s.oid = m.srvid
    WHERE NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
      AND NOT (m.umuser <> 0 AND m.usename = current_user
          AND (pg_catalog.pg_has_role(s.srvowner, 'USAGE') OR pg_catalog.has_server_privilege(s.oid, 'USAGE')))
      AND NOT (m.umuser = 0 AND pg_catalog.pg_has_role(s.srvowner, 'USAGE'))
    ORDER BY 1";

/// What won't be in the dump of the session's database, in words.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn in_database(
    session: &mut Session,
    filters: &Filters,
    database: &str,
) -> Result<Vec<String>, DumpError> {
    // Where tables or schemas are chosen, neither is asked for.
    if !filters.tables.is_empty() || !filters.schemas.is_empty() {
        return Ok(Vec::new());
    }
    let mut hidden = Vec::new();
    for (sql, what, why) in [
        (SUBSCRIPTIONS_SQL, "subscriptions", "dumping them"),
        (
            USER_MAPPINGS_SQL,
            "the options, which may be passwords, of user mappings for",
            "seeing them",
        ),
    ] {
        let context = || format!("listing what only a superuser may dump of database '{database}'");
        let rows = session.query(sql).await.context(context)?;
        let names = rows.iter().map(|row| row.get::<String>(0));
        let names = names.collect::<Result<Vec<_>, _>>().context(context)?;
        if !names.is_empty() {
            let (names, database) = (listed(&names), shown_name(database));
            hidden.push(format!("{what} {names} in {database}: {why} takes a superuser"));
        }
    }
    Ok(hidden)
}

fn listed(names: &[String]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN_MAX)
        .map(|name| one_line(name).into_owned())
        .collect();
    match names.len().saturating_sub(SHOWN_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
