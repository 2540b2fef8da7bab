//! The queries behind an inventory. Each prints `name`, U+001F and `value` on one line.

/// Text must not depend on who asks.
pub(super) const SETTINGS: &str = r"
SET client_min_messages = warning;
SET TimeZone = 'UTC';
SET DateStyle = 'ISO, YMD';
SET IntervalStyle = 'postgres';
SET extra_float_digits = 1;
SET bytea_output = 'hex';
SET search_path = '';
SET row_security = off;
\pset fieldsep '\x1f'
";

/// Every table that holds rows: how many, and the sum of their hashes, which doesn't depend on their order. Columns go by
/// name, for a restore may order an inherited table's differently. A partitioned table counts as a whole; its
/// partitions count too, but not those by hash, where a row's place depends on the installation. An ordinary parent
/// counts without its children. Of an extension's tables, those with the user's rows count. The parents of compressed
/// chunks, which hold nothing, can't be read at all.
pub(super) const TABLES: &str = r#"
WITH relation AS (
    SELECT c.oid, c.relkind, c.relpersistence, c.relispopulated, n.nspname, c.relname,
        c.relhassubclass AND c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
            JOIN pg_catalog.pg_class k ON k.oid = d.objid JOIN pg_catalog.pg_inherits i ON i.inhrelid = k.oid
            JOIN pg_catalog.pg_namespace kn ON kn.oid = k.relnamespace
            WHERE i.inhparent = c.oid AND (k.relname LIKE '%\_chunk' AND kn.nspname <> n.nspname OR kn.nspname = '_timescaledb_internal'))
            AS parent
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_depend member ON member.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
        AND member.objid = c.oid AND member.objsubid = 0 AND member.deptype = 'e'
    LEFT JOIN pg_catalog.pg_extension e ON e.oid = member.refobjid
    WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't'
        AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', '_timescaledb_catalog', '_timescaledb_config')
        AND n.nspname <> ALL (:EXCLUDED)
        AND NOT (n.nspname = '_timescaledb_internal' AND c.relname LIKE '\_compressed\_hypertable\_%')
        AND (e.oid IS NULL OR c.oid = ANY (e.extconfig) AND e.extname <> 'timescaledb')
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = i.inhparent
            WHERE i.inhrelid = c.oid AND p.partstrat = 'h')
)
SELECT pg_catalog.format(
    'SELECT %L, %L || pg_catalog.count(*) || '' rows, hash '' || coalesce(pg_catalog.sum(pg_catalog.hashtextextended((ROW(%s))::text, 0)::numeric), 0) FROM %s %I.%I',
    'table: ' || pg_catalog.replace(pg_catalog.quote_ident(nspname) || '.' || pg_catalog.quote_ident(relname), E'\n', '\n'),
    CASE relkind WHEN 'm' THEN 'materialized, ' WHEN 'p' THEN 'partitioned, ' ELSE '' END || CASE relpersistence WHEN 'u' THEN 'unlogged, ' ELSE '' END,
    (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(attname), ', ' ORDER BY attname COLLATE "C") FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = relation.oid AND attnum > 0 AND NOT attisdropped),
    CASE WHEN parent THEN 'ONLY' ELSE '' END, nspname, relname)
FROM relation WHERE relispopulated
UNION ALL
SELECT pg_catalog.format('SELECT %L, ''not populated''', 'table: ' || pg_catalog.quote_ident(nspname) || '.' || pg_catalog.quote_ident(relname))
FROM relation WHERE NOT relispopulated
\gexec
"#;

/// Every sequence's state.
pub(super) const SEQUENCES: &str = r"
SELECT pg_catalog.format('SELECT %L, last_value || CASE WHEN is_called THEN '' called'' ELSE '' not called'' END FROM %I.%I',
    'sequence: ' || pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), n.nspname, c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', '_timescaledb_catalog', '_timescaledb_config')
    AND n.nspname <> ALL (:EXCLUDED)
    -- Counts the runs of TimescaleDB's own jobs, which go on while the servers are compared.
    AND c.relname <> 'bgw_job_stat_history_id_seq'
\gexec
";

/// Every large object: owner, grants, comment, size and hash.
pub(super) const LARGE_OBJECTS: &str = r"
SELECT 'large object: ' || oid, pg_catalog.concat_ws(', ', 'owner ' || lomowner::pg_catalog.regrole,
    'grants ' || (SELECT pg_catalog.string_agg(entry::text, ' ' ORDER BY entry::text) FROM pg_catalog.unnest(coalesce(lomacl, pg_catalog.acldefault('L', lomowner))) entry),
    'comment ' || pg_catalog.quote_literal(pg_catalog.obj_description(oid, 'pg_largeobject')),
    pg_catalog.length(pg_catalog.lo_get(oid)) || ' bytes, md5 ' || pg_catalog.md5(pg_catalog.lo_get(oid)))
FROM pg_catalog.pg_largeobject_metadata;
";

/// Roles and databases. The superuser that the cluster was made with and the templates are every cluster's own.
pub(super) const GLOBALS: &str = r#"
SET client_min_messages = warning;
SET TimeZone = 'UTC';
SET search_path = '';
\pset fieldsep '\x1f'
SELECT 'role: ' || rolname, pg_catalog.to_jsonb(a) - 'oid' || pg_catalog.jsonb_build_object('comment', pg_catalog.shobj_description(oid, 'pg_authid'))
FROM pg_catalog.pg_authid a WHERE oid >= 16384;
SELECT 'membership: ' || member::regrole || ' in ' || roleid::regrole || ' granted by ' || grantor::regrole,
    pg_catalog.to_jsonb(m) - ARRAY['oid', 'member', 'roleid', 'grantor']
FROM pg_catalog.pg_auth_members m WHERE member >= 16384;
SELECT 'setting: ' || coalesce(r.rolname, 'all roles') || ' in ' || coalesce(d.datname, 'all databases'),
    (SELECT pg_catalog.jsonb_agg(entry ORDER BY entry) FROM pg_catalog.unnest(s.setconfig) entry)
FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole LEFT JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase;
SELECT 'database: ' || datname, pg_catalog.jsonb_build_object('owner', datdba::regrole, 'encoding', pg_catalog.pg_encoding_to_char(encoding),
    'collate', datcollate, 'ctype', datctype, 'provider', datlocprovider, 'connections', datallowconn, 'limit', datconnlimit,
    'template', datistemplate, 'comment', pg_catalog.shobj_description(oid, 'pg_database'),
    'grants', (SELECT pg_catalog.jsonb_agg(entry::text ORDER BY entry::text) FROM pg_catalog.unnest(coalesce(datacl, pg_catalog.acldefault('d', datdba))) entry))
FROM pg_catalog.pg_database WHERE oid >= 16384;
"#;

/// TimescaleDB as its own views show it, without what belongs to the run (times of the next run, of creation).
pub(super) const TIMESCALEDB: &str = r"
SELECT 'hypertable: ' || hypertable_schema || '.' || hypertable_name, pg_catalog.to_jsonb(h) FROM timescaledb_information.hypertables h;
SELECT 'dimension: ' || hypertable_schema || '.' || hypertable_name || ' ' || dimension_number, pg_catalog.to_jsonb(d)
FROM timescaledb_information.dimensions d;
SELECT 'chunk: ' || chunk_schema || '.' || chunk_name, pg_catalog.to_jsonb(c) - ARRAY['chunk_creation_time']
FROM timescaledb_information.chunks c;
SELECT 'continuous aggregate: ' || view_schema || '.' || view_name, pg_catalog.to_jsonb(c) FROM timescaledb_information.continuous_aggregates c;
SELECT 'compression: ' || hypertable_schema || '.' || hypertable_name || ' ' || attname, pg_catalog.to_jsonb(c)
FROM timescaledb_information.compression_settings c;
SELECT 'job: ' || job_id, pg_catalog.to_jsonb(j) - ARRAY['next_start', 'initial_start'] FROM timescaledb_information.jobs j WHERE job_id >= 1000;
";
