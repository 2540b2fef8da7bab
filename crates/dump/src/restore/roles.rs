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
    /// `GRANT role TO member ... GRANTED BY grantor`
    Grant {
        role: String,
        member: String,
        grantor: Option<String>,
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

/// Which roles a restore makes.
#[derive(Debug, Default)]
pub struct RolesPlan {
    /// Those that are missing, and wanted.
    pub create: BTreeSet<String>,
    /// Those that are missing, and of no use to the chosen databases.
    pub left_out: Vec<String>,
    existing: BTreeSet<String>,
}

/// Plans which roles to make: all for none, otherwise those that are `used`, those that they are members of, and those that
/// are members of them.
///
/// # Errors
/// The globals can't be read; PostgreSQL's.
pub async fn plan(
    session: &mut Session,
    globals: &str,
    used: Option<&BTreeSet<String>>,
) -> Result<RolesPlan, DumpError> {
    let existing = existing(session).await?;
    let statements = statements(globals)?;
    let mut all = BTreeSet::new();
    let mut grants = Vec::new();
    for text in statements {
        match classify(text) {
            Statement::CreateRole(role) => drop(all.insert(role)),
            Statement::Grant {
                role,
                member,
                grantor,
            } => grants.push((role, member, grantor)),
            _ => {}
        }
    }
    let missing = all.difference(&existing).cloned();
    let wanted = used.map(|used| with_relatives(used, &grants));
    let (create, left_out): (BTreeSet<String>, BTreeSet<String>) =
        missing.partition(|role| wanted.as_ref().is_none_or(|wanted| wanted.contains(role)));
    Ok(RolesPlan {
        create,
        left_out: left_out.into_iter().collect(),
        existing,
    })
}

fn statements(globals: &str) -> Result<Vec<&str>, DumpError> {
    script::statements(globals)
        .map_err(|error| DumpError::Internal(format!("the globals can't be read: {error}")))
}

/// A membership: the role, its member, and who gave it.
type Grant = (String, String, Option<String>);

/// The used roles with what gives them privileges and who uses them: groups upwards, members downwards. What a member is
/// otherwise is no concern of the database.
fn with_relatives(used: &BTreeSet<String>, grants: &[Grant]) -> BTreeSet<String> {
    let spread = |from: &BTreeSet<String>, step: fn(&Grant) -> (&String, &String)| {
        let mut reached = from.clone();
        loop {
            let next = grants
                .iter()
                .map(step)
                .find(|(from, to)| reached.contains(*from) && !reached.contains(*to));
            match next {
                Some((_, to)) => drop(reached.insert(to.clone())),
                None => return reached,
            }
        }
    };
    let mut wanted = spread(used, |(role, member, _)| (member, role));
    wanted.extend(spread(used, |(role, member, _)| (role, member)));
    // A grant is repeated in the name of who gave it.
    loop {
        let grantor = grants.iter().find_map(|(role, member, grantor)| {
            let grantor = grantor.as_ref()?;
            let given = wanted.contains(role) && wanted.contains(member);
            (given && !wanted.contains(grantor)).then(|| grantor.clone())
        });
        match grantor {
            Some(grantor) => drop(wanted.insert(grantor)),
            None => return wanted,
        }
    }
}

/// Runs the globals for the planned roles. A membership is given when one of the two roles is new: a role that was left out
/// once gets its members when it is made.
///
/// # Errors
/// The connection fails; a statement that the target refuses is reported, not fatal: whoever restores may not be
/// allowed everything.
pub async fn restore(
    session: &mut Session,
    globals: &str,
    plan: &RolesPlan,
) -> Result<RolesRestored, DumpError> {
    let shared = has_user_databases(session).await?;
    let set: BTreeSet<String> = sql::settings_for_all(&catalog::settings_for_all(session).await?)
        .into_iter()
        .collect();
    let mut restored = RolesRestored::default();
    let created = &plan.create;
    let there = |role: &String| plan.existing.contains(role) || created.contains(role);
    let mut refused: BTreeSet<String> = BTreeSet::new();
    // All at once: a role that was made and not changed yet would be left as it is by the next attempt.
    run(session, "BEGIN").await?;
    for text in statements(globals)? {
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
            Statement::CreateRole(role) | Statement::ChangeRole(role) => created.contains(&role),
            Statement::Grant { role, member, .. } => {
                let is_new = created.contains(&member) || created.contains(&role);
                is_new && there(&role) && there(&member)
            }
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
                if let Statement::CreateRole(role) = classify(text) {
                    refused.insert(role);
                }
                let answer = secrets::answer(&error, secrets::literal(text));
                restored
                    .attention
                    .push(format!("{}: {answer}", secrets::shown(text)));
            }
            Err(source) => return Err(making_roles(source)),
        }
    }
    run(session, "COMMIT").await?;
    restored.created = created.difference(&refused).cloned().collect();
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
        ["GRANT", ..] if grant(text).is_some() => grant(text).unwrap_or(Statement::Other(text)),
        ["ALTER" | "COMMENT" | "GRANT" | "REVOKE", ..] if text.contains("TABLESPACE ") => {
            Statement::Tablespace
        }
        _ => Statement::Other(text),
    }
}

/// `GRANT role TO member ...`
fn grant(text: &str) -> Option<Statement<'_>> {
    let (role, rest) = identifier(text.trim_start().strip_prefix("GRANT ")?)?;
    let (member, rest) = identifier(rest.trim_start().strip_prefix("TO ")?)?;
    let grantor = rest
        .split_once("GRANTED BY ")
        .and_then(|(_, grantor)| identifier(grantor));
    Some(Statement::Grant {
        role,
        member,
        grantor: grantor.map(|(name, _)| name),
    })
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
                role: "readers".to_owned(),
                member: "me".to_owned(),
                grantor: Some("postgres".to_owned()),
            }
        );
        assert_eq!(
            classify("GRANT \"my TABLESPACE x\" TO me GRANTED BY postgres"),
            Statement::Grant {
                role: "my TABLESPACE x".to_owned(),
                member: "me".to_owned(),
                grantor: Some("postgres".to_owned()),
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

    #[test]
    fn used_roles_come_with_their_groups_and_members() {
        let names =
            |names: &[&str]| -> BTreeSet<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        let grant = |role: &str, member: &str, grantor: &str| {
            (role.to_owned(), member.to_owned(), Some(grantor.to_owned()))
        };
        let grants = [
            grant("app", "alice", "admin"),
            grant("other", "alice", "somebody"),
            grant("all", "app", "postgres"),
            grant("all", "bob", "postgres"),
            grant("alice", "carol", "postgres"),
        ];
        assert_eq!(
            with_relatives(&names(&["app"]), &grants),
            names(&["app", "alice", "admin", "all", "carol", "postgres"])
        );
    }
}
