//! What a database is beyond its contents: encoding and locale, owner, comment, settings, privileges.

use std::collections::BTreeSet;

use pgkeep_base::quote_identifier;
use pgkeep_pg::Session;

use crate::error::{Context, DumpError};
use crate::manifest::{DatabaseManifest, DatabaseProperties};
use crate::restore::{Restore, roles, secrets};
use crate::sql::{self, DatabaseStatement};

/// How a database's encoding and locale differ from the dumped ones.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// The encodings differ: some rows may have no form in the other.
    pub encoding: bool,
    /// In words: "its encoding is ..., and the dumped one's was ...".
    pub text: String,
}

/// Compares what can't be changed once a database is made; none if nothing differs.
pub fn difference(dumped: &DatabaseProperties, found: &DatabaseProperties) -> Option<Difference> {
    let describe = |properties: &DatabaseProperties| {
        let provider = match properties.locale_provider.as_str() {
            "i" => "icu",
            "b" => "builtin",
            _ => "libc",
        };
        let mut words = vec![
            provider.to_owned(),
            locale_name(&properties.collate),
            locale_name(&properties.ctype),
        ];
        words.extend(properties.locale.clone());
        words.extend(properties.icu_rules.clone());
        words.join(" ")
    };
    let mut differences = Vec::new();
    let encoding = dumped.encoding != found.encoding;
    if encoding {
        differences.push(("encoding", found.encoding.clone(), dumped.encoding.clone()));
    }
    if describe(dumped) != describe(found) {
        differences.push(("locale", describe(found), describe(dumped)));
    }
    let texts: Vec<String> = differences
        .into_iter()
        .map(|(what, found, dumped)| format!("its {what} is {found}, and the dumped one's was {dumped}"))
        .collect();
    (!texts.is_empty()).then(|| Difference {
        encoding,
        text: texts.join("; "),
    })
}

/// `en_US.UTF-8` and `en_US.utf8` are the same.
fn locale_name(name: &str) -> String {
    match name.split_once('.') {
        Some((locale, codeset)) => format!("{locale}.{}", codeset.replace('-', "").to_lowercase()),
        None => name.to_owned(),
    }
}

/// Gives a restored database its comment, settings, privileges and owner. They come late: a read-only or short-timeout default
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
    if restore.options.owners {
        // The last: whoever isn't a superuser loses the right to the rest with it.
        give_to_owner(
            outside,
            &database.properties.owner,
            target_name,
            &roles,
            attention,
        )
        .await?;
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

async fn give_to_owner(
    outside: &mut Session,
    owner: &str,
    target_name: &str,
    roles: &BTreeSet<String>,
    attention: &mut Vec<String>,
) -> Result<(), DumpError> {
    let context = || "looking at the database's owner".to_owned();
    let sql = "SELECT pg_catalog.pg_get_userbyid(datdba) FROM pg_catalog.pg_database WHERE datname = $1";
    let rows = outside
        .query_params(sql, &[Some(target_name)])
        .await
        .context(context)?;
    let present: Option<String> = rows.first().map(|row| row.get(0)).transpose().context(context)?;
    if present.as_deref() == Some(owner) {
        return Ok(());
    }
    let (name, role) = (quote_identifier(target_name), quote_identifier(owner));
    let statement = DatabaseStatement::plain(format!("ALTER DATABASE {name} OWNER TO {role}"));
    if roles.contains(owner) {
        return attempt(outside, target_name, &statement, attention).await;
    }
    attention.push(format!(
        "database '{target_name}': not done, because there is no role '{owner}': {}",
        statement.shown
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_changed_any_more_is_compared() {
        let dumped = DatabaseProperties {
            encoding: "UTF8".to_owned(),
            locale_provider: "c".to_owned(),
            collate: "en_US.UTF-8".to_owned(),
            ctype: "en_US.UTF-8".to_owned(),
            ..DatabaseProperties::default()
        };
        let mut found = DatabaseProperties {
            collate: "en_US.utf8".to_owned(),
            owner: "another".to_owned(),
            ..dumped.clone()
        };
        assert_eq!(difference(&dumped, &found), None);
        found.collate = "C".to_owned();
        let locale = difference(&dumped, &found).unwrap();
        assert!(
            !locale.encoding && locale.text.contains("its locale is libc C en_US.utf8"),
            "{locale:?}"
        );
        found.encoding = "LATIN1".to_owned();
        let both = difference(&dumped, &found).unwrap();
        assert!(
            both.encoding
                && both
                    .text
                    .contains("its encoding is LATIN1, and the dumped one's was UTF8; its locale")
        );
    }
}
