//! One dump, from the first connection to the manifest.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgkeep_base::{BackupId, BackupKind};
use pgkeep_pg::programs::ProgramSearch;
use pgkeep_pg::{Session, Target};
use pgkeep_repository::backups::{GivenUp, Swept};
use pgkeep_repository::lease::Lease;
use pgkeep_repository::object::{ObjectRef, SealedObject};
use pgkeep_repository::references::References;
use pgkeep_repository::{Repository, RepositoryError, integrity, layout};
use tokio::sync::mpsc;

use crate::catalog;
use crate::database;
use crate::databases::{self, ChosenDatabases};
use crate::error::{Context, DumpError};
use crate::limits::{self, Limit};
use crate::manifest::{Asked, DumpManifest, Filters, MANIFEST_FORMAT, Narrowed, RelationKind, Totals};
use crate::objects::{object_refs, summary, totals};
use crate::presence;
use crate::progress::Progress;
use crate::reuse::{self, Base, ReuseOptions};
use crate::schema::{self, ClientPrograms};
use crate::{sql, unfit, way_out};

/// Tasks that were told to end do so at their next wait, which is never long.
const TASKS_END_MAX: Duration = Duration::from_secs(10);

/// A request for the lease that is under way when the user interrupts is waited for so long.
const ACQUIRING_ENDS_MAX: Duration = Duration::from_secs(5);

/// The oldest server that is supported, as `server_version_num`.
pub const SERVER_VERSION_NUM_MIN: u32 = 150_000;

/// What a role that may not see passwords leaves out.
pub(crate) const PASSWORDS_OMITTED: &str =
    "the roles' passwords: reading them takes a superuser or pg_read_all_data";

/// What is said of an omission right after the dump.
pub(crate) fn not_in_the_dump(omission: &str) -> String {
    format!("not in the dump: {omission}")
}

/// What to dump, and how.
#[derive(Debug, Clone)]
pub struct DumpOptions {
    /// The databases' names; empty for all.
    pub databases: Vec<String>,
    /// Parts of them.
    pub filters: Filters,
    /// In what that is less than what is dumped as a rule.
    pub narrowed: Narrowed,
    /// All rows as text: also those of chunks and large tables, which are binary where the columns' types allow it.
    pub text_only: bool,
    /// Tables read at once.
    pub jobs: usize,
    /// How long to wait for the tables' locks.
    pub lock_timeout: Duration,
    /// Whether objects of earlier dumps are taken over where rows haven't changed; none for a full dump.
    pub reuse: Option<ReuseOptions>,
    /// The user's notes.
    pub annotations: BTreeMap<String, String>,
    /// Take the cluster's data under this name although another database cluster wrote here before.
    pub accept_new_identity: bool,
    /// Where to look for PostgreSQL's client programs.
    pub programs: ProgramSearch,
    /// How long the lease lasts without being renewed.
    pub lease_duration: Duration,
}

impl DumpOptions {
    fn asked(&self) -> Asked {
        Asked {
            partial: !self.databases.is_empty() || self.filters != Filters::default(),
            filters: self.filters.clone(),
            narrowed: self.narrowed,
        }
    }
}

/// What a dump did.
#[derive(Debug)]
pub struct DumpReport {
    /// The new dump.
    pub id: BackupId,
    /// Its manifest.
    pub manifest: DumpManifest,
    /// What needs attention, in plain words.
    pub attention: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
    /// What was cleaned away of earlier, unfinished dumps.
    pub swept: Swept,
}

/// How the names of sealed objects end: they tell which tools open them.
pub fn sealed_suffix(repository: &Repository) -> &'static str {
    if repository.access().encryption.is_encrypted() {
        ".zst.age"
    } else {
        ".zst"
    }
}

pub(crate) struct Run<'a> {
    pub repository: &'a Repository,
    pub target: &'a Target,
    pub options: &'a DumpOptions,
    pub programs: ClientPrograms,
    pub progress: &'a Arc<Progress>,
    pub id: BackupId,
    pub prefix: String,
    pub server_version: String,
    pub server_version_num: u32,
    pub system_identifier: u64,
    pub settings_for_all: Vec<String>,
    pub with_passwords: bool,
    /// The earlier dump whose objects may be taken over.
    pub base: Option<Base>,
    /// Held by every task that stores objects, so that a failed dump is swept when none of them is left.
    pub alive: mpsc::Sender<()>,
}

/// Dumps into the repository.
///
/// # Errors
/// Nothing is half there: on any error there is no manifest, and what was stored is swept, now or by the next run.
pub async fn dump(
    repository: &Repository,
    target: &Target,
    options: &DumpOptions,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<DumpReport, DumpError> {
    let dumped = dump_readable(repository, target, options, progress, cancelled).await;
    dumped.map_err(DumpError::of_a_dump)
}

async fn dump_readable(
    repository: &Repository,
    target: &Target,
    options: &DumpOptions,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<DumpReport, DumpError> {
    let begun = Instant::now();
    let mut cancelled = pin!(cancelled);
    let prepared = tokio::select! {
        prepared = prepare(repository, target, options, progress) => prepared?,
        () = &mut cancelled => return Err(DumpError::Interrupted),
    };
    let lease = acquire(repository, options, cancelled.as_mut()).await?;
    let wanted = (repository, target, options, progress);
    let dumped = under_lease(wanted, prepared, &lease, cancelled).await;
    release(lease).await;
    dumped.map(|report| DumpReport {
        elapsed: begun.elapsed(),
        ..report
    })
}

/// What is known before the lease is taken.
struct Prepared {
    programs: ClientPrograms,
    server_version: String,
    server_version_num: u32,
    system_identifier: u64,
    chosen: ChosenDatabases,
    settings_for_all: Vec<String>,
    with_passwords: bool,
}

async fn prepare(
    repository: &Repository,
    target: &Target,
    options: &DumpOptions,
    progress: &Progress,
) -> Result<Prepared, DumpError> {
    progress.set_phase("connecting");
    let context = || {
        format!(
            "connecting to database '{}' at {}",
            target.database(),
            target.endpoint()
        )
    };
    let mut session = Session::connect(target).await.context(context)?;
    let server_version_num = check_server(&session)?;
    let server_version = session.parameter("server_version").unwrap_or_default().to_owned();
    let system_identifier = catalog::system_identifier(&mut session).await?;
    let chosen = databases::choose(&mut session, target, &options.databases).await?;
    let settings_for_all = sql::settings_for_all(&catalog::settings_for_all(&mut session).await?);
    let with_passwords = schema::may_read_passwords(&mut session).await?;
    session.close().await;
    let programs = ClientPrograms::find(server_version_num, &options.programs).await?;
    repository
        .claim_identity(system_identifier, options.accept_new_identity)
        .await?;
    Ok(Prepared {
        programs,
        server_version,
        server_version_num,
        system_identifier,
        chosen,
        settings_for_all,
        with_passwords,
    })
}

/// An interruption must not leave a lease to a process that lives on: a request that is under way is waited for.
async fn acquire(
    repository: &Repository,
    options: &DumpOptions,
    cancelled: Pin<&mut impl Future<Output = ()>>,
) -> Result<Lease, DumpError> {
    let mut acquired = pin!(Lease::acquire(repository, "pgkeep dump", options.lease_duration));
    tokio::select! {
        lease = &mut acquired => return Ok(lease?),
        () = cancelled => {}
    }
    if let Ok(Ok(lease)) = tokio::time::timeout(ACQUIRING_ENDS_MAX, acquired).await {
        release(lease).await;
    }
    Err(DumpError::Interrupted)
}

async fn release(lease: Lease) {
    if let Err(error) = lease.release().await {
        tracing::warn!(%error, "the lease stays until it runs out");
    }
}

/// All that is done while the lease is held, whatever becomes of it.
async fn under_lease(
    (repository, target, options, progress): (&Repository, &Target, &DumpOptions, &Arc<Progress>),
    prepared: Prepared,
    lease: &Lease,
    mut cancelled: Pin<&mut impl Future<Output = ()>>,
) -> Result<DumpReport, DumpError> {
    let begun = Instant::now();
    let begin = async {
        let swept = sweep_quietly(repository).await;
        let base = base(repository, options, prepared.system_identifier).await?;
        Ok((swept, next_id(repository).await?, base))
    };
    let (swept, id, base) = tokio::select! {
        begun = begin => begun,
        () = cancelled.as_mut() => Err(DumpError::Interrupted),
    }?;
    let (alive, mut ended) = mpsc::channel(1);
    let run = Run {
        repository,
        target,
        options,
        programs: prepared.programs,
        progress,
        prefix: layout::backup_prefix(repository.cluster(), &id),
        id: id.clone(),
        server_version: prepared.server_version,
        server_version_num: prepared.server_version_num,
        system_identifier: prepared.system_identifier,
        settings_for_all: prepared.settings_for_all,
        with_passwords: prepared.with_passwords,
        base,
        alive,
    };
    // From here to the manifest the user may interrupt; the commit itself is one request, and then either true or not.
    let built = tokio::select! {
        built = run.all(prepared.chosen, lease) => built,
        () = cancelled => Err(DumpError::Interrupted),
    };
    match built {
        Ok(ready) => {
            let (manifest, attention) = run.commit(ready, lease).await?;
            Ok(DumpReport {
                id,
                manifest,
                attention,
                elapsed: begun.elapsed(),
                swept,
            })
        }
        Err(error) => {
            drop(run);
            if tokio::time::timeout(TASKS_END_MAX, ended.recv()).await.is_err() {
                tracing::debug!("a task goes on; what it still stores stays until the next run");
            }
            progress.set_phase("cleaning up");
            let given_up = give_up(repository, &id).await;
            Err(cause(&id, error, given_up))
        }
    }
}

pub(crate) fn check_server(session: &Session) -> Result<u32, DumpError> {
    let found = session.server_version_num();
    if found < SERVER_VERSION_NUM_MIN {
        let version = session.parameter("server_version").unwrap_or("unknown");
        return Err(DumpError::Target {
            message: format!("the server is PostgreSQL {version}, and pgkeep supports 15 and later"),
            hint: Some("take a dump with that version's pg_dumpall, then upgrade the server".to_owned()),
        });
    }
    Ok(found)
}

/// Ids tell the second of the start. The lease keeps dumps apart, so one that begins in the second of another's start
/// waits for the next: then ids are in the order of time, and `latest` is the latest.
async fn next_id(repository: &Repository) -> Result<BackupId, DumpError> {
    let ids = repository.ids(BackupKind::Dump).await?;
    if let Some(newest) = ids.first() {
        let rest = newest.started_at() + Duration::from_secs(1) - repository.now();
        let rest = Duration::try_from(rest).unwrap_or_default();
        // One from the future is somebody's wrong clock.
        if rest <= Duration::from_secs(1) {
            tokio::time::sleep(rest).await;
        }
    }
    BackupId::new(BackupKind::Dump, repository.now())
        .map_err(|error| DumpError::Internal(format!("the system's random source failed: {error}")))
}

/// Sweeping is the dump's courtesy: a host without the right to delete leaves it to `pgkeep prune`.
async fn sweep_quietly(repository: &Repository) -> Swept {
    match repository.sweep(BackupKind::Dump).await {
        Ok(swept) => swept,
        Err(error) => {
            tracing::debug!(%error, "unfinished dumps stay until 'pgkeep prune'");
            Swept::default()
        }
    }
}

/// Whatever failed after another process gave the dump up, failed because that one took the objects away.
fn cause(id: &BackupId, error: DumpError, given_up: Option<GivenUp>) -> DumpError {
    match given_up {
        Some(GivenUp::Before(_)) => RepositoryError::Fenced { id: id.to_string() }.into(),
        _ => error,
    }
}

/// The earlier dump whose objects may be taken over.
async fn base(
    repository: &Repository,
    options: &DumpOptions,
    system_identifier: u64,
) -> Result<Option<Base>, DumpError> {
    match &options.reuse {
        Some(reuse) if reuse.takes_over => {
            Base::find(repository, reuse, &options.asked(), system_identifier).await
        }
        _ => Ok(None),
    }
}

/// Sweeps what a failed dump stored. Best effort: what stays is an orphan, and the next run sweeps it.
async fn give_up(repository: &Repository, id: &BackupId) -> Option<GivenUp> {
    match repository.sweep_own(id, "the dump failed").await {
        Ok(given_up) => Some(given_up),
        Err(error) => {
            tracing::debug!(%error, "an unfinished dump's objects stay until the next run");
            None
        }
    }
}

/// A dump that lacks its manifest, and nothing else.
struct Ready {
    manifest: DumpManifest,
    sealed: SealedObject,
    /// What needs attention besides the omissions.
    attention: Vec<String>,
}

impl Run<'_> {
    async fn all(&self, chosen: ChosenDatabases, lease: &Lease) -> Result<Ready, DumpError> {
        let mut omissions = chosen.omissions;
        self.progress.set_phase("roles and other globals");
        let globals = schema::globals(&self.programs, self.target, self.with_passwords).await?;
        if !self.with_passwords {
            omissions.push(PASSWORDS_OMITTED.to_owned());
        }
        let globals = [globals, Bytes::from(sql::script(&self.settings_for_all))].concat();
        limits::GLOBALS.check(globals.len())?;
        let globals = globals.into();
        let name = format!("globals.sql{}", sealed_suffix(self.repository));
        let globals = self.repository.put_contents(&self.prefix, &name, globals).await?;
        let dumped = self.databases(&chosen.databases, lease, &mut omissions).await?;
        refuse_empty_selection(&dumped, &self.options.filters)?;
        let attention = unfit::attention(
            dumped
                .iter()
                .map(|dumped| (dumped.manifest.name.as_str(), dumped.unfit.as_slice())),
        );
        let mut manifest = DumpManifest {
            format: MANIFEST_FORMAT,
            id: self.id.to_string(),
            cluster: self.repository.cluster().to_owned(),
            pgkeep_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.id.started_at(),
            finished_at: self.repository.now(),
            system_identifier: self.system_identifier.to_string(),
            server_version: self.server_version.clone(),
            server_version_num: self.server_version_num,
            annotations: self.options.annotations.clone(),
            globals: Some(globals),
            globals_have_passwords: self.with_passwords,
            recipients: Some(reuse::recipients(self.repository)),
            asked: Some(self.options.asked()),
            databases: dumped.iter().map(|dumped| dumped.manifest.clone()).collect(),
            omissions,
            totals: Totals::default(),
        };
        self.progress.set_phase("writing the manifest");
        let mut objects = object_refs(&manifest);
        objects.extend(dumped.into_iter().flat_map(|dumped| dumped.other_objects));
        let sealed = self.describe(&mut manifest, objects).await?;
        Ok(Ready {
            manifest,
            sealed,
            attention,
        })
    }

    /// One after another. One that is half-restored is an omission where everything was asked for, and refused where it
    /// was named; so it is where there is no other, because a dump of nothing is none.
    async fn databases(
        &self,
        names: &[String],
        lease: &Lease,
        omissions: &mut Vec<String>,
    ) -> Result<Vec<database::Dumped>, DumpError> {
        let mut dumped = Vec::new();
        let mut half_restored = None;
        for name in names {
            lease.check()?;
            let folder = format!("d{}", dumped.len() + 1);
            let error = match database::dump(self, name, &folder).await {
                Ok(database) => {
                    dumped.push(database);
                    continue;
                }
                Err(error) => error,
            };
            match databases::omission(&error, &self.options.databases) {
                Some(omission) => {
                    omissions.push(omission);
                    half_restored.get_or_insert(error);
                }
                None => return Err(error),
            }
        }
        match half_restored {
            Some(error) if dumped.is_empty() => Err(error),
            _ => Ok(dumped),
        }
    }

    /// The manifest: from now on the dump exists. An answer that was lost for good is looked into: a dump that is there
    /// must not be reported as failed. Where the store is sure that it failed, as when a disk can't make it durable, it
    /// must not be there.
    async fn commit(&self, ready: Ready, lease: &Lease) -> Result<(DumpManifest, Vec<String>), DumpError> {
        let committed = match lease.check() {
            Ok(()) => self.repository.commit(&self.id, ready.sealed).await,
            Err(error) => Err(error),
        };
        if let Err(error) = committed {
            let is_there = give_up(self.repository, &self.id).await == Some(GivenUp::Committed);
            match &error {
                RepositoryError::Store(lost) if is_there && lost.may_have_happened() => {}
                RepositoryError::Store(_) if is_there => {
                    self.take_back().await;
                    return Err(error.into());
                }
                _ => return Err(error.into()),
            }
        }
        self.look_again(&ready.manifest).await?;
        if let Some(reuse) = &self.options.reuse {
            reuse::remember(self.repository, reuse, &ready.manifest);
        }
        let omissions = ready.manifest.omissions.iter();
        let omissions = omissions.map(|omission| not_in_the_dump(omission));
        let attention = omissions.chain(ready.attention).collect();
        Ok((ready.manifest, attention))
    }

    /// Whether the objects of earlier dumps are there, now that nobody removes them any more. A prune on a host that took the
    /// lease for expired may have been faster than the manifest, which then goes again.
    async fn look_again(&self, manifest: &DumpManifest) -> Result<(), DumpError> {
        if manifest.totals.reused_objects == 0 {
            return Ok(());
        }
        let looked = presence::require_all(self.repository, &self.id, manifest).await;
        if let Err(DumpError::ObjectsMissing { .. }) = looked {
            self.take_back().await;
        }
        looked
    }

    async fn take_back(&self) {
        // Nobody has begun to refer to it.
        let mut references = References::default();
        if let Err(error) = self.repository.remove(&self.id, &mut references).await {
            tracing::warn!(%error, "dump {} failed, and something of it stays: pgkeep verify {}", self.id, self.id);
        }
    }

    /// Everything that says what the dump is, and the manifest, which is not put yet.
    async fn describe(
        &self,
        manifest: &mut DumpManifest,
        mut objects: Vec<ObjectRef>,
    ) -> Result<SealedObject, DumpError> {
        let suffix = sealed_suffix(self.repository);
        let index = Bytes::from(way_out::index(manifest, suffix));
        objects.push(
            self.repository
                .put_contents(&self.prefix, &format!("index.tsv{suffix}"), index)
                .await?,
        );
        for (name, text) in [
            ("RESTORE.md", way_out::readme(manifest, suffix)),
            ("restore.sh", way_out::RESTORE_SCRIPT.to_owned()),
        ] {
            objects.push(
                self.repository
                    .put_plain(&self.prefix, name, Bytes::from(text))
                    .await?,
            );
        }
        manifest.totals = totals(manifest, &objects);
        manifest.finished_at = self.repository.now();
        let summary = serialize(&summary(manifest, self.options.asked()), &limits::SUMMARY)?;
        objects.push(
            self.repository
                .put_contents(&self.prefix, layout::SUMMARY, summary)
                .await?,
        );
        let sealed = self
            .repository
            .seal(serialize(manifest, &limits::MANIFEST)?)
            .await?;
        // With the manifest's own hash, a host without the key sees when the manifest is damaged.
        objects.push(sealed.as_object(layout::MANIFEST));
        let checksums = integrity::format_checksums(objects.iter());
        limits::CHECKSUMS.check(checksums.len())?;
        self.repository
            .put_plain(&self.prefix, layout::CHECKSUMS, checksums)
            .await?;
        Ok(sealed)
    }
}

/// A pattern with a typing error must not make a dump of nothing.
fn refuse_empty_selection(dumped: &[database::Dumped], filters: &Filters) -> Result<(), DumpError> {
    let mut relations = dumped.iter().flat_map(|dumped| &dumped.manifest.relations);
    if filters.selects_a_part() && relations.all(|relation| relation.kind == RelationKind::Configuration) {
        return Err(DumpError::Usage {
            message: "no table fits what was asked for".to_owned(),
            hint: Some("patterns are those of pg_dump: --table 'schema.name*'".to_owned()),
        });
    }
    Ok(())
}

fn serialize<T: serde::Serialize>(value: &T, limit: &Limit) -> Result<Bytes, DumpError> {
    let text =
        serde_json::to_vec(value).map_err(|error| DumpError::Internal(format!("writing JSON: {error}")))?;
    limit.check(text.len())?;
    Ok(Bytes::from(text))
}
