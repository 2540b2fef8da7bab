//! A dump and a restore by hand, from one database of a server to another of it, in the order that the crate documents.
//! What the crate says about loading stands or falls here, without pgkeep's own dump.

use std::collections::BTreeSet;
use std::process::Output;

use pgkeep_testkit::Cluster;
use pgkeep_timescale::{ForeignKey, Inventory, JobId};

use super::connect;

/// What the manifest would hold.
pub struct Dumped {
    pub inventory: Inventory,
    pub foreign_keys: Vec<ForeignKey>,
}

const MEMBER_OF_EXTENSION: &str = "EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// Restores `source` as `target` up to the end of the restore mode, jobs held. Returns the jobs that were held.
pub async fn restore(cluster: &Cluster, source: &str, target: &str, dumped: &Dumped) -> Vec<JobId> {
    let archive = cluster.data_dir().with_file_name(format!("{target}.dump"));
    let archive = archive.to_str().unwrap();
    success(
        &cluster
            .client_command("pg_dump")
            .args(["-Fc", "--schema-only", "-f", archive, source])
            .output()
            .unwrap(),
    );
    cluster.psql(
        "postgres",
        &format!("CREATE DATABASE {target} TEMPLATE template0"),
    );
    let mut session = connect(cluster, target).await;
    pgkeep_timescale::create_extension(&mut session, &dumped.inventory.version, &dumped.inventory.schema)
        .await
        .unwrap();
    pgkeep_timescale::pre_restore(&mut session).await.unwrap();

    let lists = Lists {
        keys: &dumped.foreign_keys,
        extension_schema: &dumped.inventory.schema,
    };
    let lists = lists.split(cluster, archive, target);
    let pg_restore = |section: &str, list: &str, jobs: &str| {
        let list = format!("--use-list={list}");
        let arguments = [
            section,
            &list,
            "--exit-on-error",
            "--jobs",
            jobs,
            "-d",
            target,
            archive,
        ];
        success(
            &cluster
                .client_command("pg_restore")
                .args(arguments)
                .output()
                .unwrap(),
        );
    };
    pg_restore("--section=pre-data", &lists.0, "1");
    load(cluster, source, target);
    pg_restore("--section=post-data", &lists.0, "2");
    let held = pgkeep_timescale::hold_jobs(&mut session).await.unwrap();
    pgkeep_timescale::post_restore(&mut session).await.unwrap();
    if !dumped.foreign_keys.is_empty() {
        pg_restore("--section=post-data", &lists.1, "1");
    }
    held
}

struct Lists<'a> {
    keys: &'a [ForeignKey],
    extension_schema: &'a str,
}

impl Lists<'_> {
    fn is_late(&self, line: &str) -> bool {
        self.keys.iter().any(|key| {
            line.contains(&format!(
                " FK CONSTRAINT {} {} {} ",
                key.schema, key.table, key.name
            ))
        })
    }

    /// Two lists for `pg_restore`: all but the extension and the late keys, and the late keys.
    fn split(&self, cluster: &Cluster, archive: &str, target: &str) -> (String, String) {
        let list = success(
            &cluster
                .client_command("pg_restore")
                .args(["-l", archive])
                .output()
                .unwrap(),
        );
        let path = |name: &str| {
            let path = cluster.data_dir().with_file_name(format!("{target}.{name}"));
            path.to_str().unwrap().to_owned()
        };
        // The extension's schema is there before the archive is, because the extension is.
        let schema = format!(" SCHEMA - {} ", self.extension_schema);
        let (late, rest): (Vec<&str>, Vec<&str>) = list
            .lines()
            .filter(|line| !line.contains(" EXTENSION - timescaledb") && !line.contains(&schema))
            .partition(|line| self.is_late(line));
        std::fs::write(path("list"), rest.join("\n")).unwrap();
        std::fs::write(path("late"), late.join("\n")).unwrap();
        (path("list"), path("late"))
    }
}

/// Copies the rows: catalog tables one after another in the order of their foreign keys, the rest after, sequences last.
fn load(cluster: &Cluster, source: &str, target: &str) {
    let roots: BTreeSet<String> = cluster
        .psql(
            source,
            "SELECT format('%I.%I', schema_name, table_name) FROM _timescaledb_catalog.hypertable",
        )
        .lines()
        .map(str::to_owned)
        .collect();
    let tables = cluster.psql(source, &tables_sql());
    let (mut out, mut back) = (String::from("SET search_path = '';\n"), String::new());
    for (index, line) in tables.lines().enumerate() {
        let [kind, table, columns, condition] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        if roots.contains(table) || columns.is_empty() {
            continue;
        }
        let file = cluster.data_dir().join(format!("{target}.{index}"));
        let file = file.to_str().unwrap();
        if kind == "configuration" {
            out.push_str(&format!(
                "COPY (SELECT {columns} FROM {table} {condition}) TO '{file}';\n"
            ));
            back.push_str(&format!("COPY {table} ({columns}) FROM '{file}';\n"));
        } else {
            out.push_str(&format!("COPY {table} ({columns}) TO '{file}';\n"));
            let (truncate, freeze) = match kind {
                "heap" => (format!("TRUNCATE ONLY {table};"), "WITH (FREEZE)"),
                _ => (String::new(), ""),
            };
            back.push_str(&format!(
                "BEGIN; {truncate} COPY {table} ({columns}) FROM '{file}' {freeze}; COMMIT;\n"
            ));
        }
    }
    cluster.psql(source, &out);
    cluster.psql(target, &back);
    let sequences = cluster.psql(source, &sequences_sql());
    for name in sequences.lines() {
        let value = cluster.psql(
            source,
            &format!("SELECT last_value || ', ' || is_called FROM {name}"),
        );
        cluster.psql(
            target,
            &format!("SELECT setval('{}', {value})", name.replace('\'', "''")),
        );
    }
}

/// Compressed relations come before the chunks they belong to: a parallel restore may meet them in any order, and this is
/// the one in which a TRUNCATE that reaches too far does harm.
///
/// One line for each table: kind (`configuration` or the access method), name, columns, condition; by tabs.
fn tables_sql() -> String {
    format!(
        r"\pset fieldsep '\t'
WITH RECURSIVE configuration AS (
    SELECT unnest(extconfig) AS oid, unnest(extcondition) AS condition FROM pg_extension),
edges AS (SELECT conrelid, confrelid FROM pg_constraint WHERE contype = 'f' AND conrelid <> confrelid
    AND conrelid IN (SELECT oid FROM configuration) AND confrelid IN (SELECT oid FROM configuration)),
depth AS (SELECT oid, 0 AS depth FROM configuration
    UNION SELECT e.conrelid, d.depth + 1 FROM edges e JOIN depth d ON d.oid = e.confrelid)
SELECT CASE WHEN f.oid IS NULL THEN am.amname ELSE 'configuration' END, format('%I.%I', n.nspname, c.relname),
    coalesce((SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''), ''),
    translate(coalesce(f.condition, ''), E'\n\t', '  ')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am am ON am.oid = c.relam
LEFT JOIN configuration f ON f.oid = c.oid
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
    AND (f.oid IS NOT NULL OR NOT {MEMBER_OF_EXTENSION})
ORDER BY f.oid IS NULL, (SELECT max(depth) FROM depth WHERE depth.oid = c.oid), c.relname DESC"
    )
}

fn sequences_sql() -> String {
    format!(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'S' AND (c.oid IN (SELECT unnest(extconfig) FROM pg_extension) OR NOT {MEMBER_OF_EXTENSION})"
    )
}

fn success(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}
