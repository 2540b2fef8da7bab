//! Whether a dump in the repository is what was written.
//!
//! Two depths. *Stored* hashes the objects as they lie there and compares with `checksums.b3`; it needs no key.
//! *Contents* decrypts, decompresses, parses every COPY block and compares counts and hashes with the manifest: what
//! passes will load. Neither proves that PostgreSQL accepts it; that takes a restore.

mod work;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt;
use pgkeep_base::BackupId;
use pgkeep_repository::backups::BackupState;
use pgkeep_repository::encryption::EncryptionError;
use pgkeep_repository::integrity::{Checksum, names};
use pgkeep_repository::object::ObjectRef;
use pgkeep_repository::records::Evidence;
use pgkeep_repository::{Repository, RepositoryError, layout};
use pgkeep_store::StoreErrorKind;

use crate::binary::RowCount;
use crate::blocks::{BlockReader, Piece};
use crate::error::DumpError;
use crate::manifest::{DataObject, DatabaseManifest, DumpManifest};
use crate::objects::object_refs;
use crate::read::read_manifest;
use crate::verify::work::{Group, Work, choose};
use pgkeep_base::Progress;

/// Of what is wrong, this much is kept in words; the rest is counted.
const FAILURES_KEPT_MAX: usize = 20;

/// How deep a verification goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyDepth {
    /// The stored bytes, against `checksums.b3`. Needs no key.
    Stored,
    /// Decrypted, decompressed, parsed and counted, against the manifest. Needs the key.
    Contents,
}

impl VerifyDepth {
    /// As the evidence in the repository has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "hashes",
            Self::Contents => "contents",
        }
    }
}

/// A part, chosen at random.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// How much of the stored bytes, above 0 and up to 1.
    pub fraction: f64,
    /// The same seed chooses the same objects.
    pub seed: u64,
}

/// What to verify.
#[derive(Debug, Clone, PartialEq)]
pub struct VerifyOptions {
    /// How deep.
    pub depth: VerifyDepth,
    /// Which part of the objects with rows (at depth *stored*: of all objects); `None` for all.
    pub sample: Option<Sample>,
    /// Objects read at once.
    pub jobs: usize,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct VerifyReport {
    /// The dump.
    pub id: BackupId,
    /// How deep it went.
    pub depth: VerifyDepth,
    /// Objects read.
    pub objects: u64,
    /// Objects of the dump, `checksums.b3` not counted.
    pub objects_total: u64,
    /// Stored bytes read.
    pub stored_bytes: u64,
    /// Rows read and counted (depth *contents* only).
    pub rows: u64,
    /// Tables, partitions and chunks of which every row was read and whose hash was compared (*contents* only).
    pub relations: u64,
    /// All of them in the dump (*contents* only).
    pub relations_total: u64,
    /// What is wrong, the first few.
    pub failures: Vec<String>,
    /// How much is wrong.
    pub failures_total: u64,
    /// Whether the repository now holds this as evidence; a host that may not write there can't leave any.
    pub recorded: bool,
    /// How long it took.
    pub elapsed: Duration,
}

impl VerifyReport {
    /// Whether everything read was right.
    pub fn passed(&self) -> bool {
        self.failures_total == 0
    }
}

/// Verifies one dump and records the outcome beside it.
///
/// # Errors
/// The store can't be read, the key is missing or wrong, a later version wrote the manifest, the dump was removed
/// meanwhile: then nothing is said about it. Missing and damaged objects are the result, not an error.
pub async fn verify(
    repository: &Repository,
    id: &BackupId,
    options: &VerifyOptions,
    progress: &Progress,
) -> Result<VerifyReport, DumpError> {
    let begun = Instant::now();
    let mut findings = Findings::default();
    match options.depth {
        VerifyDepth::Stored => stored(repository, id, options, progress, &mut findings).await?,
        VerifyDepth::Contents => contents(repository, id, options, progress, &mut findings).await?,
    }
    let mut report = VerifyReport {
        id: id.clone(),
        depth: options.depth,
        objects: findings.objects,
        objects_total: findings.objects_total,
        stored_bytes: progress.bytes_done.load(Ordering::Relaxed),
        rows: findings.rows,
        relations: findings.relations,
        relations_total: findings.relations_total,
        failures: findings.failures,
        failures_total: findings.failures_total,
        recorded: false,
        elapsed: begun.elapsed(),
    };
    report.recorded = record(repository, &report).await?;
    Ok(report)
}

async fn record(repository: &Repository, report: &VerifyReport) -> Result<bool, DumpError> {
    let evidence = Evidence {
        at: repository.now(),
        depth: report.depth.name().to_owned(),
        objects: report.objects,
        objects_total: report.objects_total,
        passed: report.passed(),
        failures: report.failures.clone(),
    };
    match repository.record_evidence(&report.id, &evidence).await {
        Ok(()) => Ok(true),
        Err(error @ RepositoryError::Removed { .. }) => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "the outcome of the verification could not be recorded in the repository");
            Ok(false)
        }
    }
}

#[derive(Default)]
struct Findings {
    objects: u64,
    objects_total: u64,
    rows: u64,
    relations: u64,
    relations_total: u64,
    failures: Vec<String>,
    failures_total: u64,
}

impl Findings {
    fn fail(&mut self, what: String) {
        self.failures_total += 1;
        if self.failures.len() < FAILURES_KEPT_MAX {
            self.failures.push(what);
        }
    }
}

async fn stored(
    repository: &Repository,
    id: &BackupId,
    options: &VerifyOptions,
    progress: &Progress,
    findings: &mut Findings,
) -> Result<(), DumpError> {
    progress.set_phase("comparing hashes");
    if repository.state(id).await? == BackupState::Damaged {
        findings.fail(format!("{}: it is no manifest", layout::MANIFEST));
    }
    let Some(checksums) = checksums(repository, id, findings).await? else {
        return Ok(());
    };
    let sizes = repository.stored_sizes(id, names(&checksums)).await?;
    let size = |checksum: &Checksum| sizes.get(&checksum.name).copied().unwrap_or(0);
    let mut chosen = choose(&checksums.iter().map(size).collect::<Vec<_>>(), options.sample);
    // No dump without its manifest: a sample always has it. It is the last.
    chosen.extend(checksums.len().checked_sub(1));
    let chosen: Vec<Checksum> = chosen
        .into_iter()
        .filter_map(|place| checksums.get(place).cloned())
        .collect();
    progress
        .bytes_total
        .store(chosen.iter().map(size).sum(), Ordering::Relaxed);
    findings.objects_total = checksums.len() as u64;
    findings.objects = chosen.len() as u64;
    let damages = repository
        .verify_stored(id, &chosen, |bytes| Progress::add(&progress.bytes_done, bytes))
        .await?;
    for damage in damages {
        findings.fail(format!("{}: {}", damage.name, damage.reason));
    }
    Ok(())
}

/// The list of checksums; `None` if there is none that can be read, which is damage.
async fn checksums(
    repository: &Repository,
    id: &BackupId,
    findings: &mut Findings,
) -> Result<Option<Vec<Checksum>>, DumpError> {
    match repository.checksums(id).await {
        Ok(checksums) => Ok(Some(checksums)),
        Err(error) => {
            findings.fail(damage(error.into(), layout::CHECKSUMS)?);
            Ok(None)
        }
    }
}

async fn contents(
    repository: &Repository,
    id: &BackupId,
    options: &VerifyOptions,
    progress: &Progress,
    findings: &mut Findings,
) -> Result<(), DumpError> {
    progress.set_phase("reading the manifest");
    let manifest = match read_manifest(repository, id).await {
        Ok(manifest) => manifest,
        Err(error) if error.is_locked() => return Err(error),
        Err(error) => {
            findings.fail(damage(error, layout::MANIFEST)?);
            return Ok(());
        }
    };
    let Some(checksums) = checksums(repository, id, findings).await? else {
        return Ok(());
    };
    compare_lists(&manifest, &checksums, findings);
    for database in &manifest.databases {
        compare_sums(database, findings);
        findings.relations_total += database.relations.len() as u64;
    }
    let sizes = repository.stored_sizes(id, names(&checksums)).await?;
    let work = Work::choose(&manifest, &checksums, options.sample);
    progress
        .bytes_total
        .store(work.stored_bytes(&sizes), Ordering::Relaxed);
    findings.objects_total = checksums.len() as u64;
    findings.objects = work.objects();

    progress.set_phase("reading schemas and lists");
    let check = Check {
        repository,
        id,
        progress,
    };
    let damages = repository
        .verify_stored(id, &work.unnamed, |bytes| {
            Progress::add(&progress.bytes_done, bytes)
        })
        .await?;
    for damage in damages {
        findings.fail(format!("{}: {}", damage.name, damage.reason));
    }
    for object in &work.others {
        if let Err(error) = check.whole(object).await {
            findings.fail(damage(error, &object.name)?);
        }
    }
    progress.set_phase("reading tables");
    let mut running = futures::stream::iter(&work.groups)
        .map(|group| check.group(group))
        .buffer_unordered(options.jobs.max(1));
    while let Some(outcome) = running.next().await {
        let outcome = outcome?;
        findings.rows += outcome.rows;
        findings.relations += outcome.relations;
        outcome
            .failures
            .into_iter()
            .for_each(|failure| findings.fail(failure));
    }
    Ok(())
}

/// What would be read, for [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub(crate) fn choose_work(manifest: &DumpManifest, fraction: Option<f64>) {
    let sample = fraction.map(|fraction| Sample { fraction, seed: 1 });
    let work = Work::choose(manifest, &[], sample);
    let _ = (
        work.objects(),
        work.stored_bytes(&std::collections::BTreeMap::new()),
    );
    let mut findings = Findings::default();
    compare_lists(manifest, &[], &mut findings);
    for database in &manifest.databases {
        compare_sums(database, &mut findings);
    }
}

/// `checksums.b3` and the manifest must name the same objects with the same hashes.
fn compare_lists(manifest: &DumpManifest, checksums: &[Checksum], findings: &mut Findings) {
    let listed: HashMap<&str, &str> = checksums
        .iter()
        .map(|checksum| (checksum.name.as_str(), checksum.hash.as_str()))
        .collect();
    for object in object_refs(manifest) {
        match listed.get(object.name.as_str()) {
            None => findings.fail(format!(
                "{}: the manifest names it, and {} doesn't",
                object.name,
                layout::CHECKSUMS
            )),
            Some(hash) if *hash != object.hash => {
                let (name, checksums) = (&object.name, layout::CHECKSUMS);
                findings.fail(format!(
                    "{name}: the manifest and {checksums} disagree about its hash"
                ));
            }
            Some(_) => {}
        }
    }
}

/// The blocks of a relation must make up the relation.
fn compare_sums(database: &DatabaseManifest, findings: &mut Findings) {
    let mut sums: HashMap<u32, (u64, u64)> = HashMap::new();
    for segment in database.data.iter().flat_map(|data| &data.segments) {
        let (rows, bytes) = sums.entry(segment.relation).or_default();
        *rows = rows.saturating_add(segment.rows);
        *bytes = bytes.saturating_add(segment.bytes);
    }
    for (place, relation) in (0_u32..).zip(&database.relations) {
        let (rows, bytes) = sums.get(&place).copied().unwrap_or_default();
        if (rows, bytes) != (relation.rows, relation.plain_bytes) {
            findings.fail(format!(
                "{}: table {} has {} rows in {} bytes, and its blocks hold {rows} in {bytes}",
                database.name, relation.name, relation.rows, relation.plain_bytes
            ));
        }
        if sums.contains_key(&place) {
            continue;
        }
        // Nothing will be read of it, so its hash is compared here.
        findings.relations += 1;
        if relation.hash != blake3::hash(b"").to_hex().as_str() {
            findings.fail(format!(
                "{}: table {} has no rows, but a hash of some",
                database.name, relation.name
            ));
        }
    }
}

/// What came of a group.
#[derive(Default)]
struct GroupOutcome {
    rows: u64,
    relations: u64,
    failures: Vec<String>,
}

struct Check<'a> {
    repository: &'a Repository,
    id: &'a BackupId,
    progress: &'a Progress,
}

impl Check<'_> {
    /// Opens an object without rows and measures its contents.
    async fn whole(&self, object: &ObjectRef) -> Result<(), DumpError> {
        let mut contents = self.repository.contents(self.id, object).await?;
        let mut found = 0;
        while let Some(block) = contents.next().await? {
            found += block.len() as u64;
        }
        Progress::add(&self.progress.bytes_done, object.stored_bytes);
        if found == object.plain_bytes {
            return Ok(());
        }
        let reason = format!("it holds {found} bytes, not {}", object.plain_bytes);
        Err(DumpError::Object {
            name: object.name.clone(),
            reason,
        })
    }

    async fn group(&self, group: &Group<'_>) -> Result<GroupOutcome, DumpError> {
        let mut outcome = GroupOutcome::default();
        let mut hashers: HashMap<u32, blake3::Hasher> = HashMap::new();
        let mut whole = group.whole.clone();
        for data in &group.objects {
            match self.data_object(group.database, data, &mut hashers).await {
                Ok(rows) => outcome.rows += rows,
                Err(error) => {
                    outcome.failures.push(damage(error, &data.object.name)?);
                    data.segments.iter().for_each(|segment| {
                        whole.remove(&segment.relation);
                    });
                }
            }
        }
        for place in whole {
            let Some(relation) = group.database.relations.get(place as usize) else {
                continue;
            };
            let found = hashers.remove(&place).unwrap_or_default().finalize();
            outcome.relations += 1;
            if found.to_hex().as_str() != relation.hash {
                let (database, name) = (&group.database.name, &relation.name);
                outcome.failures.push(format!(
                    "{database}: the rows of table {name} have the hash {}, not {}",
                    found.to_hex(),
                    relation.hash
                ));
            }
        }
        Ok(outcome)
    }

    /// Reads the rows of one object.
    async fn data_object(
        &self,
        database: &DatabaseManifest,
        data: &DataObject,
        hashers: &mut HashMap<u32, blake3::Hasher>,
    ) -> Result<u64, DumpError> {
        let wrong = |reason: String| DumpError::Object {
            name: data.object.name.clone(),
            reason,
        };
        let contents = self.repository.contents(self.id, &data.object).await?;
        let mut reader = BlockReader::new(data, &database.relations, contents);
        let (mut rows, mut count, mut current) = (0, RowCount::default(), None);
        while let Some(piece) = reader.next().await? {
            match piece {
                Piece::Begin(segment) => {
                    let relation = database.relations.get(segment.relation as usize);
                    count = RowCount::new(relation.map(|relation| relation.format).unwrap_or_default());
                    current = Some(segment.relation);
                }
                Piece::Rows(bytes) => {
                    count.feed(&bytes).map_err(|error| wrong(error.to_string()))?;
                    if let Some(relation) = current {
                        hashers.entry(relation).or_default().update(&bytes);
                    }
                }
                Piece::End(segment) if count.rows() != Some(segment.rows) => {
                    let found = count.rows().map_or("half".to_owned(), |rows| rows.to_string());
                    return Err(wrong(format!("a block holds {found} rows, not {}", segment.rows)));
                }
                Piece::End(segment) => rows += segment.rows,
            }
        }
        Progress::add(&self.progress.bytes_done, data.object.stored_bytes);
        Progress::add(&self.progress.rows, rows);
        Ok(rows)
    }
}

/// What an error says about the object, if it is about the object: the rest goes up.
fn damage(error: DumpError, name: &str) -> Result<String, DumpError> {
    let reason = match &error {
        DumpError::Object { .. } | DumpError::Manifest { .. } => return Ok(error.to_string()),
        DumpError::Repository(RepositoryError::HashMismatch { found, expected, .. }) => {
            format!("its BLAKE3 hash is {found}, not {expected}")
        }
        DumpError::Repository(RepositoryError::Malformed { reason, .. }) => reason.clone(),
        DumpError::Repository(RepositoryError::Open {
            source: EncryptionError::Read(_),
            ..
        }) => return Err(error),
        DumpError::Repository(RepositoryError::Open { source, .. }) => source.to_string(),
        DumpError::Repository(RepositoryError::Store(store)) if store.kind() == StoreErrorKind::NotFound => {
            "it is missing".to_owned()
        }
        DumpError::Repository(RepositoryError::Store(store)) if store.kind() == StoreErrorKind::ShortBody => {
            store.to_string()
        }
        _ => return Err(error),
    };
    Ok(format!("{name}: {reason}"))
}
