//! What is to be dumped: PostgreSQL's catalog, read over SQL.

use pgkeep_base::quote_literal;
use pgkeep_pg::{Row, Session};

use crate::binary::PORTABLE_SEND_FUNCTIONS;
use crate::error::{Context, DumpError};
use crate::manifest::{
    DatabasePrivilege, DatabaseProperties, DatabaseSetting, ExtensionInfo, Filters, QualifiedName,
    RelationKind, RowFormat,
};
use crate::pattern::{Pattern, regex_condition};

/// The session settings under which rows are read: what pg_dump sets (`src/bin/pg_dump/pg_dump.c`,
/// `setup_connection`), and a fixed time zone so that equal rows make equal text.
pub const READ_SETTINGS: &str = "SET search_path = ''; SET datestyle = ISO; SET intervalstyle = postgres; \
    SET extra_float_digits = 3; SET timezone = 'UTC'; SET bytea_output = hex; SET xmloption = content; \
    SET synchronize_seqscans = off; SET row_security = off; SET statement_timeout = 0; SET lock_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; SET standard_conforming_strings = on";

/// Settings that exist from a server version on.
pub fn versioned_settings(server_version_num: u32) -> &'static str {
    if server_version_num >= 170_000 {
        "; SET transaction_timeout = 0; SET idle_session_timeout = 0"
    } else {
        "; SET idle_session_timeout = 0"
    }
}

/// A relation of the database that the dump reads or at least locks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogRelation {
    /// `pg_class.oid`
    pub oid: u32,
    /// Its name.
    pub name: QualifiedName,
    /// False for partitioned tables, which are locked and hold no rows themselves.
    pub has_rows: bool,
    /// What its rows are; TimescaleDB's kinds are filled in later.
    pub kind: RelationKind,
    /// The columns for COPY, quoted; without generated ones.
    pub columns: String,
    /// For a configuration table: the condition the extension registered, `WHERE` included.
    pub condition: String,
    /// See [`crate::manifest::Relation::load_into`].
    pub load_into: Option<QualifiedName>,
    /// For a partition: the partitioned table at the top.
    pub partition_of: Option<QualifiedName>,
    /// Rows are left out on request.
    pub data_excluded: bool,
    /// How its rows are read: binary where every column's type allows that.
    pub format: RowFormat,
}

/// The oids below are assigned by hand and the same in every version (`src/include/access/transam.h`).
const FIRST_GENBKI_OBJECT_ID: u32 = 10_000;

/// A query of the types (`oid`) whose binary form means the same in another database: built-in forms, arrays of built-in
/// types (an array names its element type by oid), domains over them, and TimescaleDB's compressed columns, which the
/// extension's version, equal on both sides, gives their meaning.
fn portable_types() -> String {
    let functions = PORTABLE_SEND_FUNCTIONS
        .iter()
        .map(|name| quote_literal(name))
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "sender AS (SELECT t.oid, t.typelem, t.typtype, t.typbasetype, p.proname, pn.nspname,
             pn.nspname = 'pg_catalog' AND p.proname IN ({functions}) AS portable
           FROM pg_catalog.pg_type t JOIN pg_catalog.pg_proc p ON p.oid = t.typsend AND t.typreceive <> 0
           JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace WHERE t.typtype IN ('b', 'e', 'd')),
         portable AS (
           SELECT s.oid FROM sender s LEFT JOIN sender e ON e.oid = s.typelem
           WHERE s.typtype <> 'd' AND (s.portable
             OR (s.proname = 'array_send' AND s.nspname = 'pg_catalog' AND e.portable AND e.oid < {FIRST_GENBKI_OBJECT_ID})
             OR (s.proname = 'compressed_data_send'
               AND s.nspname IN ('_timescaledb_functions', '_timescaledb_internal')))
           UNION SELECT s.oid FROM sender s JOIN portable b ON b.oid = s.typbasetype WHERE s.typtype = 'd')"
    )
}

/// A relation is known under its own name and under its owner's: a chunk's hypertable, a partition's root.
const NAMES: [(&str, &str); 2] = [("n.nspname", "c.relname"), ("f.schema_name", "f.table_name")];

/// Makes `f`, the second of [`NAMES`], in a query of a relation `c`, its schema `n`, and `o`: the hypertable that it belongs to,
/// if any, with its `schema_name` and `table_name`.
pub const FILTERED_NAMES: &str = "LEFT JOIN LATERAL (
           SELECT pn.nspname, pc.relname FROM pg_catalog.pg_class pc
           JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace
           WHERE c.relispartition AND pc.oid = pg_catalog.pg_partition_root(c.oid)) top ON true
         CROSS JOIN LATERAL (SELECT coalesce(o.schema_name, top.nspname, n.nspname) AS schema_name,
                                    coalesce(o.table_name, top.relname, c.relname) AS table_name) f";

/// What the patterns fit, in terms of `n`, `c` and `f`; none without patterns.
///
/// # Errors
/// A malformed pattern.
pub fn names_condition(patterns: &[String]) -> Result<Option<String>, DumpError> {
    let mut conditions = Vec::new();
    for text in patterns {
        let pattern = Pattern::relation(text).map_err(usage)?;
        conditions.extend(NAMES.map(|(schema, name)| pattern.condition(schema, name)));
    }
    Ok((!conditions.is_empty()).then(|| format!("({})", conditions.join(" OR "))))
}

/// The same for patterns of schemas.
///
/// # Errors
/// A malformed pattern.
pub fn schemas_condition(patterns: &[String]) -> Result<Option<String>, DumpError> {
    let mut conditions = Vec::new();
    for text in patterns {
        let regex = Pattern::schema(text).map_err(usage)?;
        conditions.extend(NAMES.map(|(schema, _)| regex_condition(schema, &regex)));
    }
    Ok((!conditions.is_empty()).then(|| format!("({})", conditions.join(" OR "))))
}

fn usage(message: String) -> DumpError {
    DumpError::Usage {
        message,
        hint: Some(
            "patterns are those of pg_dump: * and ? are wild, \"quotes\" take a name as it is".to_owned(),
        ),
    }
}

/// The condition that picks what the filters ask for.
fn filters_condition(filters: &Filters) -> Result<String, DumpError> {
    let picks = [
        names_condition(&filters.tables)?,
        schemas_condition(&filters.schemas)?,
    ];
    let picks: Vec<String> = picks.into_iter().flatten().collect();
    let drops = [
        names_condition(&filters.exclude_tables)?,
        schemas_condition(&filters.exclude_schemas)?,
    ];
    let mut condition = if picks.is_empty() {
        "true".to_owned()
    } else {
        format!("({})", picks.join(" OR "))
    };
    for drop in drops.into_iter().flatten() {
        condition.push_str(&format!(" AND NOT {drop}"));
    }
    Ok(condition)
}

/// Lists every relation to lock and read, in a stable order. `owners` is a query of `(relid oid, schema_name, table_name)`
/// that tells under which name filters see a relation (a chunk under its hypertable's); it may be empty of rows.
///
/// # Errors
/// PostgreSQL's, or a malformed pattern.
pub async fn relations(
    session: &mut Session,
    filters: &Filters,
    owners: &str,
) -> Result<Vec<CatalogRelation>, DumpError> {
    let condition = filters_condition(filters)?;
    let excluded_data = names_condition(&filters.exclude_table_data)?;
    // Rows of a leaf whose root hashes enum values must go through the root: the hash depends on the enum's oids,
    // which differ in the restored database (pg_dump.c, getPartitioningInfo).
    let sql = format!(
        "WITH RECURSIVE owner AS ({owners}),
         {types},
         unsafe_root AS (
           SELECT partrelid FROM pg_catalog.pg_partitioned_table
           WHERE (SELECT c.oid FROM pg_catalog.pg_opclass c JOIN pg_catalog.pg_am a ON c.opcmethod = a.oid
                  WHERE c.opcname = 'enum_ops' AND c.opcnamespace = 'pg_catalog'::pg_catalog.regnamespace
                    AND a.amname = 'hash') = ANY (partclass)),
         configuration AS (
           SELECT u.relid, u.condition FROM pg_catalog.pg_extension e,
             ROWS FROM (pg_catalog.unnest(e.extconfig), pg_catalog.unnest(e.extcondition)) AS u(relid, condition))
         SELECT c.oid, n.nspname, c.relname, c.relkind = 'r', g.relid IS NOT NULL,
           coalesce((SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum)
             FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), ''),
           coalesce(g.condition, ''), root.nspname, root.relname, {excluded}, top.nspname, top.relname,
           NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
               AND a.atttypid NOT IN (SELECT oid FROM portable))
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN configuration g ON g.relid = c.oid
         LEFT JOIN owner o ON o.relid = c.oid
         {names}
         LEFT JOIN LATERAL (
           SELECT rn.nspname, rc.relname FROM pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY AS p(relid, depth)
           JOIN pg_catalog.pg_class rc ON rc.oid = p.relid JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
           WHERE p.relid IN (SELECT partrelid FROM unsafe_root) ORDER BY p.depth DESC LIMIT 1) root
           ON c.relispartition
         WHERE c.relkind IN ('r', 'p') AND c.relpersistence IN ('p', 'u')
           AND n.nspname OPERATOR(pg_catalog.!~) '^pg_' AND n.nspname <> 'information_schema'
           AND (g.relid IS NOT NULL OR (({condition}) AND NOT EXISTS (
             SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
               AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e')))
         ORDER BY c.oid",
        names = FILTERED_NAMES,
        types = portable_types(),
        excluded = excluded_data.as_deref().unwrap_or("false"),
    );
    let rows = session
        .query(&sql)
        .await
        .context(|| "listing the tables".to_owned())?;
    rows.iter()
        .map(|row| relation_from(row).context(|| "reading the list of tables".to_owned()))
        .collect()
}

fn relation_from(row: &Row) -> Result<CatalogRelation, pgkeep_pg::PgError> {
    let name = |(schema, name): (Option<String>, Option<String>)| {
        schema
            .zip(name)
            .map(|(schema, name)| QualifiedName { schema, name })
    };
    let configuration: bool = row.get(4)?;
    Ok(CatalogRelation {
        oid: row.get(0)?,
        name: QualifiedName {
            schema: row.get(1)?,
            name: row.get(2)?,
        },
        has_rows: row.get(3)?,
        kind: if configuration {
            RelationKind::Configuration
        } else {
            RelationKind::Table
        },
        columns: row.get(5)?,
        condition: row.get(6)?,
        load_into: name((row.get(7)?, row.get(8)?)),
        partition_of: name((row.get(10)?, row.get(11)?)),
        data_excluded: row.get(9)?,
        format: if row.get(12)? {
            RowFormat::Binary
        } else {
            RowFormat::Text
        },
    })
}

/// Extensions' configuration tables in the order in which foreign keys between them allow loading: a table's depth is
/// the longest chain of references below it. A table that refers to itself is loaded by one COPY, which checks at its
/// end.
///
/// # Errors
/// PostgreSQL's.
pub async fn configuration_order(session: &mut Session) -> Result<Vec<u32>, DumpError> {
    const DEPTH_MAX: u32 = 64;
    let sql = format!(
        "WITH RECURSIVE configuration AS (
           SELECT pg_catalog.unnest(extconfig) AS relid FROM pg_catalog.pg_extension),
         reference AS (
           SELECT DISTINCT conrelid, confrelid FROM pg_catalog.pg_constraint
           WHERE contype = 'f' AND conrelid <> confrelid AND conrelid IN (SELECT relid FROM configuration)
             AND confrelid IN (SELECT relid FROM configuration)),
         depth AS (
           SELECT relid, 0 AS level FROM configuration
           UNION SELECT r.conrelid, d.level + 1 FROM depth d JOIN reference r ON r.confrelid = d.relid
           WHERE d.level < {DEPTH_MAX})
         SELECT relid, max(level) FROM depth GROUP BY relid ORDER BY max(level), relid"
    );
    let rows = session
        .query(&sql)
        .await
        .context(|| "ordering the extensions' configuration tables".to_owned())?;
    rows.iter()
        .map(|row| {
            row.get(0)
                .context(|| "reading the order of configuration tables".to_owned())
        })
        .collect()
}

/// The sizes of relations' rows on disk, in bytes, by oid: without what vacuum keeps of them, so that they stay as they are
/// when the rows do. Asked for relations that are locked, so it doesn't wait.
///
/// # Errors
/// PostgreSQL's.
pub async fn sizes(session: &mut Session, relations: &[CatalogRelation]) -> Result<Vec<u64>, DumpError> {
    const BATCH: usize = 10_000;
    let mut sizes = Vec::with_capacity(relations.len());
    for batch in relations.chunks(BATCH) {
        let oids: Vec<String> = batch.iter().map(|relation| relation.oid.to_string()).collect();
        let sql = format!(
            "SELECT coalesce(pg_catalog.pg_relation_size(o), 0)
               + coalesce((SELECT pg_catalog.pg_relation_size(NULLIF(reltoastrelid, 0)) FROM pg_catalog.pg_class
                   WHERE pg_class.oid = o), 0)
             FROM pg_catalog.unnest('{{{}}}'::pg_catalog.oid[]) WITH ORDINALITY AS t(o, place) ORDER BY place",
            oids.join(",")
        );
        for row in session
            .query(&sql)
            .await
            .context(|| "reading table sizes".to_owned())?
        {
            sizes.push(row.get::<u64>(0).context(|| "reading table sizes".to_owned())?);
        }
    }
    Ok(sizes)
}

/// `pg_control_system().system_identifier`.
///
/// # Errors
/// PostgreSQL's.
pub async fn system_identifier(session: &mut Session) -> Result<u64, DumpError> {
    let context = || "reading the cluster's system identifier".to_owned();
    let sql = "SELECT system_identifier FROM pg_catalog.pg_control_system()";
    let rows = session.query(sql).await.context(context)?;
    let row = rows
        .first()
        .ok_or_else(|| DumpError::Internal("no system identifier".to_owned()))?;
    row.get(0).context(context)
}

/// The installed extensions, by name.
///
/// # Errors
/// PostgreSQL's.
pub async fn extensions(session: &mut Session) -> Result<Vec<ExtensionInfo>, DumpError> {
    let context = || "listing the extensions".to_owned();
    let sql = "SELECT e.extname, e.extversion, n.nspname FROM pg_catalog.pg_extension e
        JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace ORDER BY e.extname";
    let mut extensions = Vec::new();
    for row in session.query(sql).await.context(context)? {
        extensions.push(ExtensionInfo {
            name: row.get(0).context(context)?,
            version: row.get(1).context(context)?,
            schema: row.get(2).context(context)?,
        });
    }
    Ok(extensions)
}

/// What `CREATE DATABASE` and `ALTER DATABASE` need to make the session's database again.
///
/// # Errors
/// PostgreSQL's.
pub async fn database_properties(session: &mut Session) -> Result<DatabaseProperties, DumpError> {
    let context = || "reading the database's properties".to_owned();
    // daticulocale became datlocale in 17; datlocprovider came with 15, daticurules with 16.
    let locale = if session.server_version_num() >= 170_000 {
        "d.datlocale"
    } else {
        "d.daticulocale"
    };
    let rules = if session.server_version_num() >= 160_000 {
        "d.daticurules"
    } else {
        "NULL"
    };
    let sql = format!(
        "SELECT pg_catalog.pg_get_userbyid(d.datdba), pg_catalog.pg_encoding_to_char(d.encoding), d.datlocprovider,
           d.datcollate, d.datctype, {locale}, {rules}, d.datconnlimit, d.datistemplate,
           pg_catalog.shobj_description(d.oid, 'pg_database'), d.datacl IS NOT NULL
         FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()"
    );
    let rows = session.query(&sql).await.context(context)?;
    let row = rows
        .first()
        .ok_or_else(|| DumpError::Internal("the database isn't in pg_database".to_owned()))?;
    let has_privileges: bool = row.get(10).context(context)?;
    Ok(DatabaseProperties {
        owner: row.get(0).context(context)?,
        encoding: row.get(1).context(context)?,
        locale_provider: row.get(2).context(context)?,
        collate: row.get(3).context(context)?,
        ctype: row.get(4).context(context)?,
        locale: row.get(5).context(context)?,
        icu_rules: row.get(6).context(context)?,
        connection_limit: row.get(7).context(context)?,
        is_template: row.get(8).context(context)?,
        comment: row.get(9).context(context)?,
        settings: database_settings(session).await?,
        privileges: if has_privileges {
            Some(database_privileges(session).await?)
        } else {
            None
        },
    })
}

/// `timescaledb.restoring` is set by a restore and must never be restored itself.
const SETTINGS_NOT_KEPT: &str = "timescaledb.restoring";

async fn database_settings(session: &mut Session) -> Result<Vec<DatabaseSetting>, DumpError> {
    let context = || "reading the database's settings".to_owned();
    let sql = "SELECT r.rolname, setting FROM pg_catalog.pg_db_role_setting s
        CROSS JOIN pg_catalog.unnest(s.setconfig) AS setting
        LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
        WHERE s.setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
        ORDER BY r.rolname NULLS FIRST, setting";
    let mut settings = Vec::new();
    for row in session.query(sql).await.context(context)? {
        let setting: String = row.get(1).context(context)?;
        let Some((name, value)) = setting.split_once('=') else {
            continue;
        };
        if name != SETTINGS_NOT_KEPT {
            let role = row.get(0).context(context)?;
            settings.push(DatabaseSetting {
                role,
                name: name.to_owned(),
                value: value.to_owned(),
            });
        }
    }
    Ok(settings)
}

async fn database_privileges(session: &mut Session) -> Result<Vec<DatabasePrivilege>, DumpError> {
    let context = || "reading the database's privileges".to_owned();
    let sql = "SELECT CASE WHEN x.grantee = 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(x.grantee) END,
          x.privilege_type, x.is_grantable
        FROM pg_catalog.pg_database d CROSS JOIN pg_catalog.aclexplode(d.datacl) x
        WHERE d.datname = pg_catalog.current_database() ORDER BY 1 NULLS FIRST, 2";
    let mut privileges = Vec::new();
    for row in session.query(sql).await.context(context)? {
        privileges.push(DatabasePrivilege {
            grantee: row.get(0).context(context)?,
            privilege: row.get(1).context(context)?,
            grantable: row.get(2).context(context)?,
        });
    }
    Ok(privileges)
}

/// Populated materialized views, each after those it reads from. Empty ones stay empty, as with pg_dump.
///
/// # Errors
/// PostgreSQL's.
pub async fn materialized_views(session: &mut Session) -> Result<Vec<QualifiedName>, DumpError> {
    const DEPTH_MAX: u32 = 100;
    let context = || "listing the materialized views".to_owned();
    let sql = format!(
        "WITH RECURSIVE reads AS (
           SELECT DISTINCT r.ev_class AS reader, d.refobjid AS source
           FROM pg_catalog.pg_rewrite r
           JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
             AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid <> r.ev_class
           JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND c.relkind IN ('v', 'm')),
         depth AS (
           SELECT oid AS relid, 0 AS level FROM pg_catalog.pg_class WHERE relkind IN ('v', 'm')
           UNION SELECT r.reader, d.level + 1 FROM depth d JOIN reads r ON r.source = d.relid
           WHERE d.level < {DEPTH_MAX})
         SELECT n.nspname, c.relname FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         JOIN (SELECT relid, max(level) AS level FROM depth GROUP BY relid) o ON o.relid = c.oid
         WHERE c.relkind = 'm' AND c.relispopulated AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
           WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e')
         ORDER BY o.level, n.nspname, c.relname"
    );
    let mut views = Vec::new();
    for row in session.query(&sql).await.context(context)? {
        views.push(QualifiedName {
            schema: row.get(0).context(context)?,
            name: row.get(1).context(context)?,
        });
    }
    Ok(views)
}

/// Which catalog entries belong to which table: see [`crate::manifest::DatabaseManifest::dependents`].
///
/// # Errors
/// PostgreSQL's.
pub async fn dependents(session: &mut Session) -> Result<String, DumpError> {
    let sql = "SELECT pg_catalog.concat_ws(E'\\t', class, object, relation, referenced) FROM (
        SELECT 'pg_class'::regclass::oid AS class, indexrelid AS object, indrelid AS relation, NULL::oid AS referenced FROM pg_index
        UNION ALL SELECT 'pg_constraint'::regclass::oid, oid, conrelid, nullif(confrelid, 0) FROM pg_constraint WHERE conrelid <> 0
        UNION ALL SELECT 'pg_trigger'::regclass::oid, oid, tgrelid, NULL FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT 'pg_attrdef'::regclass::oid, oid, adrelid, NULL FROM pg_attrdef
        UNION ALL SELECT 'pg_policy'::regclass::oid, oid, polrelid, NULL FROM pg_policy
        UNION ALL SELECT 'pg_rewrite'::regclass::oid, oid, ev_class, NULL FROM pg_rewrite
        UNION ALL SELECT 'pg_statistic_ext'::regclass::oid, oid, stxrelid, NULL FROM pg_statistic_ext
        UNION ALL SELECT classid, objid, refobjid, NULL FROM pg_depend WHERE classid = 'pg_class'::regclass
          AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i') AND refobjsubid > 0
          AND objid IN (SELECT oid FROM pg_class WHERE relkind = 'S')) entry
        JOIN pg_class c ON c.oid = entry.relation JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";
    let context = || "listing what belongs to the tables".to_owned();
    session
        .execute("SET search_path = pg_catalog")
        .await
        .context(context)?;
    let rows = session.query(sql).await;
    session.execute("SET search_path = ''").await.context(context)?;
    let mut text = String::new();
    for row in rows.context(context)? {
        text.push_str(row.text(0).unwrap_or_default());
        text.push('\n');
    }
    Ok(text)
}

/// The oids of foreign keys that reference a hypertable: they can be created only when TimescaleDB's restore mode has
/// ended, because until then the hypertable looks empty (see the `timescale` crate).
///
/// # Errors
/// PostgreSQL's.
pub async fn foreign_keys_to_hypertables(session: &mut Session) -> Result<Vec<u32>, DumpError> {
    let context = || "listing the foreign keys to hypertables".to_owned();
    let sql = "SELECT f.oid FROM pg_catalog.pg_constraint f
        JOIN pg_catalog.pg_class t ON t.oid = f.confrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
        JOIN _timescaledb_catalog.hypertable h ON h.schema_name = n.nspname AND h.table_name = t.relname
        WHERE f.contype = 'f' AND f.conparentid = 0 ORDER BY f.oid";
    let rows = session.query(sql).await.context(context)?;
    rows.iter().map(|row| row.get(0).context(context)).collect()
}

/// Settings for all roles in all databases (`ALTER ROLE ALL SET`), which `pg_dumpall` leaves out.
///
/// # Errors
/// PostgreSQL's.
pub async fn settings_for_all(session: &mut Session) -> Result<Vec<DatabaseSetting>, DumpError> {
    let context = || "reading the settings for all roles".to_owned();
    let sql = "SELECT setting FROM pg_catalog.pg_db_role_setting s CROSS JOIN pg_catalog.unnest(s.setconfig) AS setting
        WHERE s.setdatabase = 0 AND s.setrole = 0 ORDER BY setting";
    let mut settings = Vec::new();
    for row in session.query(sql).await.context(context)? {
        let setting: String = row.get(0).context(context)?;
        if let Some((name, value)) = setting.split_once('=') {
            settings.push(DatabaseSetting {
                role: None,
                name: name.to_owned(),
                value: value.to_owned(),
            });
        }
    }
    Ok(settings)
}
