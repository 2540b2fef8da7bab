//! What a database is beyond its contents: comment, settings, privileges.

use pgkeep_pg::Session;

use crate::error::DumpError;
use crate::manifest::DatabaseManifest;
use crate::restore::{Restore, roles, secrets};
use crate::sql::{self, DatabaseStatement};

/// Gives a restored database its comment, settings and privileges. They come late: a read-only or short-timeout default
/// would stop the restore. What the target refuses is told.
///
/// # Errors
/// The connection fails.
pub(crate) async fn apply(
    restore: &Restore<'_>,
    outside: &mut Session,
    database: &DatabaseManifest,
    target_name: &str,
    attention: &mut Vec<String>,
) -> Result<(), DumpError> {
    let roles = roles::existing(outside).await?;
    for statement in sql::database_settings(target_name, &database.properties) {
        if statement.is_privilege && !restore.options.privileges {
            continue;
        }
        let shown = &statement.shown;
        if let Some(role) = statement.role.as_ref().filter(|role| !roles.contains(*role)) {
            attention.push(format!(
                "database '{target_name}': not done, because there is no role '{role}': {shown}"
            ));
            continue;
        }
        attempt(outside, target_name, &statement, attention).await?;
    }
    Ok(())
}

async fn attempt(
    outside: &mut Session,
    target_name: &str,
    statement: &DatabaseStatement,
    attention: &mut Vec<String>,
) -> Result<(), DumpError> {
    match outside.execute(&statement.text).await {
        Ok(_) => Ok(()),
        Err(error) if error.sqlstate().is_some() => {
            let answer = secrets::answer(&error, statement.secret.as_deref());
            attention.push(format!("database '{target_name}': {}: {answer}", statement.shown));
            Ok(())
        }
        Err(source) => Err(DumpError::Pg {
            context: "setting the database's properties".to_owned(),
            source,
        }),
    }
}
