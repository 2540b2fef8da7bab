//! From a stream of WAL to objects: a task of its own, so that the connection is looked after whatever the store does.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use pgkeep_pgformat::{Lsn, SegmentName, Timeline, WalFileName};
use pgkeep_repository::wal::{Ranges, Stored, StoredWal, WalCompressor};
use pgkeep_repository::{Repository, RepositoryError};
use pgkeep_store::StoreErrorKind;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::assembly::{Assembly, Known, ToPut, Writer};
use crate::error::WalError;
use crate::pause::Pauses;
use crate::state::Told;

/// Puts at once.
const PUTS_MAX: usize = 4;
/// What they may hold together, in bytes: no further one begins above it.
const PUT_BYTES_MAX: u64 = 64 << 20;
/// Pieces that wait to be compressed; each has up to a mebibyte.
const WORK_WAITING_MAX: usize = 8;
/// Headers of stored objects that are read at once.
const HEADERS_AT_ONCE: usize = 8;
/// Between two attempts of a put that used up the store's own patience, at most.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Something to do.
#[derive(Debug)]
pub(crate) enum Work {
    /// The next bytes, which don't reach beyond a segment's end.
    Bytes(Bytes),
    /// What has come so far shall be stored without waiting for more.
    Flush,
}

/// Where and how WAL is stored.
#[derive(Clone)]
pub(crate) struct Place {
    pub repository: Repository,
    pub system_identifier: u64,
    /// After the store's own patience is used up: tried again for ever, or given up.
    pub persistent: bool,
    pub told: Told,
}

/// WAL of one timeline on its way into the repository. Dropped, it is given up.
pub(crate) struct Storing {
    /// Takes work, as long as there is room.
    pub work: Option<mpsc::Sender<Work>>,
    /// Up to where all is durable.
    pub durable: watch::Receiver<Lsn>,
    task: JoinHandle<Result<(), WalError>>,
}

impl Storing {
    /// Begins at a segment's start. What is stored there is compared with what comes.
    pub fn begin(place: Place, start: SegmentName, stored: Vec<StoredWal>) -> Result<Self, WalError> {
        let (work, waiting) = mpsc::channel(WORK_WAITING_MAX);
        let (durable_sender, durable) = watch::channel(start.start());
        let mut by_segment: BTreeMap<u64, Vec<StoredWal>> = BTreeMap::new();
        for stored in stored {
            if let Some(segment) = stored
                .object
                .segment()
                .filter(|_| stored.object.positions().is_some())
            {
                by_segment.entry(segment.number()).or_default().push(stored);
            }
        }
        let compressor = WalCompressor::new(place.repository.access().compression_level)?;
        let task = Task {
            place,
            segment: start,
            assembly: None,
            compressor: Some(compressor),
            stored: by_segment,
            puts: JoinSet::new(),
            put_bytes: 0,
            ranges: Ranges::default(),
            start: start.start(),
            durable: durable_sender,
        };
        Ok(Self {
            work: Some(work),
            durable,
            task: tokio::spawn(task.run(waiting)),
        })
    }

    /// The task's end. After it, or after it was cancelled, it may not be called again.
    ///
    /// # Errors
    /// What ended it.
    pub async fn ended(&mut self) -> Result<(), WalError> {
        match (&mut self.task).await {
            Ok(result) => result,
            Err(error) => Err(WalError::Internal(error.to_string())),
        }
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Put {
    range: Option<(Lsn, Lsn)>,
    bytes: u64,
    plain_bytes: u64,
}

struct Task {
    place: Place,
    /// The segment that fills, or the next one.
    segment: SegmentName,
    assembly: Option<Box<Assembly>>,
    /// Away while a piece is compressed.
    compressor: Option<WalCompressor>,
    stored: BTreeMap<u64, Vec<StoredWal>>,
    puts: JoinSet<Result<Put, WalError>>,
    put_bytes: u64,
    ranges: Ranges,
    start: Lsn,
    durable: watch::Sender<Lsn>,
}

impl Task {
    async fn run(mut self, mut waiting: mpsc::Receiver<Work>) -> Result<(), WalError> {
        loop {
            let has_room = self.puts.len() < PUTS_MAX && self.put_bytes < PUT_BYTES_MAX;
            tokio::select! {
                Some(put) = self.puts.join_next() => self.has_put(put)?,
                work = waiting.recv(), if has_room => match work {
                    Some(Work::Bytes(bytes)) => self.append(bytes).await?,
                    Some(Work::Flush) => self.flush(),
                    None => break,
                },
            }
        }
        self.flush();
        while let Some(put) = self.puts.join_next().await {
            self.has_put(put)?;
        }
        Ok(())
    }

    async fn append(&mut self, bytes: Bytes) -> Result<(), WalError> {
        let mut assembly = match self.assembly.take() {
            Some(assembly) => assembly,
            None => Box::new(self.open_segment().await?),
        };
        let internal = |text: &str| WalError::Internal(text.to_owned());
        let mut compressor = self
            .compressor
            .take()
            .ok_or_else(|| internal("there is no compressor"))?;
        let work = tokio::task::spawn_blocking(move || {
            let same = assembly.append(&mut compressor, &bytes);
            (assembly, compressor, same)
        });
        let (mut assembly, compressor, same) = work.await.map_err(|error| internal(&error.to_string()))?;
        self.compressor = Some(compressor);
        for (start, end) in same? {
            self.ranges.insert(start, end);
        }
        self.tell_durable();
        if let Some(object) = assembly.due() {
            self.put(object);
        }
        if assembly.is_full() {
            self.segment = self
                .segment
                .next()
                .ok_or_else(|| internal("the WAL has come to the end of all positions"))?;
        } else {
            self.assembly = Some(assembly);
        }
        Ok(())
    }

    fn flush(&mut self) {
        if let Some(object) = self.assembly.as_mut().and_then(|assembly| assembly.part()) {
            self.put(object);
        }
    }

    /// Begins the next segment, with what is known of it.
    async fn open_segment(&mut self) -> Result<Assembly, WalError> {
        let stored = self.stored.remove(&self.segment.number()).unwrap_or_default();
        let repository = &self.place.repository;
        let known = futures::stream::iter(stored)
            .map(|stored| async move {
                let (from, to) = stored.object.offsets().unwrap_or_default();
                let hash = match repository.wal_hash(&stored).await {
                    Ok(hash) => hash,
                    // A prune took it away, whose segment is there as a whole, or below what anybody needs.
                    Err(RepositoryError::Store(error)) if error.kind() == StoreErrorKind::NotFound => {
                        return Ok(None);
                    }
                    Err(error) => return Err(error.into()),
                };
                Ok::<_, WalError>(Some(Known {
                    object: stored.object,
                    from,
                    to,
                    hash,
                }))
            })
            .buffer_unordered(HEADERS_AT_ONCE)
            .try_filter_map(|known| async move { Ok(known) })
            .try_collect()
            .await?;
        let writer = Writer {
            cluster: repository.cluster().to_owned(),
            system_identifier: self.place.system_identifier,
        };
        Ok(Assembly::new(self.segment, writer, known))
    }

    fn put(&mut self, object: ToPut) {
        self.put_bytes += object.contents.compressed_bytes();
        self.puts.spawn(put(self.place.clone(), object));
    }

    fn has_put(
        &mut self,
        put: Result<Result<Put, WalError>, tokio::task::JoinError>,
    ) -> Result<(), WalError> {
        let put = put.map_err(|error| WalError::Internal(error.to_string()))??;
        self.put_bytes = self.put_bytes.saturating_sub(put.bytes);
        if let Some((start, end)) = put.range {
            self.ranges.insert(start, end);
        }
        self.place.told.change(|state| {
            state.objects += 1;
            state.plain_bytes += put.plain_bytes;
        });
        self.tell_durable();
        Ok(())
    }

    fn tell_durable(&self) {
        let durable = self.ranges.end_from(self.start);
        self.durable.send_if_modified(|told| {
            let changed = *told != durable;
            *told = durable;
            changed
        });
    }
}

async fn put(place: Place, object: ToPut) -> Result<Put, WalError> {
    let ToPut { object, contents } = object;
    let put = Put {
        range: object.positions(),
        bytes: contents.compressed_bytes(),
        plain_bytes: contents.plain_bytes(),
    };
    let mut pauses = Pauses::new(PAUSE_MAX);
    loop {
        let outcome = place
            .repository
            .put_wal(place.system_identifier, object, contents.clone())
            .await;
        let error = match outcome {
            Ok(Stored::Created | Stored::SameBytes) => {
                place.told.set_trouble(None, |state| &mut state.store_trouble);
                return Ok(put);
            }
            Ok(Stored::OtherBytes) => {
                return Err(WalError::OtherWal {
                    cluster: place.repository.cluster().to_owned(),
                    object: object.to_string(),
                });
            }
            Err(error) => error,
        };
        // A full disk, or credentials that ran out, are mended meanwhile; the server keeps the WAL as long as it can.
        if !place.persistent || !matches!(error, RepositoryError::Store(_)) {
            return Err(error.into());
        }
        let pause = pauses.next();
        tracing::warn!(%error, "cannot store WAL; trying again in {} s", pause.as_secs());
        place
            .told
            .set_trouble(Some(error.to_string()), |state| &mut state.store_trouble);
        tokio::time::sleep(pause).await;
    }
}

/// The history of a timeline, before its first WAL.
pub(crate) async fn put_history(place: &Place, timeline: Timeline, contents: Bytes) -> Result<(), WalError> {
    let stored = place
        .repository
        .put_wal_history(place.system_identifier, timeline, contents)
        .await?;
    match stored {
        Stored::Created | Stored::SameBytes => Ok(()),
        Stored::OtherBytes => Err(WalError::OtherWal {
            cluster: place.repository.cluster().to_owned(),
            object: WalFileName::History(timeline).to_string(),
        }),
    }
}
