use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::classify::{by_io, classify};
use crate::counts::{Counters, Request, RequestCounts};
use crate::error::{Cause, StoreError, StoreErrorKind};
use crate::http::with_status;
use crate::local::blocking;
use crate::open::Opened;
use crate::options::StoreOptions;
use crate::reader::ObjectReader;
use crate::retry::RetryBudget;
use crate::store_url::StoreUrl;
use crate::throttle::Throttle;

/// A place for objects, by URL. Cheap to clone; clones share connections, counts and the bandwidth limit.
///
/// Objects are written once and never replaced in place. Names are relative to the URL, their parts separated by `/`: ASCII
/// letters, digits and `-_.+=,@:`.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) url: String,
    pub(crate) opened: Opened,
    pub(crate) options: StoreOptions,
    pub(crate) counters: Counters,
    upload_limit: Option<Throttle>,
}

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum PutOutcome {
    /// The object is there, durable, with these bytes.
    Created,
    /// Somebody else's object is there under that name; it was left as it is.
    AlreadyExists,
}

/// An object, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Name, relative to the store's URL.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// By the store's clock.
    pub modified_at: Timestamp,
    /// Changes when the bytes do, where the store has such a thing.
    pub etag: Option<String>,
}

/// S3's limit; with the repository's prefix.
const KEY_LENGTH_MAX: usize = 1024;

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("url", &self.inner.url)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `url` (see [`StoreUrl`] for its forms). Nothing is read or written; credentials may be
    /// fetched, and the region of an S3 bucket asked for.
    ///
    /// # Errors
    /// The URL or an option is wrong, or a named profile has no usable credentials.
    pub async fn open(url: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        let url = StoreUrl::parse(url).map_err(|error| {
            StoreError::new(
                StoreErrorKind::InvalidUrl,
                "open the repository",
                "the given URL",
                error.to_string(),
            )
        })?;
        let opened = crate::open::open(&url, options).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                url: url.to_string(),
                opened,
                options: options.clone(),
                counters: Counters::default(),
                upload_limit: options.upload_bytes_per_second_max.map(Throttle::new),
            }),
        })
    }

    /// The store's URL, without secrets.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// What was asked of the store since it was opened.
    pub fn requests(&self) -> RequestCounts {
        self.inner.counters.snapshot()
    }

    /// Writes an object that must not exist yet: whole or not at all, durable on return.
    ///
    /// An attempt whose answer is lost may have been performed. When the next one finds the name taken, what is there
    /// is compared with `body`: equal bytes count as created by us.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unconfirmed`] where the name is taken after a lost answer, and reading back isn't permitted.
    /// After any other error, [`StoreError::may_have_happened`] tells whether the object may be there all the same.
    pub async fn put_new(&self, key: &str, body: Bytes) -> Result<PutOutcome, StoreError> {
        self.put_new_parts(key, vec![body]).await
    }

    /// [`Store::put_new`] of a body in several parts, which are sent one after another without being joined first.
    ///
    /// # Errors
    /// As [`Store::put_new`].
    pub async fn put_new_parts(&self, key: &str, body: Vec<Bytes>) -> Result<PutOutcome, StoreError> {
        let location = self.locate(key)?;
        let doing = format!("write object '{key}'");
        let payload: PutPayload = body.iter().filter(|bytes| !bytes.is_empty()).cloned().collect();
        let mut budget = RetryBudget::new(self.inner.options.retry);
        let mut uncertain = false;
        loop {
            let cause = match self.try_put(&location, payload.clone()).await {
                Ok(()) => return Ok(PutOutcome::Created),
                Err(cause) if cause.kind == StoreErrorKind::AlreadyExists => {
                    if !uncertain {
                        return Ok(PutOutcome::AlreadyExists);
                    }
                    match self.compare(key, &body).await {
                        Ok(Some(true)) => {
                            self.make_durable(&location, &doing).await?;
                            return Ok(PutOutcome::Created);
                        }
                        Ok(Some(false)) => return Ok(PutOutcome::AlreadyExists),
                        Ok(None) => Cause::new(StoreErrorKind::Conflict, "the object came and went"),
                        Err(error) => return Err(self.unconfirmed(&doing, &error)),
                    }
                }
                Err(cause) => cause,
            };
            uncertain |= cause.maybe_performed;
            self.pause(&mut budget, cause, &doing)
                .await
                .map_err(|error| error.with_may_have_happened(uncertain))?;
        }
    }

    /// Of an attempt whose answer was lost it isn't known how far it came: on a disk, perhaps not to the end.
    async fn make_durable(&self, location: &Path, doing: &str) -> Result<(), StoreError> {
        let Some(disk) = self.inner.opened.local.clone() else {
            return Ok(());
        };
        let location = location.clone();
        let synced = blocking(move || disk.make_durable(&location)).await;
        synced.map_err(|error| StoreError::from_cause(by_io(&error), doing, self.url()))
    }

    /// Makes sure that an object which is there stays there. On a disk, one that a killed process had just written may not
    /// be durable yet; elsewhere what is there is.
    ///
    /// # Errors
    /// The disk can't say that it stays.
    pub async fn ensure_durable(&self, key: &str) -> Result<(), StoreError> {
        let location = self.locate(key)?;
        self.make_durable(&location, &format!("make object '{key}' durable"))
            .await
    }

    async fn try_put(&self, location: &Path, payload: PutPayload) -> Result<(), Cause> {
        let bytes = payload.content_length() as u64;
        self.limit_upload(bytes).await;
        self.inner.counters.request(Request::Put);
        self.inner.counters.sent(bytes);
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        let deadline = self.inner.options.put_deadline(bytes);
        self.attempt(
            Request::Put,
            deadline,
            self.inner.opened.objects.put_opts(location, payload, options),
        )
        .await
        .map(drop)
    }

    /// Whether the object holds these bytes; none if it isn't there.
    async fn compare(&self, key: &str, body: &[Bytes]) -> Result<Option<bool>, StoreError> {
        let length: u64 = body.iter().map(|bytes| bytes.len() as u64).sum();
        let mut reader = match self.get_stream(key).await {
            Ok(reader) => reader,
            Err(error) if error.kind() == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if reader.len() != length {
            return Ok(Some(false));
        }
        let mut expected = body.iter().flat_map(|bytes| bytes.iter());
        while let Some(found) = reader.next().await? {
            if !found.iter().all(|byte| expected.next() == Some(byte)) {
                return Ok(Some(false));
            }
        }
        Ok(Some(expected.next().is_none()))
    }

    fn unconfirmed(&self, doing: &str, error: &StoreError) -> StoreError {
        let why = format!(
            "an answer was lost; the object exists now, but reading it back to see whose it is failed: {error}"
        );
        StoreError::new(StoreErrorKind::Unconfirmed, doing, self.url(), why).with_may_have_happened(true)
    }

    /// Reads an object whole.
    ///
    /// # Errors
    /// [`StoreErrorKind::TooLarge`] before anything is read, if it's larger than `bytes_max`.
    pub async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
        let reader = self.get_stream(key).await?;
        if reader.len() > bytes_max {
            let why = format!(
                "it has {} bytes, and at most {bytes_max} are expected",
                reader.len()
            );
            let doing = format!("read object '{key}'");
            return Err(StoreError::new(StoreErrorKind::TooLarge, doing, self.url(), why));
        }
        reader.collect().await
    }

    /// Reads the bytes `range` of an object.
    ///
    /// # Errors
    /// [`StoreErrorKind::ShortBody`] if the object ends before the range does.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        ObjectReader::open(self.clone(), key, Some(range))
            .await?
            .collect()
            .await
    }

    /// Reads an object piece by piece. A connection that is cut is taken up where it broke off.
    ///
    /// # Errors
    /// The object isn't there or may not be read.
    pub async fn get_stream(&self, key: &str) -> Result<ObjectReader, StoreError> {
        ObjectReader::open(self.clone(), key, None).await
    }

    /// Size and time of an object, none if it isn't there.
    ///
    /// # Errors
    /// The store can't be asked.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let location = self.locate(key)?;
        let found = self
            .retry(&format!("look at object '{key}'"), || {
                self.inner.counters.request(Request::Head);
                self.attempt(
                    Request::Head,
                    self.inner.options.request_timeout,
                    self.inner.opened.objects.head(&location),
                )
            })
            .await;
        match found {
            Ok(meta) => Ok(Some(self.info(key.to_owned(), &meta))),
            Err(error) if error.kind() == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The object's place in the whole store.
    pub(crate) fn locate(&self, key: &str) -> Result<Path, StoreError> {
        let refuse = |why: &str| {
            let key: String = key.chars().take(100).filter(|c| !c.is_control()).collect();
            Err(StoreError::new(
                StoreErrorKind::InvalidKey,
                format!("use the object name '{key}'"),
                self.url(),
                why,
            ))
        };
        if key.is_empty() {
            return refuse("it's empty");
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.+=,@:/".contains(c);
        if !key.chars().all(legal) {
            return refuse("only ASCII letters, digits and -_.+=,@: are kept as they are by every store");
        }
        if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return refuse("a part between its slashes is empty, '.' or '..'");
        }
        let prefix = self.inner.opened.prefix.as_ref();
        let full = if prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{prefix}/{key}")
        };
        if full.len() > KEY_LENGTH_MAX {
            return refuse("with the repository's prefix it's longer than 1024 bytes");
        }
        Path::parse(full).or_else(|error| refuse(&error.to_string()))
    }

    /// The place of a directory; of the repository itself by an empty name.
    pub(crate) fn locate_directory(&self, prefix: &str) -> Result<Path, StoreError> {
        match prefix.strip_suffix('/').unwrap_or(prefix) {
            "" => Ok(self.inner.opened.prefix.clone()),
            directory => self.locate(directory),
        }
    }

    /// The object's name relative to the repository, none if it's outside.
    pub(crate) fn key(&self, location: &Path) -> Option<String> {
        let prefix = self.inner.opened.prefix.as_ref();
        let text = location.as_ref();
        match prefix {
            "" => Some(text.to_owned()),
            _ => text.strip_prefix(prefix)?.strip_prefix('/').map(str::to_owned),
        }
    }

    pub(crate) fn info(&self, key: String, meta: &ObjectMeta) -> ObjectInfo {
        let modified = meta.last_modified;
        let nanosecond = i32::try_from(modified.timestamp_subsec_nanos()).unwrap_or(0);
        ObjectInfo {
            key,
            size: meta.size,
            modified_at: Timestamp::new(modified.timestamp(), nanosecond).unwrap_or(Timestamp::UNIX_EPOCH),
            etag: meta.e_tag.clone(),
        }
    }

    /// Waits for the bandwidth limit's leave to send.
    pub(crate) async fn limit_upload(&self, bytes: u64) {
        if let Some(limit) = &self.inner.upload_limit {
            limit.acquire(bytes).await;
        }
    }

    /// One attempt of a request with a deadline; a failure comes out classified.
    pub(crate) async fn attempt<T>(
        &self,
        request: Request,
        deadline: Duration,
        answer: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Cause> {
        let (result, status) = with_status(tokio::time::timeout(deadline, answer)).await;
        let result = match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(classify(&error, status, self.inner.opened.backend)),
            Err(_) => Err(Cause::new(
                StoreErrorKind::Timeout,
                format!("no answer within {} s", deadline.as_secs()),
            )),
        };
        if result.is_ok() || status != 0 {
            self.inner.counters.answered();
        }
        result.map_err(|cause| Cause {
            request: Some(request),
            ..cause
        })
    }

    /// Attempts until one succeeds, fails for good, or the budget is spent. Only for what may be done twice.
    pub(crate) async fn retry<T, F: Future<Output = Result<T, Cause>>>(
        &self,
        doing: &str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError> {
        let mut budget = RetryBudget::new(self.inner.options.retry);
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(cause) => self.pause(&mut budget, cause, doing).await?,
            }
        }
    }

    /// Waits before the next attempt, or gives the error if there is to be none.
    pub(crate) async fn pause(
        &self,
        budget: &mut RetryBudget,
        cause: Cause,
        doing: &str,
    ) -> Result<(), StoreError> {
        let contacted = self.inner.counters.contacted();
        let pause = match cause.retryable {
            true => budget.after_failure(contacted),
            false => None,
        };
        let Some(pause) = pause else {
            let attempts = budget.failures() + u32::from(!cause.retryable);
            return Err(
                StoreError::from_cause(cause, doing, self.url()).with_attempts(attempts, budget.elapsed())
            );
        };
        let (attempt, pause_ms) = (budget.failures(), pause.as_millis());
        let left = budget.left(contacted).as_secs();
        // The first failures are everyday life of an object store, but not of one that never answered.
        if contacted && attempt < 3 {
            tracing::debug!(
                url = self.url(),
                attempt,
                pause_ms,
                "could not {doing}: {}; trying again",
                cause.why
            );
        } else {
            // Whoever prints it tells it now and then, not for each request.
            tracing::warn!(
                attempt,
                pause_ms,
                "could not {doing} in {}: {}; trying again for up to {left} s, Ctrl-C ends it",
                self.url(),
                cause.why
            );
        }
        self.inner.counters.retried();
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultPlan;

    /// Its answer was lost, the object is there, and the disk can't say that it stays.
    #[tokio::test(start_paused = true)]
    async fn a_put_that_was_found_again_is_made_durable_before_it_counts() {
        for (sound, seed) in [(true, 0), (false, 1)] {
            let folder = tempfile::tempdir().unwrap();
            let options = StoreOptions {
                faults: Some(FaultPlan {
                    seed,
                    lose_ack_one_in: 1,
                    ..FaultPlan::default()
                }),
                ..StoreOptions::default()
            };
            let url = format!("file://{}", folder.path().display());
            let mut store = Store::open(&url, &options).await.unwrap();
            if !sound {
                let inner = Arc::get_mut(&mut store.inner).unwrap();
                inner.opened.local = inner.opened.local.take().map(|disk| disk.failing());
            }
            let put = store.put_new("a", Bytes::from_static(b"x")).await;
            match put {
                Ok(outcome) => assert!(sound && outcome == PutOutcome::Created),
                Err(error) => assert!(!sound && !error.may_have_happened(), "{error}"),
            }
        }
    }
}
