//! Roles out of `pg_dumpall --globals-only`: those that are missing in the target are made, those that are there are
//! left as they are. A restore never changes the password of a role that exists.

use std::collections::BTreeSet;

use pgkeep_pg::{PgError, Session, script};

use crate::error::{Context, DumpError};
use crate::restore::secrets;
use crate::{catalog, sql};

/// What became of the globals.
#[derive(Debug, Default)]
pub struct RolesRestored {
    /// Roles made.
    pub created: Vec<String>,
    /// What could not be done, in plain words.
    pub attention: Vec<String>,
}

/// What a statement of the globals is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement<'a> {
    CreateRole(String),
    /// Anything that changes a role: its attributes, settings, comment.
    ChangeRole(String),
    /// `GRANT role TO member`
    Grant {
        member: String,
    },
    CreateTablespace(String),
    /// About a tablespace.
    Tablespace,
    /// `ALTER ROLE ALL SET`
    ChangeAll,
    Other(&'a str),
}

/// Names of roles that exist.
///
/// # Errors
/// PostgreSQL's.
pub async fn existing(session: &mut Session) -> Result<BTreeSet<String>, DumpError> {
    let context = || "listing the target's roles".to_owned();
    let rows = session
        .query("SELECT rolname FROM pg_catalog.pg_roles")
        .await
        .context(context)?;
    rows.iter().map(|row| row.get(0).context(context)).collect()
}

/// Runs the globals for roles that are missing.
///
/// # Errors
/// The connection fails; a statement that the target refuses is reported, not fatal: whoever restores may not be
/// allowed everything.
pub async fn restore(session: &mut Session, globals: &str) -> Result<RolesRestored, DumpError> {
    let before = existing(session).await?;
    let shared = has_user_databases(session).await?;
    let set: BTreeSet<String> = sql::settings_for_all(&catalog::settings_for_all(session).await?)
        .into_iter()
        .collect();
    let mut restored = RolesRestored::default();
    let mut created: BTreeSet<String> = BTreeSet::new();
    let statements = script::statements(globals)
        .map_err(|error| DumpError::Internal(format!("the globals can't be read: {error}")))?;
    // All at once: a role that was made and not changed yet would be left as it is by the next attempt.
    run(session, "BEGIN").await?;
    for text in statements {
        let wanted = match classify(text) {
            // As an earlier attempt left it, say.
            Statement::ChangeAll if set.contains(text.trim_end_matches(';')) => false,
            // It would change every other database of a server that has some.
            Statement::ChangeAll if shared => {
                restored.attention.push(format!(
                    "not done, because the server has other databases: {}",
                    secrets::shown(text)
                ));
                false
            }
            Statement::ChangeAll => true,
            Statement::CreateRole(role) => {
                let missing = !before.contains(&role);
                if missing {
                    created.insert(role);
                }
                missing
            }
            Statement::ChangeRole(role) => created.contains(&role),
            Statement::Grant { member } => created.contains(&member),
            Statement::CreateTablespace(name) => {
                if !tablespace_exists(session, &name).await? {
                    let text = format!(
                        "tablespace '{name}' is not made: its objects go into the default tablespace"
                    );
                    restored.attention.push(text);
                }
                false
            }
            Statement::Tablespace => false,
            Statement::Other(_) => true,
        };
        if !wanted {
            continue;
        }
        run(session, "SAVEPOINT statement").await?;
        match session.execute(text).await {
            Ok(_) => run(session, "RELEASE statement").await?,
            // The statement may hold a password or another secret.
            Err(error) if error.sqlstate().is_some() => {
                run(session, "ROLLBACK TO statement").await?;
                let answer = secrets::answer(&error, secrets::literal(text));
                restored
                    .attention
                    .push(format!("{}: {answer}", secrets::shown(text)));
            }
            Err(source) => return Err(making_roles(source)),
        }
    }
    run(session, "COMMIT").await?;
    restored.created = created.into_iter().collect();
    Ok(restored)
}

async fn run(session: &mut Session, statement: &str) -> Result<(), DumpError> {
    session.execute(statement).await.map(drop).map_err(making_roles)
}

fn making_roles(source: PgError) -> DumpError {
    DumpError::Pg {
        context: "making roles".to_owned(),
        source,
    }
}

async fn has_user_databases(session: &mut Session) -> Result<bool, DumpError> {
    let context = || "listing the target's databases".to_owned();
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1'))";
    let rows = session.query(sql).await.context(context)?;
    Ok(rows
        .first()
        .map(|row| row.get(0))
        .transpose()
        .context(context)?
        .unwrap_or(false))
}

async fn tablespace_exists(session: &mut Session, name: &str) -> Result<bool, DumpError> {
    let context = || "looking for a tablespace".to_owned();
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_tablespace WHERE spcname = $1)";
    let rows = session.query_params(sql, &[Some(name)]).await.context(context)?;
    Ok(rows
        .first()
        .map(|row| row.get(0))
        .transpose()
        .context(context)?
        .unwrap_or(false))
}

pub(super) fn classify(text: &str) -> Statement<'_> {
    let upper: Vec<&str> = text.split_whitespace().take(4).collect();
    let name_after = |prefix: &str| {
        text.trim_start()
            .strip_prefix(prefix)
            .and_then(identifier)
            .map(|(name, _)| name)
    };
    match upper.as_slice() {
        ["CREATE", "ROLE", ..] => {
            name_after("CREATE ROLE ").map_or(Statement::Other(text), Statement::CreateRole)
        }
        ["ALTER", "ROLE", "ALL", ..] => Statement::ChangeAll,
        ["ALTER", "ROLE", ..] => {
            name_after("ALTER ROLE ").map_or(Statement::Other(text), Statement::ChangeRole)
        }
        ["COMMENT", "ON", "ROLE", ..] => {
            name_after("COMMENT ON ROLE ").map_or(Statement::Other(text), Statement::ChangeRole)
        }
        ["CREATE", "TABLESPACE", ..] => {
            name_after("CREATE TABLESPACE ").map_or(Statement::Tablespace, Statement::CreateTablespace)
        }
        // A role's name may be anything, so what is granted to a role is told before tablespaces.
        ["GRANT", ..] if grant_member(text).is_some() => {
            grant_member(text).map_or(Statement::Other(text), |member| Statement::Grant { member })
        }
        ["ALTER" | "COMMENT" | "GRANT" | "REVOKE", ..] if text.contains("TABLESPACE ") => {
            Statement::Tablespace
        }
        _ => Statement::Other(text),
    }
}

/// `GRANT role TO member ...`
fn grant_member(text: &str) -> Option<String> {
    let (_, rest) = identifier(text.trim_start().strip_prefix("GRANT ")?)?;
    identifier(rest.trim_start().strip_prefix("TO ")?).map(|(member, _)| member)
}

/// An identifier as `fmtId` writes it: bare, or in double quotes; and what follows.
fn identifier(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|c: char| c.is_whitespace() || c == ';')
            .unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut characters = quoted.char_indices().peekable();
    while let Some((place, character)) = characters.next() {
        match character {
            '"' if characters.peek().is_some_and(|(_, next)| *next == '"') => {
                name.push('"');
                characters.next();
            }
            '"' => return Some((name, &quoted[place + 1..])),
            _ => name.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_of_the_globals_are_told_apart() {
        assert_eq!(
            classify("CREATE ROLE \"Odd \"\"x\"\"\";"),
            Statement::CreateRole("Odd \"x\"".to_owned())
        );
        assert_eq!(
            classify("ALTER ROLE app WITH LOGIN PASSWORD 'x';"),
            Statement::ChangeRole("app".to_owned())
        );
        assert_eq!(
            classify("GRANT readers TO \"me\" WITH INHERIT TRUE GRANTED BY postgres;"),
            Statement::Grant {
                member: "me".to_owned()
            }
        );
        assert_eq!(
            classify("GRANT \"my TABLESPACE x\" TO me GRANTED BY postgres"),
            Statement::Grant {
                member: "me".to_owned()
            }
        );
        assert_eq!(
            classify("CREATE TABLESPACE fast OWNER x LOCATION '/x';"),
            Statement::CreateTablespace("fast".to_owned())
        );
        assert_eq!(
            classify("ALTER ROLE ALL SET work_mem TO '1MB';"),
            Statement::ChangeAll
        );
        assert_eq!(
            classify("GRANT ALL ON TABLESPACE fast TO x;"),
            Statement::Tablespace
        );
        assert!(matches!(
            classify("SET client_encoding = 'UTF8';"),
            Statement::Other(_)
        ));
    }
}
