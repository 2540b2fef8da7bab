//! Foreign keys that may not be possible in the target: tried one by one, and told when they aren't.

use std::collections::HashSet;

use pgkeep_pg::Session;

use crate::error::{Context, DumpError};
use crate::restore::archive::{Archive, Entry};

/// A foreign key takes a lock on the other table, which somebody else may be using.
const SETTINGS: &str = "SET search_path = ''; SET statement_timeout = 0; SET lock_timeout = '60s'";

/// Makes the foreign keys that `wanted` picks from the archive, each by itself. What the server refuses is told with the
/// statement that makes it later.
///
/// # Errors
/// The connection or pg_restore fails.
pub(crate) async fn attempt(
    archive: &Archive,
    session: &mut Session,
    wanted: impl Fn(&Entry) -> bool,
    on_hypertable: bool,
    attention: &mut Vec<String>,
) -> Result<(), DumpError> {
    let statements = statements(archive, wanted, on_hypertable).await?;
    let context = || "making foreign keys".to_owned();
    session.execute(SETTINGS).await.context(context)?;
    for statement in statements {
        match session.execute(&statement).await {
            Ok(_) => {}
            Err(error) if error.sqlstate().is_some() => {
                attention.push(format!(
                    "a foreign key is not made: {error}; make it when that is mended: {statement}"
                ));
            }
            Err(source) => return Err(source).context(context),
        }
    }
    Ok(())
}

/// The statements that make those keys.
///
/// # Errors
/// pg_restore fails.
pub(crate) async fn statements(
    archive: &Archive,
    wanted: impl Fn(&Entry) -> bool,
    on_hypertable: bool,
) -> Result<Vec<String>, DumpError> {
    let script = archive
        .text(Some("post-data"), |entry| is_foreign_key(entry) && wanted(entry))
        .await?;
    let statements = pgkeep_pg::script::statements(&script)
        .map_err(|error| DumpError::Internal(format!("pg_restore's script can't be read: {error}")))?;
    let mut found = Vec::new();
    for statement in statements {
        // The others are settings.
        let Some(start) = statement.find("ALTER TABLE ") else {
            continue;
        };
        let mut statement = one_line(statement.get(start..).unwrap_or(statement));
        if !statement.contains(" FOREIGN KEY ") {
            continue;
        }
        if on_hypertable {
            statement = statement.replacen("ALTER TABLE ONLY ", "ALTER TABLE ", 1);
        }
        found.push(statement);
    }
    Ok(found)
}

/// The table that such a statement refers to, as it stands there: quoted where it has to be.
pub(crate) fn referenced(statement: &str) -> Option<&str> {
    let word = " REFERENCES ";
    let start = statement
        .match_indices(word)
        .map(|(place, _)| place)
        .find(|place| !is_quoted(statement, *place))?;
    let rest = statement.get(start + word.len()..)?;
    let end = rest
        .char_indices()
        .find(|(place, c)| matches!(c, '(' | ' ' | ';') && !is_quoted(rest, *place))
        .map_or(rest.len(), |(place, _)| place);
    rest.get(..end)
}

/// Whether a place is within a quoted name. A quote within one is doubled, so the count is right there, too.
fn is_quoted(text: &str, place: usize) -> bool {
    let before = text.get(..place).unwrap_or_default();
    before.bytes().filter(|byte| *byte == b'"').count() % 2 == 1
}

pub(crate) fn is_foreign_key(entry: &Entry) -> bool {
    entry.text.starts_with("FK CONSTRAINT ")
}

/// The foreign keys among a dump's list of dependents that satisfy a condition on (table, referenced table).
pub(crate) fn oids(dependents: &str, condition: impl Fn(u32, u32) -> bool) -> HashSet<u32> {
    let parse = |line: &str| {
        let numbers: Vec<u32> = line
            .split('\t')
            .filter_map(|number| number.parse().ok())
            .collect();
        match numbers.as_slice() {
            [_, oid, table, referenced] => condition(*table, *referenced).then_some(*oid),
            _ => None,
        }
    };
    dependents.lines().filter_map(parse).collect()
}

/// pg_dump breaks the line before ADD CONSTRAINT. Names may hold line feeds, which stay.
fn one_line(statement: &str) -> String {
    statement.replace("\n    ADD CONSTRAINT ", " ADD CONSTRAINT ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_that_a_key_refers_to_is_found() {
        for (statement, table) in [
            (
                "ALTER TABLE ONLY s.t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES s.r(id) ON DELETE CASCADE;",
                "s.r",
            ),
            (
                r#"ALTER TABLE s."x REFERENCES y" ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES "S (1)"."r ""q"(id);"#,
                r#""S (1)"."r ""q""#,
            ),
        ] {
            assert_eq!(referenced(statement), Some(table), "{statement}");
        }
        assert_eq!(referenced("ALTER TABLE t ADD CHECK (a > 1)"), None);
    }

    #[test]
    fn foreign_keys_are_found_by_their_tables() {
        let list = "1259\t12\t10\n2606\t13\t10\t11\n2606\t14\t10\t10\n2606\t15\t9\t11\n";
        let found = oids(list, |table, referenced| table == 10 && referenced != 10);
        assert_eq!(found, HashSet::from([13]));
    }
}
