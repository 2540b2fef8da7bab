//! The database to restore into: made, found empty, gone on with, or refused.

use pgkeep_base::{BackupId, quote_identifier};
use pgkeep_pg::{Session, Target};

use crate::databases::Closed;
use crate::error::{Context, DumpError};
use crate::manifest::{DatabaseManifest, DatabaseProperties, Relation, RelationKind};
use crate::restore::mark::{self, Mark, Step};
use crate::restore::options::RestoreOptions;
use crate::restore::whole::{self, Chosen};
use crate::restore::{Restore, connect, plan, properties, replace};
use crate::{catalog, sql};

/// TimescaleDB's scheduler may reconnect between the kill and the drop.
pub(crate) const DROP_ATTEMPTS_MAX: u32 = 10;
pub(crate) const DROP_PAUSE: std::time::Duration = std::time::Duration::from_millis(300);

/// `object_in_use`
pub(crate) const SQLSTATE_OBJECT_IN_USE: &str = "55006";

/// What is to be done with the database's name in the target.
#[derive(Debug)]
pub enum Way {
    /// It isn't there.
    Create,
    /// It is there and holds nothing. What of it isn't as it was dumped, and can't be changed any more.
    UseEmpty(Vec<String>),
    /// It holds something that the user gave up: what, to complete "database 'x' ...".
    Replace(String),
    /// It holds the first part of this same restore.
    Resume(Mark),
}

impl Way {
    /// For the user, to complete "database 'x' ...".
    pub fn describe(&self) -> String {
        match self {
            Self::Create => "is made".to_owned(),
            Self::UseEmpty(_) => "is there and empty".to_owned(),
            Self::Replace(found) => format!("is dropped and made again: it {found}"),
            Self::Resume(_) => "is gone on with".to_owned(),
        }
    }
}

/// Whether a database is there, and why nobody can connect to it.
///
/// # Errors
/// PostgreSQL's.
pub async fn openness(session: &mut Session, name: &str) -> Result<Option<Option<Closed>>, DumpError> {
    let context = || format!("looking for database '{name}'");
    let sql = "SELECT datconnlimit, datallowconn FROM pg_catalog.pg_database WHERE datname = $1";
    let rows = session.query_params(sql, &[Some(name)]).await.context(context)?;
    let Some(row) = rows.first() else { return Ok(None) };
    let closed = Closed::of(row.get(0).context(context)?, row.get(1).context(context)?);
    Ok(Some(closed))
}

/// Finds out what is there.
///
/// # Errors
/// [`DumpError::Refused`] when something is in the way and the user didn't give it up.
pub async fn state(
    session: &mut Session,
    target: &Target,
    id: &BackupId,
    chosen: &Chosen<'_>,
    (database, target_name): (&DatabaseManifest, &str),
    options: &RestoreOptions,
) -> Result<Way, DumpError> {
    match openness(session, target_name).await? {
        None => return Ok(Way::Create),
        Some(None) => {}
        Some(Some(closed)) if options.overwrite => return Ok(Way::Replace(closed.reason().to_owned())),
        Some(Some(closed)) => {
            return Err(closed.refusal(target_name, "; or give --overwrite to drop and replace it"));
        }
    }
    let mut inside = connect(&target.with_database(target_name)).await?;
    let mark = mark::read(&mut inside).await?;
    let holds = contents(&mut inside).await?;
    let found = catalog::database_properties(&mut inside).await?;
    inside.close().await;
    match mark {
        Some(mark) if options.overwrite => Ok(Way::Replace(format!(
            "holds an unfinished restore of dump {}",
            mark.dump
        ))),
        Some(mark) => marked(mark, id, database, target_name, options),
        None if holds.is_none() => use_empty(database, &found, target_name, options),
        None if options.overwrite => Ok(Way::Replace(format!("holds {}", holds.unwrap_or_default()))),
        None => Err(DumpError::Refused {
            message: format!(
                "database '{target_name}' is there already and holds {}",
                holds.unwrap_or_default()
            ),
            hint: match options.resume {
                true => whole::without(id, chosen, target_name),
                false => "restore beside it with --target-database NAME, or give --overwrite to drop and replace it".to_owned(),
            },
        }),
    }
}

/// A database that holds an unfinished restore: gone on with, when it is this one.
fn marked(
    mark: Mark,
    id: &BackupId,
    database: &DatabaseManifest,
    target_name: &str,
    options: &RestoreOptions,
) -> Result<Way, DumpError> {
    if !mark.whole {
        // What else is in the database isn't the restore's to drop.
        return Err(DumpError::Refused {
            message: format!(
                "in database '{target_name}' a restore of single tables from dump {} stopped half-way",
                mark.dump
            ),
            hint: format!(
                "repeat that restore with --overwrite, or give it up with: DROP SCHEMA {} CASCADE",
                mark::MARK_SCHEMA
            ),
        });
    }
    if !options.resume {
        let does = match mark.is_complete() {
            true => "belongs to",
            false => "holds",
        };
        return Err(DumpError::Refused {
            message: format!(
                "database '{target_name}' {does} an unfinished restore of dump {}",
                mark.dump
            ),
            hint: "go on with --resume, or start over with --overwrite".to_owned(),
        });
    }
    if mark.dump != id.to_string() || mark.database != database.name {
        return Err(DumpError::Refused {
            message: format!(
                "database '{target_name}' holds an unfinished restore of '{}' from dump {}",
                mark.database, mark.dump
            ),
            hint: format!(
                "go on with that dump (pgkeep restore {} --resume), or replace it with --overwrite",
                mark.dump
            ),
        });
    }
    // Without the whole pre-data section there is nothing worth keeping.
    Ok(if mark.has(Step::PreData) {
        Way::Resume(mark)
    } else {
        Way::Replace(format!(
            "holds the mere beginning of a restore of dump {}",
            mark.dump
        ))
    })
}

/// An empty database is used as it is; its encoding and its locale can't be changed any more.
fn use_empty(
    database: &DatabaseManifest,
    found: &DatabaseProperties,
    target_name: &str,
    options: &RestoreOptions,
) -> Result<Way, DumpError> {
    let is_table = |relation: &Relation| relation.kind != RelationKind::Configuration;
    let difference = properties::difference(&database.properties, found)
        .filter(|_| database.relations.iter().any(is_table));
    let Some(difference) = difference else {
        return Ok(Way::UseEmpty(Vec::new()));
    };
    if options.overwrite {
        return Ok(Way::Replace(format!("is empty, but {}", difference.text)));
    }
    let name = quote_identifier(target_name);
    if difference.encoding {
        return Err(DumpError::Refused {
            message: format!("database '{target_name}' is empty, but {}", difference.text),
            hint: format!(
                "drop it (DROP DATABASE {name}), or give --overwrite, and it is made with the dumped encoding"
            ),
        });
    }
    Ok(Way::UseEmpty(vec![format!(
        "database '{target_name}' was there already, and {}: text sorts and compares as the database does; to have it as it \
         was, drop it (DROP DATABASE {name}) and restore again",
        difference.text
    )]))
}

/// What a database holds beyond what `CREATE DATABASE` and extensions put there; none if nothing.
pub(crate) async fn contents(session: &mut Session) -> Result<Option<String>, DumpError> {
    let context = || "looking at what the database holds".to_owned();
    let ours = |catalog: &str, alias: &str| {
        format!(
            "NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.{catalog}'::pg_catalog.regclass
               AND d.objid = {alias}.oid AND d.deptype = 'e')"
        )
    };
    let user_schema = "n.nspname OPERATOR(pg_catalog.!~) '^pg_' AND n.nspname <> 'information_schema'";
    let sql = format!(
        "SELECT (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                 WHERE {user_schema} AND c.relkind IN ('r','p','v','m','f','S') AND {}),
          (SELECT pg_catalog.count(*) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                 WHERE {user_schema} AND {}),
          (SELECT pg_catalog.count(*) FROM pg_catalog.pg_namespace n WHERE {user_schema} AND n.nspname <> 'public' AND {}),
          (SELECT pg_catalog.count(*) FROM pg_catalog.pg_largeobject_metadata)",
        ours("pg_class", "c"),
        ours("pg_proc", "p"),
        ours("pg_namespace", "n"),
    );
    let rows = session.query(&sql).await.context(context)?;
    let row = rows
        .first()
        .ok_or_else(|| DumpError::Internal("no counts".to_owned()))?;
    let mut parts = Vec::new();
    for (place, what) in [
        "tables, views and sequences",
        "functions",
        "schemas",
        "large objects",
    ]
    .iter()
    .enumerate()
    {
        let count: u64 = row.get(place).context(context)?;
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    Ok((!parts.is_empty()).then(|| parts.join(", ")))
}

/// Makes the database ready, and the mark. Returns what an earlier attempt has done.
///
/// # Errors
/// As [`state`]; PostgreSQL's.
pub async fn prepare(
    restore: &Restore<'_>,
    session: &mut Session,
    database: &DatabaseManifest,
    target_name: &str,
    attention: &mut Vec<String>,
) -> Result<Mark, DumpError> {
    let (target, options) = (restore.target, restore.options);
    let chosen = plan::choose(restore.manifest, options)?;
    let way = state(
        session,
        target,
        restore.id,
        &chosen,
        (database, target_name),
        options,
    )
    .await?;
    match way {
        Way::Resume(mark) => return Ok(mark),
        Way::Create => create(restore, session, database, target_name).await?,
        Way::Replace(_) if replace::takes_a_place(session, target_name).await? => {
            replace::replace(restore, session, database, target_name).await?;
            return Ok(Mark::default());
        }
        Way::Replace(_) => {
            drop_database(session, target_name).await?;
            create(restore, session, database, target_name).await?;
        }
        Way::UseEmpty(differences) => attention.extend(differences),
    }
    make_mark(restore, database, target_name).await?;
    Ok(Mark::default())
}

/// Marks a database as being restored as a whole.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn make_mark(
    restore: &Restore<'_>,
    database: &DatabaseManifest,
    target_name: &str,
) -> Result<(), DumpError> {
    let mut inside = connect(&restore.target.with_database(target_name)).await?;
    mark::make(&mut inside, &restore.id.to_string(), &database.name, true).await?;
    inside.close().await;
    Ok(())
}

/// Makes the database, with its owner where that role is there.
///
/// # Errors
/// PostgreSQL's.
pub async fn create(
    restore: &Restore<'_>,
    session: &mut Session,
    database: &DatabaseManifest,
    target_name: &str,
) -> Result<(), DumpError> {
    let owner = owner(restore, session, database).await?;
    let sql = sql::create_database(target_name, &database.properties, owner);
    session
        .execute(&sql)
        .await
        .context(|| format!("creating database '{target_name}'"))?;
    Ok(())
}

/// The owner that the database is made with.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn owner<'a>(
    restore: &Restore<'_>,
    session: &mut Session,
    database: &'a DatabaseManifest,
) -> Result<Option<&'a str>, DumpError> {
    let roles = crate::restore::roles::existing(session).await?;
    let owner = Some(database.properties.owner.as_str());
    Ok(owner.filter(|owner| restore.options.owners && roles.contains(*owner)))
}

/// Drops a scratch database.
///
/// # Errors
/// PostgreSQL's.
pub async fn drop_database_if_exists(session: &mut Session, name: &str) -> Result<(), DumpError> {
    match openness(session, name).await? {
        Some(_) => drop_database(session, name).await,
        None => Ok(()),
    }
}

async fn drop_database(session: &mut Session, name: &str) -> Result<(), DumpError> {
    let context = || format!("dropping database '{name}'");
    // PostgreSQL drops no template.
    let sql = "SELECT datistemplate FROM pg_catalog.pg_database WHERE datname = $1";
    let rows = session.query_params(sql, &[Some(name)]).await.context(context)?;
    let is_template = rows.first().map(|row| row.get(0)).transpose().context(context)?;
    if is_template.unwrap_or(false) {
        let sql = format!("ALTER DATABASE {} IS_TEMPLATE false", quote_identifier(name));
        session.execute(&sql).await.context(context)?;
    }
    let sql = format!("DROP DATABASE {} WITH (FORCE)", quote_identifier(name));
    let mut attempt = 1;
    loop {
        match session.execute(&sql).await {
            Ok(_) => return Ok(()),
            Err(error) if error.sqlstate() == Some(SQLSTATE_OBJECT_IN_USE) && attempt < DROP_ATTEMPTS_MAX => {
                attempt += 1;
                tokio::time::sleep(DROP_PAUSE).await;
            }
            Err(source) => {
                return Err(DumpError::Pg {
                    context: format!("dropping database '{name}'"),
                    source,
                });
            }
        }
    }
}
