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
use pgkeep_repository::destinations::{Destinations, LeftOut};
use pgkeep_repository::object::{ObjectRef, SealedObject};
use pgkeep_repository::{RepositoryError, integrity, layout};
use tokio::sync::mpsc;

use crate::catalog;
use crate::connect::connect;
use crate::database;
use crate::databases::{self, ChosenDatabases};
use crate::error::DumpError;
use crate::limits::{self, Limit};
use crate::manifest::{Asked, DumpManifest, Filters, MANIFEST_FORMAT, Narrowed, RelationKind, Totals};
use crate::objects::{object_refs, summary, totals};
use crate::reuse::{Base, ReuseOptions};
use crate::schema::{self, ClientPrograms};
use crate::{sql, unfit, way_out};
use pgkeep_base::Progress;

/// Tasks that were told to end do so at their next wait, which is never long.
const TASKS_END_MAX: Duration = Duration::from_secs(10);

/// The oldest server that is supported, as `server_version_num`.
pub const SERVER_VERSION_NUM_MIN: u32 = 150_000;

/// Why a dump's objects are swept.
pub(crate) const DUMP_FAILED: &str = "the dump failed";

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
    /// The repositories that have it, by their URLs.
    pub stored_in: Vec<String>,
    /// Those that don't, of several.
    pub left_out: Vec<LeftOut<DumpError>>,
}

pub(crate) struct Run<'a> {
    pub destinations: &'a Arc<Destinations>,
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

/// Dumps into the repositories, from one read. One that fails is left out, as the report says.
///
/// # Errors
/// Nothing is half there: on any error there is no manifest, and what was stored is swept, now or by the next run.
pub async fn dump(
    destinations: &Arc<Destinations>,
    target: &Target,
    options: &DumpOptions,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<DumpReport, DumpError> {
    let dumped = dump_readable(destinations, target, options, progress, cancelled).await;
    dumped.map_err(DumpError::of_a_dump)
}

async fn dump_readable(
    destinations: &Arc<Destinations>,
    target: &Target,
    options: &DumpOptions,
    progress: &Arc<Progress>,
    cancelled: impl Future<Output = ()>,
) -> Result<DumpReport, DumpError> {
    let begun = Instant::now();
    let mut cancelled = pin!(cancelled);
    let prepared = tokio::select! {
        prepared = prepare(destinations, target, options, progress) => prepared?,
        () = &mut cancelled => return Err(DumpError::Interrupted),
    };
    let wanted = (destinations, target, options, progress);
    let acquiring =
        destinations.acquire_leases_unless(cancelled.as_mut(), "pgkeep dump", options.lease_duration);
    let dumped = match acquiring.await {
        Ok(true) => under_lease(wanted, prepared, cancelled).await,
        Ok(false) => Err(DumpError::Interrupted),
        Err(error) => Err(error.into()),
    };
    destinations.release_leases().await;
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
    destinations: &Destinations,
    target: &Target,
    options: &DumpOptions,
    progress: &Progress,
) -> Result<Prepared, DumpError> {
    progress.set_phase("connecting");
    let mut session = connect(target).await?;
    let server_version_num = check_server(&session)?;
    let server_version = session.parameter("server_version").unwrap_or_default().to_owned();
    let system_identifier = catalog::system_identifier(&mut session).await?;
    let chosen = databases::choose(&mut session, target, &options.databases).await?;
    let settings_for_all = sql::settings_for_all(&catalog::settings_for_all(&mut session).await?);
    let with_passwords = schema::may_read_passwords(&mut session).await?;
    session.close().await;
    let programs = ClientPrograms::find(server_version_num, &options.programs).await?;
    destinations
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

/// All that is done while the lease is held, whatever becomes of it.
async fn under_lease(
    (destinations, target, options, progress): (&Arc<Destinations>, &Target, &DumpOptions, &Arc<Progress>),
    prepared: Prepared,
    mut cancelled: Pin<&mut impl Future<Output = ()>>,
) -> Result<DumpReport, DumpError> {
    let begun = Instant::now();
    let begin = async {
        let swept = destinations.sweep_quietly(BackupKind::Dump).await;
        let base = base(destinations, options, prepared.system_identifier).await?;
        Ok((swept, destinations.next_id(BackupKind::Dump).await?, base))
    };
    let (swept, id, base) = tokio::select! {
        begun = begin => begun,
        () = cancelled.as_mut() => Err(DumpError::Interrupted),
    }?;
    let (alive, mut ended) = mpsc::channel(1);
    let run = Run {
        destinations,
        target,
        options,
        programs: prepared.programs,
        progress,
        prefix: layout::backup_prefix(destinations.cluster(), &id),
        id: id.clone(),
        server_version: prepared.server_version,
        server_version_num: prepared.server_version_num,
        system_identifier: prepared.system_identifier,
        settings_for_all: prepared.settings_for_all,
        with_passwords: prepared.with_passwords,
        base,
        alive,
    };
    // From here to the manifest the user may interrupt; the commit itself is a request for each
    // repository, and then either true or not.
    let built = tokio::select! {
        built = run.all(prepared.chosen) => built,
        () = cancelled => Err(DumpError::Interrupted),
    };
    match built {
        Ok(ready) => {
            let committed = run.commit(ready).await?;
            Ok(DumpReport {
                id,
                manifest: committed.manifest,
                attention: committed.attention,
                elapsed: begun.elapsed(),
                swept,
                stored_in: committed.stored_in,
                left_out: committed.left_out,
            })
        }
        Err(error) => {
            drop(run);
            if tokio::time::timeout(TASKS_END_MAX, ended.recv()).await.is_err() {
                tracing::debug!("a task goes on; what it still stores stays until the next run");
            }
            progress.set_phase("cleaning up");
            let given_up = destinations.give_up(&id, DUMP_FAILED).await;
            Err(cause(&id, error, &given_up))
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

/// Whatever failed after another process gave the dump up, failed because that one took the objects away.
fn cause(id: &BackupId, error: DumpError, given_up: &[GivenUp]) -> DumpError {
    match given_up {
        [GivenUp::Before(_)] => RepositoryError::Fenced { id: id.to_string() }.into(),
        _ => error,
    }
}

/// The earlier dump whose objects may be taken over.
async fn base(
    destinations: &Destinations,
    options: &DumpOptions,
    system_identifier: u64,
) -> Result<Option<Base>, DumpError> {
    match &options.reuse {
        Some(reuse) if reuse.takes_over => {
            Base::find(destinations, reuse, &options.asked(), system_identifier).await
        }
        _ => Ok(None),
    }
}

/// A dump that lacks its manifest, and nothing else.
pub(crate) struct Ready {
    pub manifest: DumpManifest,
    pub sealed: SealedObject,
    /// What needs attention besides the omissions.
    pub attention: Vec<String>,
}

impl Run<'_> {
    async fn all(&self, chosen: ChosenDatabases) -> Result<Ready, DumpError> {
        let mut omissions = chosen.omissions;
        self.progress.set_phase("roles and other globals");
        let globals = schema::globals(&self.programs, self.target, self.with_passwords).await?;
        if !self.with_passwords {
            omissions.push(PASSWORDS_OMITTED.to_owned());
        }
        let globals = [globals, Bytes::from(sql::script(&self.settings_for_all))].concat();
        limits::GLOBALS.check(globals.len())?;
        let globals = globals.into();
        let name = format!("globals.sql{}", self.destinations.access().sealed_suffix());
        let globals = self
            .destinations
            .put_contents(&self.prefix, &name, globals)
            .await?;
        let dumped = self.databases(&chosen.databases, &mut omissions).await?;
        refuse_empty_selection(&dumped, &self.options.filters)?;
        omissions.extend(dumped.iter().flat_map(|dumped| dumped.hidden.iter().cloned()));
        let attention = unfit::attention(
            dumped
                .iter()
                .map(|dumped| (dumped.manifest.name.as_str(), dumped.unfit.as_slice())),
        );
        let mut manifest = DumpManifest {
            format: MANIFEST_FORMAT,
            id: self.id.to_string(),
            cluster: self.destinations.cluster().to_owned(),
            pgkeep_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.id.started_at(),
            finished_at: self.destinations.now(),
            system_identifier: self.system_identifier.to_string(),
            server_version: self.server_version.clone(),
            server_version_num: self.server_version_num,
            annotations: self.options.annotations.clone(),
            globals: Some(globals),
            globals_have_passwords: self.with_passwords,
            recipients: Some(self.destinations.access().recipients()),
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
        omissions: &mut Vec<String>,
    ) -> Result<Vec<database::Dumped>, DumpError> {
        let mut dumped = Vec::new();
        let mut half_restored = None;
        for name in names {
            self.destinations.check_leases()?;
            let folder = format!("d{}", dumped.len() + 1);
            let error = match database::dump(self, name, &folder).await {
                Ok(database) => {
                    dumped.push(database);
                    continue;
                }
                Err(error) => databases::gone_meanwhile(self.target, name, error).await,
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

    /// Everything that says what the dump is, and the manifest, which is not put yet.
    async fn describe(
        &self,
        manifest: &mut DumpManifest,
        mut objects: Vec<ObjectRef>,
    ) -> Result<SealedObject, DumpError> {
        let suffix = self.destinations.access().sealed_suffix();
        let index = Bytes::from(way_out::index(manifest, suffix));
        objects.push(
            self.destinations
                .put_contents(&self.prefix, &format!("index.tsv{suffix}"), index)
                .await?,
        );
        for (name, text) in [
            ("RESTORE.md", way_out::readme(manifest, suffix)),
            ("restore.sh", way_out::RESTORE_SCRIPT.to_owned()),
        ] {
            objects.push(
                self.destinations
                    .put_plain(&self.prefix, name, Bytes::from(text))
                    .await?,
            );
        }
        manifest.totals = totals(manifest, &objects);
        manifest.finished_at = self.destinations.now();
        let summary = serialize(&summary(manifest, self.options.asked()), &limits::SUMMARY)?;
        objects.push(
            self.destinations
                .put_contents(&self.prefix, layout::SUMMARY, summary)
                .await?,
        );
        let sealed = self
            .destinations
            .seal(serialize(manifest, &limits::MANIFEST)?)
            .await?;
        // With the manifest's own hash, a host without the key sees when the manifest is damaged.
        objects.push(sealed.as_object(layout::MANIFEST));
        let checksums = integrity::format_checksums(objects.iter());
        limits::CHECKSUMS.check(checksums.len())?;
        self.destinations
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
            hint: Some(unfit::hint_of_selection(filters)),
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
