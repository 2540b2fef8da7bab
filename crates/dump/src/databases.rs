//! Which databases a dump reads, and which it can't.

use pgkeep_base::{Classified, RetryClass, list_names, one_line, quote_identifier, quote_literal};
use pgkeep_pg::{Session, Target};

use crate::error::{Context, DumpError};
use crate::restore::{contents, scratch};

/// What a dump reads, and what it has to leave out.
pub(crate) struct ChosenDatabases {
    /// The databases' names, in the order they are read in.
    pub databases: Vec<String>,
    /// What can't be read although everything was asked for, in plain words, with its mend.
    pub omissions: Vec<String>,
}

/// A database of the cluster, template0 and template1 aside.
pub(crate) struct Listed {
    pub name: String,
    pub closed: Option<Closed>,
}

/// What PostgreSQL sets `datconnlimit` to before it removes a database's files.
const HALF_DROPPED: i32 = -2;

/// `invalid_catalog_name`
const SQLSTATE_NO_SUCH_DATABASE: &str = "3D000";

/// Why nobody can connect to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// `datconnlimit = -2`, which PostgreSQL sets before it removes the files. `DROP DATABASE` is all that it allows.
    HalfDropped,
    /// `datallowconn = false`
    NoConnections,
}

impl Closed {
    /// From `pg_database`.
    pub(crate) fn of(connection_limit: i32, allows_connections: bool) -> Option<Self> {
        match (connection_limit, allows_connections) {
            (HALF_DROPPED, _) => Some(Self::HalfDropped),
            (_, false) => Some(Self::NoConnections),
            (_, true) => None,
        }
    }

    /// Refuses to restore into it; `otherwise` goes on with the mend.
    pub(crate) fn refusal(self, name: &str, otherwise: &str) -> DumpError {
        DumpError::Refused {
            message: format!("database '{name}' {}", self.reason()),
            hint: format!("{}{otherwise}", self.mend(name)),
        }
    }

    /// Completes "database 'x' ...".
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::HalfDropped => "is what an interrupted DROP DATABASE left, and can't be read",
            Self::NoConnections => "takes no connections (datallowconn is false)",
        }
    }

    fn mend(self, name: &str) -> String {
        let name = quote_identifier(name);
        match self {
            Self::HalfDropped => format!("finish the drop: DROP DATABASE {name}"),
            Self::NoConnections => format!("let it be read: ALTER DATABASE {name} ALLOW_CONNECTIONS true"),
        }
    }
}

/// All that a dump of everything would read, and what it can't.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn list(session: &mut Session) -> Result<Vec<Listed>, DumpError> {
    let context = || "listing the databases".to_owned();
    // Scratch databases of restores hold nothing of their own.
    let sql = format!(
        "SELECT d.datname, d.datconnlimit, d.datallowconn FROM pg_catalog.pg_database d
         WHERE d.datname NOT IN ('template0', 'template1')
           AND NOT (pg_catalog.starts_with(d.datname::pg_catalog.text, {})
             AND coalesce(pg_catalog.shobj_description(d.oid, 'pg_database') = {}, false))
         ORDER BY d.datname <> 'postgres', d.datname",
        quote_literal(scratch::PREFIX),
        quote_literal(scratch::COMMENT)
    );
    let mut listed = Vec::new();
    for row in session.query(&sql).await.context(context)? {
        let closed = Closed::of(row.get(1).context(context)?, row.get(2).context(context)?);
        let name = row.get(0).context(context)?;
        listed.push(Listed { name, closed });
    }
    Ok(listed)
}

/// Those that are named, or all that can be read.
///
/// # Errors
/// PostgreSQL's; a named one isn't there, or can't be read.
pub(crate) async fn choose(
    session: &mut Session,
    target: &Target,
    named: &[String],
) -> Result<ChosenDatabases, DumpError> {
    let listed = list(session).await?;
    if named.is_empty() {
        let omissions = listed.iter().filter_map(|database| {
            let (name, closed) = (&database.name, database.closed?);
            Some(format!(
                "database '{name}', which {}; {}",
                closed.reason(),
                closed.mend(name)
            ))
        });
        let in_template1 = in_template1(target).await.map(|what| {
            format!("{what}; keep it as a script: pg_dump --dbname=template1 --file=template1.sql")
        });
        let omissions = omissions.chain(in_template1).collect();
        let readable = listed.into_iter().filter(|database| database.closed.is_none());
        let databases = readable.map(|database| database.name).collect();
        return Ok(ChosenDatabases { databases, omissions });
    }
    for name in named {
        match listed.iter().find(|database| database.name == *name) {
            None => {
                let names = listed.iter().map(|database| &database.name);
                return Err(DumpError::Usage {
                    message: format!("there is no database '{}' in the cluster", one_line(name)),
                    hint: Some(format!("it has: {}", list_names(names))),
                });
            }
            Some(Listed {
                closed: Some(closed), ..
            }) => {
                return Err(DumpError::Target {
                    message: format!("database '{name}' {}", closed.reason()),
                    hint: Some(closed.mend(name)),
                });
            }
            Some(_) => {}
        }
    }
    let mut databases = named.to_vec();
    databases.sort();
    databases.dedup();
    Ok(ChosenDatabases {
        databases,
        omissions: Vec::new(),
    })
}

/// What somebody put into template1 is in new databases of the old server; restores make theirs of template0.
pub(crate) async fn in_template1(target: &Target) -> Option<String> {
    let look = async {
        let target = target.with_database("template1");
        let mut session = Session::connect(&target)
            .await
            .context(|| "connecting to database 'template1'".to_owned())?;
        let contents = contents(&mut session).await;
        session.close().await;
        contents
    };
    match look.await {
        Ok(contents) => contents.map(|contents| {
            format!("what was put into template1 ({contents}), of which new databases are made")
        }),
        Err(DumpError::Pg { source, .. }) if source.sqlstate() == Some(SQLSTATE_NO_SUCH_DATABASE) => None,
        Err(error) => Some(format!(
            "what somebody may have put into template1, of which new databases are made: it can't be looked into ({error}); \
             let this role connect to it, or keep it as a script: pg_dump --dbname=template1 --file=template1.sql"
        )),
    }
}

/// What is said of a database that turned out to be half-restored, or gone, when it was its turn; none where it was named, or
/// the error is another.
pub(crate) fn omission(error: &DumpError, named: &[String]) -> Option<String> {
    match error {
        DumpError::HalfRestored { database, what, mend } if named.is_empty() => {
            Some(format!("database '{database}', which {what}; {mend}"))
        }
        DumpError::DatabaseGone {
            database,
            source: None,
        } if named.is_empty() => Some(format!(
            "database '{database}', which was dropped or renamed while the dump ran"
        )),
        _ => None,
    }
}

/// The error of connecting to a database that had been listed.
pub(crate) fn gone_before(database: &str, error: DumpError) -> DumpError {
    match error.sqlstate() {
        Some(SQLSTATE_NO_SUCH_DATABASE) => DumpError::DatabaseGone {
            database: database.to_owned(),
            source: None,
        },
        _ => error,
    }
}

/// The error of reading a database: where it is gone, as by DROP DATABASE ... WITH (FORCE), which ends the sessions in it,
/// neither the server nor the connection is to be mended.
pub(crate) async fn gone_meanwhile(target: &Target, database: &str, error: DumpError) -> DumpError {
    let may_be_gone = match &error {
        DumpError::Pg { source, .. } => {
            source.retry_class() == RetryClass::Transient
                || source.sqlstate() == Some(SQLSTATE_NO_SUCH_DATABASE)
        }
        DumpError::Program { .. } | DumpError::Timescale { .. } => true,
        _ => false,
    };
    if !may_be_gone || is_there(target, database).await {
        return error;
    }
    DumpError::DatabaseGone {
        database: database.to_owned(),
        source: Some(Box::new(error)),
    }
}

/// Whether a database is in the cluster, or it can't be told. By connecting to it: a DROP DATABASE that has ended its sessions and
/// isn't done yet is waited for then.
async fn is_there(target: &Target, database: &str) -> bool {
    match Session::connect(&target.with_database(database)).await {
        Ok(session) => {
            session.close().await;
            true
        }
        Err(error) => error.sqlstate() != Some(SQLSTATE_NO_SUCH_DATABASE),
    }
}
