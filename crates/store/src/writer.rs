use std::io;
use std::sync::Arc;

use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, PutPayload};
use tokio::task::JoinHandle;

use crate::classify::by_io;
use crate::counts::Request;
use crate::error::{StoreError, StoreErrorKind};
use crate::local::{Staged, blocking};
use crate::store::{PutOutcome, Store};

/// Size of each part but the last. All are equal, because some stores (Cloudflare R2) insist on it.
const PART_BYTES: usize = 32 * 1024 * 1024;
/// The limit of S3 and Google.
const PARTS_MAX: usize = 10_000;

/// An object that's written piece by piece, its size unknown: for single files that a user asked for. Objects of a
/// repository are better written by [`Store::put_new`].
///
/// The name appears when [`ObjectWriter::finish`] returns, never before. It must be new; on object stores that's checked
/// before and after an upload of several parts, not atomically with it. Memory: two parts of 32 MiB.
///
/// Dropped without `finish` or [`ObjectWriter::abort`], it leaves no file, but on object stores parts that a lifecycle
/// rule has to remove (`AbortIncompleteMultipartUpload`).
pub struct ObjectWriter {
    store: Store,
    key: String,
    location: Path,
    doing: String,
    state: State,
    written: u64,
}

enum State {
    /// None after a failure.
    File(Option<Staged>),
    /// Less than a part so far.
    Small(Pieces),
    Parts(Upload),
}

/// What was written and not sent.
#[derive(Default)]
struct Pieces {
    pieces: Vec<Bytes>,
    length: usize,
}

struct Upload {
    multipart: Arc<dyn MultipartStore>,
    id: MultipartId,
    pieces: Pieces,
    parts: Vec<PartId>,
    /// The part on its way while the next one fills.
    sending: Option<JoinHandle<Result<PartId, StoreError>>>,
    started: usize,
}

impl std::fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectWriter")
            .field("key", &self.key)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Begins an object of unknown size.
    ///
    /// # Errors
    /// [`StoreErrorKind::AlreadyExists`] if the name is taken, or the store can't be written to.
    pub async fn put_stream(&self, key: &str) -> Result<ObjectWriter, StoreError> {
        let location = self.locate(key)?;
        let doing = format!("write object '{key}'");
        if self.head(key).await?.is_some() {
            return Err(self.taken(&doing));
        }
        let state = match self.inner.opened.local.clone() {
            None => State::Small(Pieces::default()),
            Some(disk) => {
                let location = location.clone();
                let staged = blocking(move || disk.stage(&location)).await;
                State::File(Some(staged.map_err(|error| {
                    StoreError::from_cause(by_io(&error), &doing, self.url())
                })?))
            }
        };
        Ok(ObjectWriter {
            store: self.clone(),
            key: key.to_owned(),
            location,
            doing,
            state,
            written: 0,
        })
    }

    fn taken(&self, doing: &str) -> StoreError {
        StoreError::new(
            StoreErrorKind::AlreadyExists,
            doing,
            self.url(),
            "it exists already, and nothing is overwritten",
        )
    }
}

impl ObjectWriter {
    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Appends `bytes`. It waits while the part before is still on its way.
    ///
    /// # Errors
    /// The disk is full, or a part could not be sent within the retry budget; the object can't be finished then.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.written += bytes.len() as u64;
        if let State::File(staged) = &mut self.state {
            let Some(file) = staged.take() else {
                return Err(self.spoilt());
            };
            self.store.limit_upload(bytes.len() as u64).await;
            self.store.inner.counters.sent(bytes.len() as u64);
            let written = blocking(move || append(file, &bytes)).await;
            *staged = Some(
                written
                    .map_err(|error| StoreError::from_cause(by_io(&error), &self.doing, self.store.url()))?,
            );
            return Ok(());
        }
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let pieces = match &mut self.state {
                State::Small(pieces) => pieces,
                State::Parts(upload) => &mut upload.pieces,
                State::File(_) => return Err(self.spoilt()),
            };
            let piece = bytes.split_to(bytes.len().min(PART_BYTES - pieces.length));
            pieces.length += piece.len();
            pieces.pieces.push(piece);
            if pieces.length == PART_BYTES {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    async fn send_part(&mut self) -> Result<(), StoreError> {
        if let State::Small(pieces) = &mut self.state {
            let pieces = std::mem::take(pieces);
            let upload = self.begin(pieces).await?;
            self.state = State::Parts(upload);
        }
        let State::Parts(upload) = &mut self.state else {
            return Err(self.spoilt());
        };
        upload.wait(&self.doing, self.store.url()).await?;
        if upload.started == PARTS_MAX {
            let why = format!("it has more than {PARTS_MAX} parts of {PART_BYTES} bytes");
            return Err(StoreError::new(
                StoreErrorKind::TooLarge,
                &self.doing,
                self.store.url(),
                why,
            ));
        }
        let pieces = std::mem::take(&mut upload.pieces);
        let (store, location, id) = (self.store.clone(), self.location.clone(), upload.id.clone());
        let (multipart, index, doing) = (Arc::clone(&upload.multipart), upload.started, self.doing.clone());
        upload.started += 1;
        upload.sending = Some(tokio::spawn(async move {
            let payload: PutPayload = pieces.pieces.into_iter().collect();
            let bytes = payload.content_length() as u64;
            let deadline = store.inner.options.put_deadline(bytes);
            let attempt = async || {
                store.limit_upload(bytes).await;
                store.inner.counters.request(Request::Put);
                store.inner.counters.sent(bytes);
                store
                    .attempt(
                        Request::Put,
                        deadline,
                        multipart.put_part(&location, &id, index, payload.clone()),
                    )
                    .await
            };
            store.retry(&doing, attempt).await
        }));
        Ok(())
    }

    async fn begin(&self, pieces: Pieces) -> Result<Upload, StoreError> {
        let store = &self.store;
        let Some(multipart) = store.inner.opened.multipart.clone() else {
            return Err(self.spoilt());
        };
        // An upload that was begun by a lost attempt is debris, and harmless.
        let id = store
            .retry(&self.doing, || {
                store.inner.counters.request(Request::Put);
                store.attempt(
                    Request::Put,
                    store.inner.options.request_timeout,
                    multipart.create_multipart(&self.location),
                )
            })
            .await?;
        Ok(Upload {
            multipart,
            id,
            pieces,
            parts: Vec::new(),
            sending: None,
            started: 0,
        })
    }

    /// Makes the object appear, durable, under its name. Returns its size in bytes.
    ///
    /// # Errors
    /// [`StoreErrorKind::AlreadyExists`] if the name was taken meanwhile; whatever kept a part from being sent.
    pub async fn finish(mut self) -> Result<u64, StoreError> {
        let (doing, store) = (self.doing.clone(), self.store.clone());
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => store.taken(&doing),
            _ => StoreError::from_cause(by_io(&error), &doing, store.url()),
        };
        match std::mem::replace(&mut self.state, State::File(None)) {
            State::File(None) => return Err(self.spoilt()),
            State::File(Some(staged)) => {
                store.inner.counters.request(Request::Put);
                blocking(move || staged.publish()).await.map_err(failed)?;
            }
            State::Small(pieces) => match store.put_new_parts(&self.key, pieces.pieces).await? {
                PutOutcome::Created => {}
                PutOutcome::AlreadyExists => return Err(store.taken(&doing)),
            },
            State::Parts(upload) => {
                self.state = State::Parts(upload);
                self.complete().await?;
            }
        }
        Ok(self.written)
    }

    async fn complete(&mut self) -> Result<(), StoreError> {
        if matches!(&self.state, State::Parts(upload) if upload.pieces.length > 0) {
            self.send_part().await?;
        }
        let (store, doing) = (self.store.clone(), self.doing.clone());
        let State::Parts(upload) = &mut self.state else {
            return Err(self.spoilt());
        };
        upload.wait(&doing, store.url()).await?;
        if store.head(&self.key).await?.is_some() {
            upload.discard(&store, &self.location).await;
            return Err(store.taken(&doing));
        }
        let deadline = store.inner.options.request_timeout.saturating_mul(5);
        let upload = &*upload;
        let completed = store
            .retry(&doing, || {
                store.inner.counters.request(Request::Put);
                let parts = upload.parts.clone();
                store.attempt(
                    Request::Put,
                    deadline,
                    upload
                        .multipart
                        .complete_multipart(&self.location, &upload.id, parts),
                )
            })
            .await;
        let Err(error) = completed else { return Ok(()) };
        // Completed by an attempt whose answer was lost, the upload isn't there any more, but the object is.
        match store.head(&self.key).await {
            Ok(Some(object)) if object.size == self.written => Ok(()),
            _ => Err(error.with_may_have_happened(true)),
        }
    }

    /// Gives up: nothing stays. (What a store refuses to remove, its lifecycle rule has to.)
    pub async fn abort(self) {
        if let State::Parts(mut upload) = self.state {
            upload.discard(&self.store, &self.location).await;
        }
    }

    fn spoilt(&self) -> StoreError {
        let why = "an earlier write to it failed";
        StoreError::new(StoreErrorKind::Other, &self.doing, self.store.url(), why)
    }
}

impl Upload {
    async fn wait(&mut self, doing: &str, url: &str) -> Result<(), StoreError> {
        let Some(sending) = self.sending.take() else {
            return Ok(());
        };
        let part = sending.await.unwrap_or_else(|error| {
            Err(StoreError::new(
                StoreErrorKind::Other,
                doing,
                url,
                error.to_string(),
            ))
        })?;
        self.parts.push(part);
        Ok(())
    }

    async fn discard(&mut self, store: &Store, location: &Path) {
        if let Some(sending) = self.sending.take() {
            sending.abort();
        }
        store.inner.counters.request(Request::Delete);
        let aborted = self.multipart.abort_multipart(location, &self.id);
        if let Err(cause) = store
            .attempt(Request::Delete, store.inner.options.request_timeout, aborted)
            .await
        {
            tracing::debug!(
                url = store.url(),
                "an unfinished upload stays behind: {}",
                cause.why
            );
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(sending) = self.sending.take() {
            sending.abort();
        }
    }
}

fn append(mut file: Staged, bytes: &[u8]) -> io::Result<Staged> {
    file.write(bytes)?;
    Ok(file)
}
