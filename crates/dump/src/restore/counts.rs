//! Counting what was restored, by the target's own read path, and comparing with the manifest.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use pgkeep_base::quote_qualified;
use pgkeep_pg::{Session, Target};
use pgkeep_timescale::HypertableKind;
use tokio::task::JoinSet;

use crate::error::{Context, DumpError};
use crate::manifest::{DatabaseManifest, QualifiedName, RelationKind};
use crate::restore::connect;

/// Tables counted in one statement.
const BATCH: usize = 100;

/// One count that must agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expectation {
    name: QualifiedName,
    /// Only the relation itself, without what inherits from it.
    only: bool,
    rows: u64,
}

/// Counts every table and hypertable.
///
/// # Errors
/// [`DumpError::CountMismatch`] for the first that differs; PostgreSQL's.
pub async fn compare(
    database: &DatabaseManifest,
    target: &Target,
    jobs: usize,
    wanted: Option<&BTreeSet<u32>>,
) -> Result<u64, DumpError> {
    let expectations = expectations(database, wanted);
    let counted = expectations.len() as u64;
    let batches: VecDeque<Vec<Expectation>> =
        expectations.chunks(BATCH).map(<[Expectation]>::to_vec).collect();
    let jobs = jobs.clamp(1, batches.len().max(1));
    let queue = Arc::new(Mutex::new(batches));
    let mut workers = JoinSet::new();
    for _ in 0..jobs {
        let (queue, target) = (Arc::clone(&queue), target.clone());
        workers.spawn(async move {
            let context = || format!("preparing to count in database '{}'", target.database());
            let mut session = connect(&target).await?;
            // Nothing may hide rows.
            session.execute("SET row_security = off").await.context(context)?;
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(batch) = next else {
                    return Ok::<_, DumpError>(());
                };
                compare_batch(&mut session, &batch).await?;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker.map_err(|error| DumpError::Internal(format!("a counter died: {error}")))??;
    }
    Ok(counted)
}

async fn compare_batch(session: &mut Session, batch: &[Expectation]) -> Result<(), DumpError> {
    let context = || "counting restored rows".to_owned();
    let selects: Vec<String> = batch
        .iter()
        .enumerate()
        .map(|(place, expectation)| {
            let only = if expectation.only { "ONLY " } else { "" };
            format!(
                "SELECT {place}, pg_catalog.count(*) FROM {only}{}",
                expectation.name.quoted()
            )
        })
        .collect();
    let rows = session
        .query(&selects.join(" UNION ALL "))
        .await
        .context(context)?;
    for row in rows {
        let (place, found): (u32, u64) = (row.get(0).context(context)?, row.get(1).context(context)?);
        let Some(expectation) = batch.get(place as usize) else {
            continue;
        };
        if found != expectation.rows {
            let what = format!("rows of {} after the restore", expectation.name);
            return Err(DumpError::CountMismatch {
                what,
                found,
                expected: expectation.rows,
            });
        }
    }
    Ok(())
}

/// Tables by themselves; chunks by what they and their compressed relations hold together; hypertables by their chunks.
/// What is loaded through the root of a partitioned table is counted there.
pub(super) fn expectations(database: &DatabaseManifest, wanted: Option<&BTreeSet<u32>>) -> Vec<Expectation> {
    let mut expectations: Vec<Expectation> = Vec::new();
    let mut roots: std::collections::BTreeMap<QualifiedName, u64> = std::collections::BTreeMap::new();
    let mut physical: std::collections::HashMap<QualifiedName, u64> = std::collections::HashMap::new();
    let hypertables: BTreeSet<String> = database
        .timescaledb
        .iter()
        .flat_map(|inventory| &inventory.hypertables)
        .map(|table| quote_qualified(&table.schema, &table.name))
        .collect();
    for (place, relation) in (0_u32..).zip(&database.relations) {
        let skipped = relation.data_excluded || wanted.is_some_and(|wanted| !wanted.contains(&place));
        match (relation.kind, &relation.load_into) {
            (RelationKind::Chunk, _) => {
                physical.insert(relation.name.clone(), relation.rows);
            }
            (RelationKind::CompressedChunk, _) => {
                physical.insert(relation.name.clone(), relation.compressed_rows.unwrap_or(0));
            }
            (RelationKind::Table, Some(root)) if !skipped => {
                *roots.entry(root.clone()).or_default() += relation.rows
            }
            (RelationKind::Table, None) if !skipped && !hypertables.contains(&relation.name.quoted()) => {
                expectations.push(Expectation {
                    name: relation.name.clone(),
                    only: true,
                    rows: relation.rows,
                });
            }
            _ => {}
        }
    }
    expectations.extend(roots.into_iter().map(|(name, rows)| Expectation {
        name,
        only: false,
        rows,
    }));
    if wanted.is_none() {
        expectations.extend(hypertable_expectations(database, &physical));
    }
    expectations
}

fn hypertable_expectations(
    database: &DatabaseManifest,
    physical: &std::collections::HashMap<QualifiedName, u64>,
) -> Vec<Expectation> {
    let mut expectations = Vec::new();
    for hypertable in database
        .timescaledb
        .iter()
        .flat_map(|inventory| &inventory.hypertables)
    {
        let rows_of = |schema: &str, name: &str| {
            let name = QualifiedName {
                schema: schema.to_owned(),
                name: name.to_owned(),
            };
            physical.get(&name).copied()
        };
        // A hypertable of which some chunks were left out on request can't be compared.
        let rows: Option<u64> = hypertable
            .chunks
            .iter()
            .map(|chunk| {
                let compressed = match &chunk.compressed_relation {
                    Some(relation) => rows_of(&relation.schema, &relation.name)?,
                    None => 0,
                };
                Some(rows_of(&chunk.schema, &chunk.name)?.saturating_add(compressed))
            })
            // The inventory may name a relation more than once, so the sums in the manifest are no limit here.
            .try_fold(0_u64, |sum, rows| Some(sum.saturating_add(rows?)));
        if let (Some(rows), true) = (rows, hypertable.kind != HypertableKind::Compressed) {
            let name = QualifiedName {
                schema: hypertable.schema.clone(),
                name: hypertable.name.clone(),
            };
            expectations.push(Expectation {
                name,
                only: false,
                rows,
            });
        }
    }
    expectations
}
