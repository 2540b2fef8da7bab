//! The statements that make a database again: used by `pgkeep restore`, and written beside every dump for whoever
//! restores it without pgkeep.

use std::fmt::Write;

use pgkeep_base::{quote_identifier, quote_literal};

use pgkeep_timescale::Inventory;

use crate::manifest::{DatabasePrivilege, DatabaseProperties, DatabaseSetting, QualifiedName};

/// `CREATE DATABASE name`, from template0 with the dumped locale. `owner` only where the role exists.
pub fn create_database(name: &str, properties: &DatabaseProperties, owner: Option<&str>) -> String {
    let mut sql = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {}",
        quote_identifier(name),
        quote_literal(&properties.encoding)
    );
    let provider = match properties.locale_provider.as_str() {
        "i" => "icu",
        "b" => "builtin",
        _ => "libc",
    };
    // Writing to a String can't fail.
    let _ = write!(
        sql,
        " LOCALE_PROVIDER {provider} LC_COLLATE {} LC_CTYPE {}",
        quote_literal(&properties.collate),
        quote_literal(&properties.ctype)
    );
    if let Some(locale) = &properties.locale {
        let option = if provider == "builtin" {
            "BUILTIN_LOCALE"
        } else {
            "ICU_LOCALE"
        };
        let _ = write!(sql, " {option} {}", quote_literal(locale));
    }
    if let Some(rules) = &properties.icu_rules {
        let _ = write!(sql, " ICU_RULES {}", quote_literal(rules));
    }
    if let Some(owner) = owner {
        let _ = write!(sql, " OWNER {}", quote_identifier(owner));
    }
    sql
}

/// A statement about a database, and what of it may be shown: the value of a setting may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseStatement {
    /// The statement.
    pub text: String,
    /// The statement without its value.
    pub shown: String,
    /// The value, where it is not to be shown.
    pub secret: Option<String>,
    /// The role that it can't do without.
    pub role: Option<String>,
    /// Whether it is about privileges.
    pub is_privilege: bool,
}

impl DatabaseStatement {
    /// One that may be shown, and that needs no role.
    pub fn plain(text: String) -> Self {
        Self {
            shown: text.clone(),
            text,
            secret: None,
            role: None,
            is_privilege: false,
        }
    }
}

/// Comment, connection limit, settings and privileges, one statement each, to be run in any database.
pub fn database_settings(name: &str, properties: &DatabaseProperties) -> Vec<DatabaseStatement> {
    let database = quote_identifier(name);
    let mut statements = Vec::new();
    if let Some(comment) = &properties.comment {
        let start = format!("COMMENT ON DATABASE {database}");
        statements.push(DatabaseStatement {
            shown: start.clone(),
            ..DatabaseStatement::plain(format!("{start} IS {}", quote_literal(comment)))
        });
    }
    if properties.connection_limit != -1 {
        let limit = properties.connection_limit;
        let text = format!("ALTER DATABASE {database} CONNECTION LIMIT {limit}");
        statements.push(DatabaseStatement::plain(text));
    }
    if properties.is_template {
        let text = format!("ALTER DATABASE {database} IS_TEMPLATE true");
        statements.push(DatabaseStatement::plain(text));
    }
    for setting in &properties.settings {
        let whose = match &setting.role {
            None => format!("ALTER DATABASE {database}"),
            Some(role) => format!("ALTER ROLE {} IN DATABASE {database}", quote_identifier(role)),
        };
        statements.push(DatabaseStatement {
            text: format!("{whose} {}", set_clause(setting)),
            shown: format!("{whose} SET {}", setting_name(&setting.name)),
            secret: Some(setting.value.clone()),
            role: setting.role.clone(),
            is_privilege: false,
        });
    }
    if let Some(privileges) = &properties.privileges {
        let revoke = format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC");
        let grants = privileges.iter().map(|privilege| DatabaseStatement {
            role: privilege.grantee.clone(),
            ..DatabaseStatement::plain(grant(&database, privilege))
        });
        let all = [DatabaseStatement::plain(revoke)].into_iter().chain(grants);
        statements.extend(all.map(|statement| DatabaseStatement {
            is_privilege: true,
            ..statement
        }));
    }
    statements
}

fn grant(database: &str, privilege: &DatabasePrivilege) -> String {
    let grantee = privilege
        .grantee
        .as_deref()
        .map_or_else(|| "PUBLIC".to_owned(), quote_identifier);
    let option = if privilege.grantable {
        " WITH GRANT OPTION"
    } else {
        ""
    };
    format!(
        "GRANT {} ON DATABASE {database} TO {grantee}{option}",
        privilege.privilege
    )
}

/// Those statements as a psql script.
pub fn database_settings_script(name: &str, properties: &DatabaseProperties) -> String {
    let statements = database_settings(name, properties);
    let texts: Vec<String> = statements.into_iter().map(|statement| statement.text).collect();
    script(&texts)
}

/// `CREATE DATABASE` for a script, but for the one that every cluster has.
pub fn create_script(name: &str, properties: &DatabaseProperties) -> String {
    if name == "postgres" {
        return "-- every cluster has the database postgres\n".to_owned();
    }
    script(&[create_database(name, properties, Some(&properties.owner))])
}

/// For one script of several databases: makes the database and goes on inside it.
pub fn enter_new_database(name: &str, properties: &DatabaseProperties) -> String {
    let create = create_script(name, properties);
    let settings = database_settings_script(name, properties);
    // psql reads quotes doubled here, as SQL does, and in it a connection string, which has rules of its own.
    let connection = quote_conninfo(name).replace('\'', "''");
    format!("\n{create}{settings}\\connect -reuse-previous=on '{connection}'\n")
}

/// A database's name as a connection string: PostgreSQL's programs take a bare name with an equals sign for one.
pub fn quote_conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Settings whose value is a list are stored as one text with the elements quoted already, and must be handed back
/// unquoted (`src/bin/pg_dump/dumputils.c`, `variable_is_guc_list_quote`).
const LIST_SETTINGS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// `SET name TO value`
fn set_clause(setting: &DatabaseSetting) -> String {
    let value = setting_value(&setting.name, &setting.value);
    format!("SET {} TO {value}", setting_name(&setting.name))
}

/// Quoted part by part.
fn setting_name(name: &str) -> String {
    name.split('.')
        .map(quote_identifier)
        .collect::<Vec<_>>()
        .join(".")
}

/// Settings for all roles in all databases.
pub fn settings_for_all(settings: &[DatabaseSetting]) -> Vec<String> {
    settings
        .iter()
        .map(|setting| format!("ALTER ROLE ALL {}", set_clause(setting)))
        .collect()
}

fn setting_value(name: &str, value: &str) -> String {
    if LIST_SETTINGS.contains(&name.to_ascii_lowercase().as_str()) {
        if value.is_empty() {
            "''".to_owned()
        } else {
            value.to_owned()
        }
    } else {
        quote_literal(value)
    }
}

/// `REFRESH MATERIALIZED VIEW` for each, in the given order.
pub fn refresh(views: &[QualifiedName]) -> Vec<String> {
    views
        .iter()
        .map(|view| format!("REFRESH MATERIALIZED VIEW {}", view.quoted()))
        .collect()
}

/// What a restore without pgkeep runs in the new database before the schema.
pub fn before_script(timescaledb: Option<&Inventory>) -> String {
    let Some(timescaledb) = timescaledb else {
        return "-- nothing to prepare\n".to_owned();
    };
    // The vendor's images put the extension into template1, and so into the database `postgres`.
    format!(
        "SET client_min_messages = warning;\nDROP EXTENSION IF EXISTS timescaledb;\n\\connect\n\
         SET client_min_messages = warning;\nCREATE SCHEMA IF NOT EXISTS {schema};\n\
         CREATE EXTENSION timescaledb WITH SCHEMA {schema} VERSION {version};\n\\connect\n\
         SELECT {schema}.timescaledb_pre_restore();\n",
        schema = quote_identifier(&timescaledb.schema),
        version = quote_literal(&timescaledb.version),
    )
}

/// The jobs' table moved from one schema to the other in TimescaleDB 2.25.
const HOLD_JOBS: &str = "DO $$ BEGIN\n  \
    IF pg_catalog.to_regclass('_timescaledb_catalog.bgw_job') IS NOT NULL THEN\n    \
      UPDATE _timescaledb_catalog.bgw_job SET scheduled = false WHERE scheduled AND id >= 1000;\n  \
    ELSE\n    \
      UPDATE _timescaledb_config.bgw_job SET scheduled = false WHERE scheduled AND id >= 1000;\n  \
    END IF;\nEND $$;";

/// What a restore without pgkeep runs in the new database at the end.
pub fn after_script(timescaledb: Option<&Inventory>, materialized_views: &[QualifiedName]) -> String {
    let mut script = String::new();
    if let Some(timescaledb) = timescaledb {
        let schema = quote_identifier(&timescaledb.schema);
        let _ = write!(
            script,
            "-- A retention policy that is overdue would delete what was just restored: the jobs stay off until you\n\
             -- have checked the data. Turn one on with: SELECT alter_job(ID, scheduled => true);\n\
             {HOLD_JOBS}\nSELECT {schema}.timescaledb_post_restore();\n\\connect\n\
             SELECT _timescaledb_functions.restart_background_workers();\n"
        );
        let held: Vec<String> = timescaledb
            .jobs
            .iter()
            .filter(|job| job.scheduled && job.id >= 1000)
            .map(|job| job.id.to_string())
            .collect();
        if !held.is_empty() {
            let _ = writeln!(
                script,
                "\\warn TimescaleDB jobs are off until you turn them on: {}",
                held.join(", ")
            );
        }
    }
    for statement in refresh(materialized_views) {
        let _ = writeln!(script, "{statement};");
    }
    script.push_str("ANALYZE;\n");
    script
}

/// Statements as a psql script.
pub fn script(statements: &[String]) -> String {
    statements.iter().fold(String::new(), |mut script, statement| {
        let _ = writeln!(script, "{statement};");
        script
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_made_again_with_locale_settings_and_privileges() {
        let properties = DatabaseProperties {
            encoding: "UTF8".to_owned(),
            locale_provider: "i".to_owned(),
            collate: "C".to_owned(),
            ctype: "C".to_owned(),
            locale: Some("de-DE".to_owned()),
            connection_limit: -1,
            settings: vec![
                DatabaseSetting {
                    role: None,
                    name: "search_path".to_owned(),
                    value: "\"$user\", app".to_owned(),
                },
                DatabaseSetting {
                    role: Some("gone".to_owned()),
                    name: "work_mem".to_owned(),
                    value: "1MB".to_owned(),
                },
                DatabaseSetting {
                    role: None,
                    name: "app.motto".to_owned(),
                    value: "it's".to_owned(),
                },
            ],
            privileges: Some(vec![DatabasePrivilege {
                grantee: None,
                privilege: "CONNECT".to_owned(),
                grantable: false,
            }]),
            ..DatabaseProperties::default()
        };
        assert_eq!(
            create_database("Odd \"db\"", &properties, Some("me")),
            "CREATE DATABASE \"Odd \"\"db\"\"\" TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu LC_COLLATE 'C' \
             LC_CTYPE 'C' ICU_LOCALE 'de-DE' OWNER \"me\""
        );
        let statements = database_settings("d", &properties);
        let texts: Vec<&str> = statements
            .iter()
            .map(|statement| statement.text.as_str())
            .collect();
        assert_eq!(
            texts,
            [
                "ALTER DATABASE \"d\" SET \"search_path\" TO \"$user\", app",
                "ALTER ROLE \"gone\" IN DATABASE \"d\" SET \"work_mem\" TO '1MB'",
                "ALTER DATABASE \"d\" SET \"app\".\"motto\" TO 'it''s'",
                "REVOKE ALL ON DATABASE \"d\" FROM PUBLIC",
                "GRANT CONNECT ON DATABASE \"d\" TO PUBLIC",
            ]
        );
        assert_eq!(statements[1].role.as_deref(), Some("gone"));
        assert_eq!(statements[2].shown, "ALTER DATABASE \"d\" SET \"app\".\"motto\"");
        assert!(statements[3].is_privilege && statements[4].is_privilege);
    }
}
