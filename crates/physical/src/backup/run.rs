use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use pgkeep_base::{BackupId, Progress};
use pgkeep_pg::Target;
use pgkeep_pg::replication::{Identity, ReplicationSession};
use pgkeep_pgformat::{BackupLabel, BackupSource, ControlFile, Lsn, Timeline};
use pgkeep_repository::commit::CommitFailure;
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::map::PackTable;
use pgkeep_repository::object::{ObjectRef, SealedObject};
use pgkeep_repository::pack::is_block_size;
use pgkeep_repository::{Repository, integrity, layout};
use pgkeep_wal::RangeReceiver;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::before::{Before, Found};
use super::blocks::BlockMapWriter;
use super::collect::Captured;
use super::local::Pages;
use super::refer;
use super::source::{Source, Started};
use super::stages::{self, Stored};
use super::stream::{Reading, Received};
use super::{BACKUP_FAILED, BackupOptions};
use crate::error::{Context, PhysicalError};
use crate::manifest::{
    BaseManifest, BaseTotals, CONFIGURATION_ELSEWHERE, DamagedPages, MANIFEST_BYTES_MAX, MANIFEST_FORMAT,
    SUMMARY_BYTES_MAX, Tablespace,
};

/// The oldest server that is supported, as `server_version_num`.
const SERVER_VERSION_NUM_MIN: u32 = 150_000;

/// What is known before the lease is taken.
pub struct Prepared {
    session: ReplicationSession,
    pub identity: Identity,
    server_version: String,
    server_version_num: u32,
    pub block_bytes: u32,
    data_checksums: bool,
    source: Source,
    /// Why the files come by replication, where nobody asked for that.
    pub fallback: Option<String>,
}

/// Connects, and refuses what can't be backed up.
pub async fn prepare(target: &Target, options: &BackupOptions) -> Result<Prepared, PhysicalError> {
    let connecting = || format!("connecting to {} for replication", target.endpoint());
    let mut session = ReplicationSession::connect(target).await.context(connecting)?;
    let server_version_num = session.session().server_version_num();
    let server_version = session
        .session()
        .parameter("server_version")
        .unwrap_or_default()
        .to_owned();
    if server_version_num < SERVER_VERSION_NUM_MIN {
        return Err(PhysicalError::Server {
            message: format!("the server is PostgreSQL {server_version}, and pgkeep supports 15 and later"),
            hint: None,
        });
    }
    if session.session().parameter("in_hot_standby") == Some("on") {
        return Err(PhysicalError::Server {
            message: "the server is a standby, which this version of pgkeep can't back up".to_owned(),
            hint: Some("connect to the primary".to_owned()),
        });
    }
    let asking = || "asking the server what it is".to_owned();
    let identity = session.identify().await.context(asking)?;
    let block_bytes = session.show("block_size").await.context(asking)?;
    let data_checksums = session.show("data_checksums").await.context(asking)? == "on";
    let block_bytes = block_bytes.parse().ok().filter(|bytes| is_block_size(*bytes));
    let (source, fallback) = Source::choose(target, options, &identity).await?;
    Ok(Prepared {
        session,
        identity,
        server_version,
        server_version_num,
        block_bytes: block_bytes.ok_or(PhysicalError::Archive("its pages have no size"))?,
        data_checksums,
        source,
        fallback,
    })
}

pub struct Run<'a> {
    pub repository: &'a Repository,
    pub destinations: &'a Arc<Destinations>,
    pub target: &'a Target,
    pub options: &'a BackupOptions,
    pub progress: &'a Arc<Progress>,
    pub id: BackupId,
    pub prefix: String,
    /// Held by every task that stores objects, so that a failed backup is swept when none of them is left.
    pub alive: mpsc::Sender<()>,
}

/// A backup that lacks its manifest, and nothing else.
pub struct Ready {
    manifest: BaseManifest,
    sealed: SealedObject,
    packs: PackTable,
    /// What it holds, for the next one.
    map: Option<BlockMapWriter>,
    notes: Vec<String>,
}

/// What was read and stored.
struct Taken {
    reader: &'static str,
    start: (Lsn, Timeline),
    tablespaces: Vec<Tablespace>,
    received: Received,
    stored: Stored,
    fingerprint_key: [u8; 32],
    before: Option<Arc<Before>>,
}

impl Run<'_> {
    /// Everything up to the manifest, which isn't put yet.
    pub async fn all(&self, mut prepared: Prepared) -> Result<Ready, PhysicalError> {
        let Found { before, note } = self.before(&prepared).await?;
        self.progress.set_phase("preparing to receive WAL");
        // Before the backup: its slot holds all WAL from the checkpoint on that the backup begins with.
        let receiver =
            RangeReceiver::connect(self.target, self.repository, self.options.accept_new_identity).await?;
        let mut taken = self.take(&mut prepared, receiver, before.map(Arc::new)).await?;
        let (start, stop) = (taken.start, taken.received.stop);
        self.check_wal(prepared.identity.system_identifier, start.0, stop)
            .await?;
        let mut manifest = self.manifest(&prepared, &taken)?;
        prepared.session.close().await;
        self.progress.set_phase("writing the manifest");
        let packs = refer::table(&taken.stored.places, &taken.stored.packs, taken.before.as_ref())?;
        let map = taken.stored.map.take();
        let sealed = self.describe(&mut manifest, taken.stored, &packs).await?;
        Ok(Ready {
            manifest,
            sealed,
            packs,
            map,
            notes: note.into_iter().collect(),
        })
    }

    /// Begins to read, by whatever reader there is; returns its name, too.
    async fn start<'p>(
        &self,
        prepared: &'p mut Prepared,
    ) -> Result<(&'static str, Started<'p>), PhysicalError> {
        self.progress.set_phase("waiting for the server's checkpoint");
        let pages = Pages {
            block_bytes: prepared.block_bytes,
            have_checksums: prepared.data_checksums,
        };
        let source = std::mem::replace(&mut prepared.source, Source::Replication);
        let reader = source.name();
        let named = (format!("pgkeep {}", self.id), self.options);
        let timeline = prepared.identity.timeline;
        let started = source
            .start(&mut prepared.session, named, (timeline, pages))
            .await?;
        Ok((reader, started))
    }

    /// The backup's WAL, from its start until its end is told.
    fn receive(
        &self,
        receiver: RangeReceiver,
        start: (Lsn, Timeline),
        stop: watch::Receiver<Option<Lsn>>,
    ) -> JoinSet<Result<pgkeep_wal::RangeReport, pgkeep_wal::WalError>> {
        let mut receiving = JoinSet::new();
        let alive = self.alive.clone();
        receiving.spawn(async move {
            let _alive = alive;
            receiver.receive(start.0, start.1, stop).await
        });
        receiving
    }

    /// The files and the WAL at once.
    async fn take(
        &self,
        prepared: &mut Prepared,
        receiver: RangeReceiver,
        before: Option<Arc<Before>>,
    ) -> Result<Taken, PhysicalError> {
        if receiver.identity().system_identifier != prepared.identity.system_identifier {
            return Err(another_server());
        }
        let block_bytes = prepared.block_bytes;
        let (reader, started) = self.start(prepared).await?;
        let start = started.start();
        let tablespaces = started.tablespaces()?;
        started.expect(self.progress);
        self.progress.set_phase("copying files");

        let (stop_wal, stop) = watch::channel(None);
        let mut receiving = self.receive(receiver, start, stop);
        let (bench, fingerprint_key) = self.bench(block_bytes, before.as_ref())?;
        let place = (&self.id, self.prefix.as_str());
        let jobs = self.options.jobs;
        let (to_pack, mut storing) = stages::start(
            self.destinations,
            place,
            &bench,
            self.map(block_bytes),
            jobs,
            self.progress,
            &self.alive,
        )?;
        let reading = Reading {
            bench: &bench,
            block_bytes,
            jobs,
            to_pack,
            progress: self.progress,
            rate_kib_max: self.options.rate_kib_max,
        };
        let received = tokio::select! {
            received = started.run(&reading) => received,
            // Without its WAL the backup is none.
            ended = receiving.join_next() => Err(ended_early(ended)),
        };
        drop(reading);
        let (received, stored) = stages::both(received, stored_by(&mut storing).await)?;
        if received.stop.1 != start.1 {
            return Err(another_timeline());
        }
        if self.options.strict {
            refuse_damage(&received.damaged_pages)?;
        }
        self.progress.set_phase("waiting for the last WAL");
        let _ = stop_wal.send(Some(received.stop.0));
        match receiving.join_next().await {
            Some(Ok(report)) => report?,
            ended => return Err(ended_early(ended)),
        };
        Ok(Taken {
            reader,
            start,
            tablespaces,
            received,
            stored,
            fingerprint_key,
            before,
        })
    }

    /// One listing proves that the WAL of the backup is there; only then it may exist.
    async fn check_wal(
        &self,
        system_identifier: u64,
        start: Lsn,
        (stop, timeline): (Lsn, Timeline),
    ) -> Result<(), PhysicalError> {
        let covered = self.repository.wal_coverage(system_identifier, timeline).await?;
        if covered.iter().any(|range| range.holds(start, stop)) {
            return Ok(());
        }
        let near = covered
            .iter()
            .filter(|range| range.end > start && range.start < stop);
        let found: Vec<String> = near
            .map(|range| format!("{} to {}", range.start, range.end))
            .collect();
        Err(PhysicalError::WalIncomplete {
            start: start.to_string(),
            stop: stop.to_string(),
            found: match found.is_empty() {
                true => "there is none of it".to_owned(),
                false => format!("there is {}", found.join(", ")),
            },
        })
    }

    fn manifest(&self, prepared: &Prepared, taken: &Taken) -> Result<BaseManifest, PhysicalError> {
        let received = &taken.received;
        let (label_text, label) = label(&received.captured)?;
        let control = received.captured.control_file.as_deref();
        let control = control.ok_or(PhysicalError::Archive("it has no pg_control"))?;
        let control = ControlFile::parse(control).map_err(PhysicalError::internal)?;
        if control.system_identifier != prepared.identity.system_identifier {
            return Err(another_server());
        }
        if label.start_timeline != taken.start.1 {
            return Err(another_timeline());
        }
        if label.start_lsn != taken.start.0 || control.block_bytes != prepared.block_bytes {
            return Err(PhysicalError::Archive(
                "its backup_label or pg_control is of another backup",
            ));
        }
        let access = self.destinations.access();
        let (start_lsn, start_timeline) = taken.start;
        let (stop_lsn, stop_timeline) = received.stop;
        let hex = taken.fingerprint_key.iter().map(|byte| format!("{byte:02x}"));
        Ok(BaseManifest {
            format: MANIFEST_FORMAT,
            id: self.id.to_string(),
            cluster: self.destinations.cluster().to_owned(),
            pgkeep_version: env!("CARGO_PKG_VERSION").to_owned(),
            system_identifier: control.system_identifier.to_string(),
            server_version: prepared.server_version.clone(),
            server_version_num: prepared.server_version_num,
            catalog_version: control.catalog_version,
            block_bytes: prepared.block_bytes,
            wal_segment_bytes: control.wal_segment_size.bytes(),
            data_checksums: prepared.data_checksums,
            reader: taken.reader.to_owned(),
            from_standby: label.source == BackupSource::Standby,
            started_at: self.id.started_at(),
            finished_at: self.destinations.now(),
            checkpoint_at: Timestamp::from_second(control.checkpoint_time)
                .map_err(PhysicalError::internal)?,
            start_lsn,
            start_timeline,
            checkpoint_lsn: label.checkpoint_lsn,
            stop_lsn,
            stop_timeline,
            backup_label: label_text,
            tablespaces: taken.tablespaces.clone(),
            fingerprint_key: hex.collect(),
            recipients: access.recipients(),
            annotations: self.options.annotations.clone(),
            damaged_pages: received.damaged_pages.clone(),
            omissions: omissions(received),
            files: Vec::new(),
            packs: no_object(),
            totals: BaseTotals {
                files: received.files,
                plain_bytes: received.plain_bytes,
                ..BaseTotals::default()
            },
        })
    }

    /// The objects that say what the backup is, in the order in which they are put; the manifest isn't put yet.
    async fn describe(
        &self,
        manifest: &mut BaseManifest,
        stored: Stored,
        table: &PackTable,
    ) -> Result<SealedObject, PhysicalError> {
        let destinations = self.destinations;
        let contents = table.encode().map_err(PhysicalError::internal)?;
        let name = layout::pack_table_object(destinations.access().sealed_suffix());
        let packs = destinations
            .put_contents(&self.prefix, &name, Bytes::from(contents))
            .await?;
        let referred = refer::referred(table, &self.id).map(|pack| refer::as_object(pack, &self.id));
        let mut objects: Vec<ObjectRef> = referred.collect();
        let (reused_objects, reused_bytes) = (objects.len() as u64, sum(&objects));
        objects.extend(stored.pack_objects);
        objects.extend(stored.records.iter().cloned());
        objects.push(packs.clone());
        manifest.files = stored.records;
        manifest.packs = packs;
        manifest.totals = BaseTotals {
            objects: objects.len() as u64,
            stored_bytes: sum(&objects),
            reused_objects,
            reused_bytes,
            zero_bytes: stored.zero_bytes,
            packs: table.packs.len() as u64,
            ..manifest.totals
        };
        manifest.finished_at = destinations.now();
        let summary = serialize(&manifest.summary(), SUMMARY_BYTES_MAX)?;
        objects.push(
            destinations
                .put_contents(&self.prefix, layout::SUMMARY, summary)
                .await?,
        );
        let sealed = destinations
            .seal(serialize(manifest, MANIFEST_BYTES_MAX)?)
            .await?;
        objects.push(sealed.as_object(layout::MANIFEST));
        let checksums = integrity::format_checksums(objects.iter());
        destinations
            .put_plain(&self.prefix, layout::CHECKSUMS, checksums)
            .await?;
        Ok(sealed)
    }

    /// The manifest: from now on the backup exists. Returns it, with what is worth knowing.
    pub async fn commit(&self, ready: Ready) -> Result<(BaseManifest, Vec<String>), PhysicalError> {
        for (place, repository) in self.destinations.remaining() {
            let sealed = ready.sealed.clone();
            let committing = self
                .destinations
                .commit_in(place, repository, &self.id, sealed, BACKUP_FAILED);
            committing.await.map_err(|failure| match failure {
                CommitFailure::Failed(error) => error.into(),
                CommitFailure::Unconfirmed(source) => PhysicalError::Unconfirmed {
                    id: self.id.to_string(),
                    source: Box::new(source),
                },
            })?;
            refer::look_again(repository, &self.id, &ready.packs).await?;
        }
        let hash = ready.sealed.hash.to_hex().to_string();
        self.remember(ready.map, ready.packs, &ready.manifest, hash).await;
        Ok((ready.manifest, ready.notes))
    }
}

/// The outcome of the stages behind the workers.
async fn stored_by(storing: &mut JoinSet<Result<Stored, PhysicalError>>) -> Result<Stored, PhysicalError> {
    match storing.join_next().await {
        Some(joined) => joined.map_err(PhysicalError::internal)?,
        None => Err(PhysicalError::internal("there are no stages")),
    }
}

type WalEnded = Option<Result<Result<pgkeep_wal::RangeReport, pgkeep_wal::WalError>, tokio::task::JoinError>>;

fn ended_early(ended: WalEnded) -> PhysicalError {
    match ended {
        Some(Ok(Err(error))) => error.into(),
        Some(Err(error)) => PhysicalError::internal(error),
        Some(Ok(Ok(_))) | None => PhysicalError::internal("the receiver of WAL ended before the backup"),
    }
}

fn another_server() -> PhysicalError {
    PhysicalError::Server {
        message: "two connections led to two different servers".to_owned(),
        hint: Some(
            "name one host in 'connection': a backup and its WAL come over several connections".to_owned(),
        ),
    }
}

fn another_timeline() -> PhysicalError {
    PhysicalError::Server {
        message: "the server changed its timeline while it was backed up".to_owned(),
        hint: Some("run 'pgkeep backup' again".to_owned()),
    }
}

/// With `strict` a damaged page is the end.
fn refuse_damage(damaged: &DamagedPages) -> Result<(), PhysicalError> {
    let Some(first) = damaged.reports.first() else {
        return Ok(());
    };
    let others = match damaged.reports_total {
        0 | 1 => String::new(),
        more => format!(" ({} reports in all)", more),
    };
    Err(PhysicalError::Refused {
        message: format!("a page is damaged at the server: {first}{others}"),
        hint: "the server's own check tells more: pg_amcheck --all; without --strict the pages are stored as they are, and named"
            .to_owned(),
    })
}

fn label(captured: &Captured) -> Result<(String, BackupLabel), PhysicalError> {
    let missing = PhysicalError::Archive("it has no backup_label");
    let contents = captured.backup_label.as_deref().ok_or(missing)?;
    let label = BackupLabel::parse(contents).map_err(PhysicalError::internal)?;
    let text = String::from_utf8(contents.to_vec()).map_err(PhysicalError::internal)?;
    Ok((text, label))
}

/// What isn't in the backup, in words.
fn omissions(received: &Received) -> Vec<String> {
    let skipped = received.warnings.iter().cloned();
    let elsewhere = received
        .captured
        .missing_configuration()
        .into_iter()
        .map(|name| format!("{name}{CONFIGURATION_ELSEWHERE}"));
    skipped.chain(elsewhere).collect()
}

/// What needs attention about a backup that was just made.
pub fn attention(manifest: &BaseManifest) -> Vec<String> {
    const SHOWN_MAX: usize = 10;
    let damaged = &manifest.damaged_pages;
    let shown = damaged.reports.iter().take(SHOWN_MAX);
    let mut attention: Vec<String> = shown
        .map(|report| format!("damaged at the server: {report}"))
        .collect();
    if damaged.reports_total > SHOWN_MAX as u64 {
        attention.push(format!(
            "{} reports of damaged pages in all: 'pgkeep show {} --json'",
            damaged.reports_total, manifest.id
        ));
    }
    let omitted = manifest.omissions.iter();
    attention.extend(omitted.map(|omission| format!("not in the backup: {omission}")));
    attention
}

fn sum(objects: &[ObjectRef]) -> u64 {
    objects.iter().map(|object| object.stored_bytes).sum()
}

fn no_object() -> ObjectRef {
    SealedObject::plain(Bytes::new()).as_object("")
}

fn serialize<T: serde::Serialize>(value: &T, bytes_max: usize) -> Result<Bytes, PhysicalError> {
    let text = serde_json::to_vec(value).map_err(PhysicalError::internal)?;
    match text.len() <= bytes_max {
        true => Ok(Bytes::from(text)),
        false => Err(PhysicalError::Usage {
            message: format!(
                "what says of the backup what it is would have {} bytes",
                text.len()
            ),
            hint: "fewer or shorter annotations".to_owned(),
        }),
    }
}
