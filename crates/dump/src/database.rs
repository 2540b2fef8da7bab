//! One database of a dump.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use pgkeep_base::{quote_literal, quote_qualified};
use pgkeep_pg::{Session, Target};
use pgkeep_repository::object::ObjectRef;
use pgkeep_timescale::{HypertableKind, Inventory};

use crate::catalog::{self, CatalogRelation};
use crate::columns;
use crate::data::{self, DataPhase, DataRead};
use crate::error::{Context, DumpError};
use crate::excluded;
use crate::giving_way::{Attempts, LOCK_TIMEOUT};
use crate::hidden;
use crate::limits;
use crate::manifest::{
    DataObject, DatabaseManifest, Excluded, Filters, QualifiedName, Relation, RelationKind, RowFormat,
};
use crate::roles;
use crate::run::Run;
use crate::schema;
use crate::sequences;
use crate::snapshot::{self, LockedSnapshot};
use crate::unfit::{self, Exclusion};
use crate::way_out;

/// One database, dumped.
pub(crate) struct Dumped {
    pub manifest: DatabaseManifest,
    /// Objects that the manifest doesn't name: the scripts for restoring without pgkeep.
    pub other_objects: Vec<ObjectRef>,
    /// Patterns of what to leave out that fit nothing in it.
    pub unfit: Vec<Exclusion>,
    /// What the role may not dump.
    pub hidden: Vec<String>,
}

pub(crate) async fn dump(run: &Run<'_>, name: &str, folder: &str) -> Result<Dumped, DumpError> {
    let target = run.target.with_database(name);
    let phase = |what: &str| run.progress.set_phase(format!("{name}: {what}"));
    phase("locking tables");
    let (mut snapshot, schema, excluded) = snapshot_and_schema(run, &target, folder).await?;
    let timescaledb = inventory(&mut snapshot.session, name).await?;
    let relations = ordered_relations(&mut snapshot, timescaledb.as_ref(), run.options.text_only).await?;
    let unfit = unfit::in_database(&mut snapshot.session, &run.options.filters, name).await?;
    let hidden = hidden::in_database(&mut snapshot.session, &run.options.filters, name).await?;
    phase("reading the catalog");
    let excluded_relations = excluded.as_ref().map_or(&[][..], |excluded| &excluded.relations);
    let catalog = read_catalog(
        run,
        &mut snapshot,
        timescaledb.as_ref(),
        excluded_relations,
        folder,
    )
    .await?;
    let large_objects = large_objects(run, &target, &mut snapshot, folder).await?;
    phase("reading tables");
    let read = read_data(run, &target, &mut snapshot, &relations, folder).await?;
    let (relations, data) = (
        describe(&mut snapshot.session, &relations, &read).await?,
        read.objects,
    );
    let context = || format!("ending the snapshot of database '{name}'");
    snapshot.session.execute("COMMIT").await.context(context)?;
    let (snapshot_at, snapshot_lsn) = (snapshot.taken_at, snapshot.lsn);
    snapshot.session.close().await;
    let manifest = DatabaseManifest {
        name: name.to_owned(),
        folder: folder.to_owned(),
        properties: catalog.properties,
        snapshot_at,
        snapshot_lsn,
        extensions: catalog.extensions,
        pg_dump_version: run.programs.pg_dump.version_text.clone(),
        schema,
        dependents: catalog.dependents,
        sequences: catalog.sequences,
        large_objects,
        materialized_views: catalog.materialized_views,
        relations,
        data,
        timescaledb,
        foreign_keys_to_hypertables: catalog.foreign_keys_to_hypertables,
        filters: run.options.filters.clone(),
        excluded,
        roles: catalog.roles,
    };
    let other_objects = write_scripts(run, &manifest).await?;
    Ok(Dumped {
        manifest,
        other_objects,
        unfit,
        hidden,
    })
}

fn timescale_error(database: &str) -> impl Fn(pgkeep_timescale::TimescaleError) -> DumpError {
    let database = database.to_owned();
    move |source| DumpError::Timescale {
        database: database.clone(),
        source,
    }
}

pub(crate) async fn inventory(session: &mut Session, database: &str) -> Result<Option<Inventory>, DumpError> {
    let error = timescale_error(database);
    let Some(extension) = pgkeep_timescale::detect(session).await.map_err(&error)? else {
        return Ok(None);
    };
    if extension.restoring {
        // Compressed rows can't be seen then, and what is there is perhaps half of something.
        return Err(DumpError::Refused {
            message: format!(
                "database '{database}' went into TimescaleDB's restore mode while it was dumped"
            ),
            hint: "finish the restore, then dump again".to_owned(),
        });
    }
    Ok(Some(pgkeep_timescale::inventory(session).await.map_err(&error)?))
}

/// Under which name the filters see a chunk: its hypertable's. Only asked when there are filters.
pub(crate) async fn owners_query(
    filters: &Filters,
    session: &mut Session,
    database: &str,
) -> Result<String, DumpError> {
    let none = "SELECT NULL::oid AS relid, NULL::text AS schema_name, NULL::text AS table_name WHERE false";
    if *filters == Filters::default() {
        return Ok(none.to_owned());
    }
    let Some(inventory) = inventory(session, database).await? else {
        return Ok(none.to_owned());
    };
    let mut rows = Vec::new();
    for hypertable in inventory
        .hypertables
        .iter()
        .filter(|table| table.kind != HypertableKind::Compressed)
    {
        for chunk in &hypertable.chunks {
            let compressed = chunk
                .compressed_relation
                .as_ref()
                .map(|relation| (&relation.schema, &relation.name));
            for (schema, name) in [Some((&chunk.schema, &chunk.name)), compressed]
                .into_iter()
                .flatten()
            {
                // A chunk that is dropped meanwhile has no oid then, and fits nothing.
                let relid = format!(
                    "pg_catalog.to_regclass({})::oid",
                    quote_literal(&quote_qualified(schema, name))
                );
                rows.push(format!(
                    "({relid}, {}, {})",
                    quote_literal(&hypertable.schema),
                    quote_literal(&hypertable.name)
                ));
            }
        }
    }
    if rows.is_empty() {
        return Ok(none.to_owned());
    }
    Ok(format!(
        "SELECT * FROM (VALUES {}) AS v(relid, schema_name, table_name)",
        rows.join(", ")
    ))
}

/// The snapshot, and the schema under it.
async fn snapshot_and_schema(
    run: &Run<'_>,
    target: &Target,
    folder: &str,
) -> Result<(LockedSnapshot, Vec<ObjectRef>, Option<Excluded>), DumpError> {
    let suffix = run.destinations.access().sealed_suffix();
    let mut attempts = Attempts::new();
    loop {
        let options = run.options;
        let mut snapshot = snapshot::take(target, &options.filters, options.lock_timeout).await?;
        run.progress
            .set_phase(format!("{}: reading the schema", target.database()));
        let excluded = find_excluded(&mut snapshot.session, &options.filters, target.database()).await?;
        let mut command = schema::pg_dump(&run.programs, target, &snapshot.id, attempts.begin());
        command.arg("--schema-only");
        for relation in excluded.iter().flat_map(|excluded| &excluded.relations) {
            command.arg(format!("--exclude-table={}", relation.quoted()));
        }
        // Each attempt's objects have names of their own: objects are written once.
        let name = |number| match (attempts.number(), number) {
            (1, 1) => format!("{folder}/schema.dump{suffix}"),
            (attempt, _) => format!("{folder}/schema.{attempt}.{number:04}.dump{suffix}"),
        };
        match schema::store_output(run.destinations, &run.prefix, name, command, target).await {
            Ok(objects) => return Ok((snapshot, objects, excluded)),
            Err(error) => {
                let error = error.within(&format!("the schema of database '{}'", target.database()));
                attempts.after(error, &mut snapshot, target.database()).await?;
            }
        }
    }
}

pub(crate) async fn find_excluded(
    session: &mut Session,
    filters: &Filters,
    database: &str,
) -> Result<Option<Excluded>, DumpError> {
    if filters.exclude_tables.is_empty() && filters.exclude_schemas.is_empty() {
        return Ok(None);
    }
    let owners = owners_query(filters, session, database).await?;
    let timescaledb = inventory(session, database).await?;
    excluded::find(session, filters, &owners, timescaledb.as_ref()).await
}

/// Relations with rows, in the manifest's order: configuration tables first, as their foreign keys demand; kinds told
/// by TimescaleDB's inventory.
async fn ordered_relations(
    snapshot: &mut LockedSnapshot,
    timescaledb: Option<&Inventory>,
    text_only: bool,
) -> Result<Vec<(CatalogRelation, u64)>, DumpError> {
    let mut kinds: HashMap<QualifiedName, RelationKind> = HashMap::new();
    let hypertables = timescaledb.iter().flat_map(|inventory| &inventory.hypertables);
    // The chunks of a hypertable of compressed relations are those relations, which their chunks name as well.
    let hypertables = hypertables.filter(|table| table.kind != HypertableKind::Compressed);
    for chunk in hypertables.flat_map(|table| &table.chunks) {
        let name = QualifiedName {
            schema: chunk.schema.clone(),
            name: chunk.name.clone(),
        };
        kinds.insert(name, RelationKind::Chunk);
        if let Some(compressed) = &chunk.compressed_relation {
            let name = QualifiedName {
                schema: compressed.schema.clone(),
                name: compressed.name.clone(),
            };
            kinds.insert(name, RelationKind::CompressedChunk);
        }
    }
    let order = catalog::configuration_order(&mut snapshot.session).await?;
    let places: HashMap<u32, usize> = order
        .iter()
        .enumerate()
        .map(|(place, oid)| (*oid, place))
        .collect();
    let mut relations: Vec<(CatalogRelation, u64)> = snapshot
        .relations
        .iter()
        .cloned()
        .zip(snapshot.sizes.iter().copied())
        .collect();
    relations.retain(|(relation, _)| relation.has_rows);
    for (relation, size) in &mut relations {
        if let (RelationKind::Table, Some(kind)) = (relation.kind, kinds.get(&relation.name)) {
            relation.kind = *kind;
        }
        // Small tables share scripts.
        if text_only || !data::has_own_objects(relation, *size) {
            relation.format = RowFormat::Text;
        }
    }
    relations.sort_by_key(|(relation, _)| match relation.kind {
        RelationKind::Configuration => (
            0,
            places.get(&relation.oid).copied().unwrap_or(usize::MAX),
            relation.oid,
        ),
        _ => (1, 0, relation.oid),
    });
    Ok(relations)
}

struct Catalog {
    properties: crate::manifest::DatabaseProperties,
    extensions: Vec<crate::manifest::ExtensionInfo>,
    materialized_views: Vec<QualifiedName>,
    sequences: Option<ObjectRef>,
    dependents: ObjectRef,
    foreign_keys_to_hypertables: Vec<u32>,
    roles: Option<Vec<String>>,
}

async fn read_catalog(
    run: &Run<'_>,
    snapshot: &mut LockedSnapshot,
    timescaledb: Option<&Inventory>,
    excluded: &[QualifiedName],
    folder: &str,
) -> Result<Catalog, DumpError> {
    let session = &mut snapshot.session;
    let suffix = run.destinations.access().sealed_suffix();
    let put = |name: String, text: String| async move {
        limits::TEXT.check(text.len())?;
        let put = run
            .destinations
            .put_contents(&run.prefix, &name, Bytes::from(text));
        Ok::<_, DumpError>(put.await?)
    };
    let sequences = match sequences::script(session, excluded).await? {
        Some(script) => Some(put(format!("{folder}/sequences.sql{suffix}"), script).await?),
        None => None,
    };
    let dependents = catalog::dependents(session).await?;
    let foreign_keys_to_hypertables = match timescaledb {
        Some(_) => catalog::foreign_keys_to_hypertables(session).await?,
        None => Vec::new(),
    };
    let mut materialized_views = catalog::materialized_views(session).await?;
    materialized_views.retain(|view| excluded.binary_search(view).is_err());
    let properties = catalog::database_properties(session).await?;
    Ok(Catalog {
        foreign_keys_to_hypertables,
        roles: roles::used(session, &properties, timescaledb).await?,
        properties,
        extensions: catalog::extensions(session).await?,
        materialized_views,
        sequences,
        dependents: put(format!("{folder}/dependents.tsv{suffix}"), dependents).await?,
    })
}

async fn large_objects(
    run: &Run<'_>,
    target: &Target,
    snapshot: &mut LockedSnapshot,
    folder: &str,
) -> Result<Vec<ObjectRef>, DumpError> {
    let context = || "looking for large objects".to_owned();
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)";
    let rows = snapshot.session.query(sql).await.context(context)?;
    let any = rows
        .first()
        .map(|row| row.get::<bool>(0))
        .transpose()
        .context(context)?;
    if any != Some(true) || run.options.filters.selects_a_part() {
        return Ok(Vec::new());
    }
    let suffix = run.destinations.access().sealed_suffix();
    let mut command = schema::pg_dump(&run.programs, target, &snapshot.id, LOCK_TIMEOUT.as_millis());
    command.args(["--data-only", "--blobs", "--exclude-table=*.*"]);
    let name = |number| format!("{folder}/large_objects.{number:04}.dump{suffix}");
    let stored = schema::store_output(run.destinations, &run.prefix, name, command, target).await;
    stored.map_err(|error| error.within(&format!("the large objects of database '{}'", target.database())))
}

async fn read_data(
    run: &Run<'_>,
    target: &Target,
    snapshot: &mut LockedSnapshot,
    relations: &[(CatalogRelation, u64)],
    folder: &str,
) -> Result<DataRead, DumpError> {
    let (relations, sizes): (Vec<CatalogRelation>, Vec<u64>) = relations.iter().cloned().unzip();
    let progress = run.progress;
    progress
        .bytes_total
        .fetch_add(sizes.iter().sum(), Ordering::Relaxed);
    progress
        .relations_total
        .fetch_add(relations.len() as u64, Ordering::Relaxed);
    let encoding = snapshot
        .session
        .parameter("client_encoding")
        .unwrap_or("UTF8")
        .to_owned();
    let base = run.base.as_ref();
    let base = base.map(|base| base.held(target.database(), &encoding, &relations, &sizes));
    let phase = DataPhase {
        destinations: Arc::clone(run.destinations),
        prefix: run.prefix.clone(),
        folder: folder.to_owned(),
        target: target.clone(),
        snapshot_id: snapshot.id.clone(),
        relations,
        sizes,
        client_encoding: encoding,
        held: base.unwrap_or_default(),
        jobs: run.options.jobs,
        progress: Arc::clone(progress),
        alive: run.alive.clone(),
    };
    data::read_all(phase, snapshot).await
}

/// What the manifest says of each relation.
async fn describe(
    session: &mut Session,
    relations: &[(CatalogRelation, u64)],
    read: &DataRead,
) -> Result<Vec<Relation>, DumpError> {
    let mut described = Vec::with_capacity(relations.len());
    let loadable =
        |relation: &CatalogRelation| relation.kind == RelationKind::Table && relation.partition_of.is_none();
    let oids: Vec<u32> = relations
        .iter()
        .filter(|(relation, _)| loadable(relation))
        .map(|(relation, _)| relation.oid)
        .collect();
    let mut column_types = columns::of_relations(session, &oids).await?;
    for (place, (relation, size)) in (0_u32..).zip(relations) {
        let found = read.relations.get(&place);
        if found.is_none() && !relation.data_excluded {
            return Err(DumpError::Internal(format!(
                "table {} was never read",
                relation.name
            )));
        }
        let compressed_rows = match relation.kind {
            RelationKind::CompressedChunk if found.is_some() => {
                compressed_rows(session, &relation.name).await?
            }
            _ => None,
        };
        described.push(Relation {
            name: relation.name.clone(),
            kind: relation.kind,
            oid: relation.oid,
            columns: relation.columns.clone(),
            load_into: relation.load_into.clone(),
            partition_of: relation.partition_of.clone(),
            column_types: column_types.remove(&relation.oid).unwrap_or_default(),
            format: relation.format,
            rows: found.map_or(0, |found| found.rows),
            compressed_rows,
            hash: found
                .map_or_else(|| blake3::hash(b""), |found| found.hash)
                .to_hex()
                .to_string(),
            plain_bytes: found.map_or(0, |found| found.bytes),
            disk_bytes: data::has_own_objects(relation, *size).then_some(*size),
            data_excluded: relation.data_excluded,
        });
    }
    Ok(described)
}

/// The rows that a relation of compressed batches stands for.
async fn compressed_rows(session: &mut Session, name: &QualifiedName) -> Result<Option<u64>, DumpError> {
    let context = || format!("counting the rows compressed in {name}");
    let sql = pgkeep_timescale::compressed_row_count_sql(&name.schema, &name.name);
    let rows = session.query(&sql).await.context(context)?;
    rows.first()
        .map(|row| row.get(0))
        .transpose()
        .context(context)
        .map(Option::flatten)
}

/// The scripts for whoever restores without pgkeep.
async fn write_scripts(run: &Run<'_>, database: &DatabaseManifest) -> Result<Vec<ObjectRef>, DumpError> {
    let suffix = run.destinations.access().sealed_suffix();
    let mut objects = Vec::new();
    for (step, text) in way_out::scripts(database) {
        let name = way_out::script_name(database, step, suffix);
        objects.push(
            run.destinations
                .put_contents(&run.prefix, &name, Bytes::from(text))
                .await?,
        );
    }
    Ok(objects)
}

/// The data objects with configuration tables, in loading order, and the others.
pub(crate) fn split_data(database: &DatabaseManifest) -> (Vec<&DataObject>, Vec<&DataObject>) {
    let is_configuration = |object: &&DataObject| {
        object.segments.iter().all(|segment| {
            let relation = database.relations.get(segment.relation as usize);
            relation.is_some_and(|relation| relation.kind == RelationKind::Configuration)
        })
    };
    database.data.iter().partition(is_configuration)
}
