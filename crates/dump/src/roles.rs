//! Which roles a database can't do without: for a restore of that database alone.

use std::collections::BTreeSet;

use pgkeep_pg::Session;
use pgkeep_timescale::Inventory;

use crate::error::{Context, DumpError};
use crate::manifest::DatabaseProperties;

/// `pg_shdepend` has every owner, grantee, policy's role and user mapping's role; but not the role that made the cluster,
/// nor those that rows name.
const USED_SQL: &str = "SELECT r.rolname FROM pg_catalog.pg_roles r
    WHERE r.oid = 10 OR r.oid IN (
      SELECT d.refobjid FROM pg_catalog.pg_shdepend d
      WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.dbid =
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))";

/// Whether rows may hold roles themselves (`regrole`), which no catalog tells. TimescaleDB's jobs do; they are in the inventory.
const ROWS_NAME_ROLES_SQL: &str = "SELECT EXISTS (
    SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
      AND a.atttypid IN ('pg_catalog.regrole'::pg_catalog.regtype, 'pg_catalog.regrole[]'::pg_catalog.regtype)
      AND n.nspname OPERATOR(pg_catalog.!~) '^(pg_|_timescaledb_)' AND n.nspname <> 'information_schema')";

/// The roles of the session's database; none where that can't be told.
///
/// # Errors
/// PostgreSQL's.
pub(crate) async fn used(
    session: &mut Session,
    properties: &DatabaseProperties,
    timescaledb: Option<&Inventory>,
) -> Result<Option<Vec<String>>, DumpError> {
    let context = || "listing the roles that the database uses".to_owned();
    let rows = session.query(ROWS_NAME_ROLES_SQL).await.context(context)?;
    let name_roles: Option<bool> = rows.first().map(|row| row.get(0)).transpose().context(context)?;
    if name_roles != Some(false) {
        return Ok(None);
    }
    let mut roles = BTreeSet::from([properties.owner.clone()]);
    for row in session.query(USED_SQL).await.context(context)? {
        roles.insert(row.get(0).context(context)?);
    }
    let privileges = properties.privileges.iter().flatten();
    roles.extend(privileges.filter_map(|privilege| privilege.grantee.clone()));
    roles.extend(
        properties
            .settings
            .iter()
            .filter_map(|setting| setting.role.clone()),
    );
    let jobs = timescaledb.iter().flat_map(|inventory| &inventory.jobs);
    roles.extend(jobs.map(|job| job.owner.clone()));
    Ok(Some(roles.into_iter().collect()))
}
