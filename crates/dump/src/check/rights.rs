//! What the role may not read.

use std::collections::BTreeSet;

use pgkeep_base::{Severity, quote_identifier};
use pgkeep_pg::Session;

use super::{CheckReport, Mender};
use crate::catalog::CatalogRelation;
use crate::error::{Context, DumpError};
use crate::manifest::QualifiedName;
use crate::sequences;

/// Names that are told; of more, how many.
const NAMED_MAX: usize = 3;

/// What is to be read.
pub(super) struct Known<'a> {
    pub database: &'a str,
    pub relations: &'a [CatalogRelation],
    pub with_large_objects: bool,
}

pub(super) async fn check(
    session: &mut Session,
    known: &Known<'_>,
    mender: &Mender,
    report: &mut CheckReport,
) -> Result<(), DumpError> {
    schemas(session, known, mender, report).await?;
    tables(session, known, mender, report).await?;
    row_security(session, known, mender, report).await?;
    unreadable_sequences(session, known, mender, report).await?;
    if known.with_large_objects {
        large_objects(session, known, mender, report).await?;
    }
    Ok(())
}

/// `a, b, c and 4 more`
fn listed(names: &[String]) -> String {
    let shown = names
        .iter()
        .take(NAMED_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// One or all: `statement` for a single thing, the role of the readers for several.
fn grant(known: &Known<'_>, mender: &Mender, single: Option<String>) -> String {
    let all = format!("GRANT pg_read_all_data TO {}", mender.role());
    match single {
        Some(statement) => format!(
            "{}   # or, for all that comes later: {all}",
            mender.in_database(known.database, &[&statement])
        ),
        None => mender.in_database(known.database, &[&all]),
    }
}

fn tell(known: &Known<'_>, what: String, mend: String, report: &mut CheckReport) {
    let what = format!("{what} of database '{}'", known.database);
    let why = "all that is chosen is dumped, or nothing";
    report.add(Severity::Error, what, why, Some(mend));
}

/// Tells what the role may not `verb`, things of the kind `noun`, with the grant. `single` is the right that is lacking for
/// one of them, as a statement has it: `SELECT ON SEQUENCE game.id`.
fn tell_denied(
    known: &Known<'_>,
    mender: &Mender,
    (verb, noun): (&str, &str),
    (names, single): (&[String], Option<String>),
    report: &mut CheckReport,
) {
    let plural = if names.len() == 1 { "" } else { "s" };
    let what = format!(
        "'{}' may not {verb} the {noun}{plural} {}",
        mender.target.user(),
        listed(names)
    );
    let single = single.map(|right| format!("GRANT {right} TO {}", mender.role()));
    tell(known, what, grant(known, mender, single), report);
}

/// Of the relations to read, those whose oid a query of `pg_class` gives.
async fn relations(
    session: &mut Session,
    known: &Known<'_>,
    condition: &str,
) -> Result<Vec<QualifiedName>, DumpError> {
    let context = || "looking for what may not be read".to_owned();
    let sql =
        format!("SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p') AND {condition}");
    let mut oids = BTreeSet::new();
    for row in session.query(&sql).await.context(context)? {
        oids.insert(row.get::<u32>(0).context(context)?);
    }
    let named = known
        .relations
        .iter()
        .filter(|relation| oids.contains(&relation.oid));
    Ok(named.map(|relation| relation.name.clone()).collect())
}

fn texts(names: &[QualifiedName]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

async fn schemas(
    session: &mut Session,
    known: &Known<'_>,
    mender: &Mender,
    report: &mut CheckReport,
) -> Result<(), DumpError> {
    let closed = "NOT pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')";
    let in_closed = relations(session, known, closed).await?;
    let mut names: Vec<String> = in_closed.into_iter().map(|name| name.schema).collect();
    names.dedup();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Ok(());
    }
    let single = match names.as_slice() {
        [only] => Some(format!("USAGE ON SCHEMA {}", quote_identifier(only))),
        _ => None,
    };
    tell_denied(known, mender, ("use", "schema"), (&names, single), report);
    Ok(())
}

async fn tables(
    session: &mut Session,
    known: &Known<'_>,
    mender: &Mender,
    report: &mut CheckReport,
) -> Result<(), DumpError> {
    let names = relations(
        session,
        known,
        "NOT pg_catalog.has_table_privilege(c.oid, 'SELECT')",
    )
    .await?;
    let single = match names.as_slice() {
        [] => return Ok(()),
        [only] => Some(format!("SELECT ON {}", only.quoted())),
        _ => None,
    };
    tell_denied(known, mender, ("read", "table"), (&texts(&names), single), report);
    Ok(())
}

async fn row_security(
    session: &mut Session,
    known: &Known<'_>,
    mender: &Mender,
    report: &mut CheckReport,
) -> Result<(), DumpError> {
    let names = relations(
        session,
        known,
        "c.relrowsecurity AND pg_catalog.row_security_active(c.oid)",
    )
    .await?;
    if names.is_empty() {
        return Ok(());
    }
    let user = mender.target.user();
    let what = format!(
        "row-level security hides rows of {} from '{user}'",
        listed(&texts(&names))
    );
    let statement = format!("ALTER ROLE {} BYPASSRLS", mender.role());
    tell(
        known,
        what,
        mender.in_database(known.database, &[&statement]),
        report,
    );
    Ok(())
}

async fn unreadable_sequences(
    session: &mut Session,
    known: &Known<'_>,
    mender: &Mender,
    report: &mut CheckReport,
) -> Result<(), DumpError> {
    let names = sequences::unreadable(session).await?;
    let single = match names.as_slice() {
        [] => return Ok(()),
        [only] => Some(format!("SELECT ON SEQUENCE {}", only.quoted())),
        _ => None,
    };
    tell_denied(
        known,
        mender,
        ("read", "sequence"),
        (&texts(&names), single),
        report,
    );
    Ok(())
}

/// `pg_read_all_data` doesn't count for large objects.
async fn large_objects(
    session: &mut Session,
    known: &Known<'_>,
    mender: &Mender,
    report: &mut CheckReport,
) -> Result<(), DumpError> {
    let context = || "looking for large objects that may not be read".to_owned();
    let sql = "SELECT count(*), min(m.oid) FROM pg_catalog.pg_largeobject_metadata m
        WHERE NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
          AND pg_catalog.current_setting('lo_compat_privileges') = 'off'
          AND NOT pg_catalog.pg_has_role(m.lomowner, 'USAGE')
          AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'
            AND (a.grantee = 0 OR pg_catalog.pg_has_role(a.grantee, 'USAGE')))";
    let rows = session.query(sql).await.context(context)?;
    let Some(row) = rows.first() else { return Ok(()) };
    let (number, first): (u64, Option<u32>) = (row.get(0).context(context)?, row.get(1).context(context)?);
    let (Some(first), role) = (first.filter(|_| number > 0), mender.role()) else {
        return Ok(());
    };
    let (what, statement) = match number {
        1 => (
            format!("the large object {first}"),
            format!("GRANT SELECT ON LARGE OBJECT {first} TO {role}"),
        ),
        _ => (
            format!("{number} large objects"),
            format!(
                "DO $$ DECLARE o oid; BEGIN FOR o IN SELECT oid FROM pg_largeobject_metadata LOOP EXECUTE \
                 pg_catalog.format('GRANT SELECT ON LARGE OBJECT %s TO {}', o); END LOOP; END $$",
                role.replace('%', "%%").replace('\'', "''")
            ),
        ),
    };
    let what = format!("'{}' may not read {what}", mender.target.user());
    tell(
        known,
        what,
        mender.in_database(known.database, &[&statement]),
        report,
    );
    Ok(())
}
