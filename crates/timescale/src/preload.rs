use pgkeep_base::quote_literal;
use pgkeep_pg::{PgError, Session};

const LIBRARY: &str = "timescaledb";

/// The libraries of a value of `shared_preload_libraries`.
pub(crate) fn libraries(setting: &str) -> impl Iterator<Item = &str> {
    setting
        .split(',')
        .map(|library| library.trim().trim_matches('"'))
        .filter(|library| !library.is_empty())
}

/// The statement that adds TimescaleDB's library to those which a server preloads (`shared_preload_libraries`, as it is
/// now); none if it is among them. It counts from the server's next start on.
pub fn preload_statement(present: &str) -> Option<String> {
    if libraries(present).any(|library| library == LIBRARY) {
        return None;
    }
    let all: Vec<String> = libraries(present).chain([LIBRARY]).map(quote_literal).collect();
    Some(format!(
        "ALTER SYSTEM SET shared_preload_libraries = {}",
        all.join(", ")
    ))
}

/// Has the server preload TimescaleDB's library from its next start on, where it is installed: without it, a server that is
/// told to preload it doesn't start. Returns whether something was set.
///
/// # Errors
/// The server's.
pub async fn preload(session: &mut Session) -> Result<bool, PgError> {
    let sql = "SELECT pg_catalog.current_setting('shared_preload_libraries'),
        EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'timescaledb')";
    let rows = session.query(sql).await?;
    let Some(row) = rows.first() else {
        return Ok(false);
    };
    let (present, is_available): (String, bool) = (row.get(0)?, row.get(1)?);
    match preload_statement(&present) {
        Some(statement) if is_available => {
            session.execute(&statement).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_joins_those_that_are_there() {
        for (present, expected) in [
            ("", Some("'timescaledb'")),
            ("pg_stat_statements", Some("'pg_stat_statements', 'timescaledb'")),
            (
                " \"a b\" , auto_explain",
                Some("'a b', 'auto_explain', 'timescaledb'"),
            ),
            ("x,timescaledb", None),
            ("\"timescaledb\"", None),
        ] {
            let expected = expected.map(|list| format!("ALTER SYSTEM SET shared_preload_libraries = {list}"));
            assert_eq!(preload_statement(present), expected, "{present}");
        }
    }
}
