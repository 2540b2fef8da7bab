//! Faults on purpose, between the retries and the store, so that tests see what the retries make of them.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartId, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use crate::options::StoreOptions;

/// Which requests go wrong. `one_in` is a chance: 5 means that about every fifth request is hit, 0 none.
///
/// As text (`PGKEEP_TEST_STORE_FAULTS`, in builds with the feature `testing` only):
/// `seed=7,fail=5,lose_ack=7,stall=50:2s,outage=20:60s,cut=3,truncate=3,disk=1000000`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// Two runs with the same seed and the same requests have the same faults.
    pub seed: u64,
    /// The request fails and is not performed.
    pub fail_one_in: u32,
    /// The request is performed, and fails all the same: its answer is lost.
    pub lose_ack_one_in: u32,
    /// The request waits this long before it's performed.
    pub stall: Option<(u32, Duration)>,
    /// After so many requests, every request fails for this long, once.
    pub outage: Option<(u64, Duration)>,
    /// The body of a download breaks off with an error.
    pub cut_reads_one_in: u32,
    /// The body of a download ends early, as if that were all.
    pub truncate_reads_one_in: u32,
    /// A disk of so many bytes. A put that doesn't fit any more fails, and so do all others until something is deleted: on
    /// a real disk, somebody else took the rest.
    pub disk_bytes: Option<u64>,
    /// Puts of objects of this name are performed, and fail all the same, by an error of the disk that leaves no doubt:
    /// what a directory that can't be made durable looks like.
    pub unsynced: Option<String>,
    /// Reads and listings of keys with this in them are refused, as by a policy.
    pub denied: Option<String>,
}

/// The text is not a plan of faults.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a plan of faults: write for example seed=7,fail=5,lose_ack=7,stall=50:2s,outage=20:60s"
)]
pub struct ParseFaultPlanError(String);

impl FromStr for FaultPlan {
    type Err = ParseFaultPlanError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let mut plan = Self::default();
        for item in text.split(',').filter(|item| !item.trim().is_empty()) {
            plan.set(item.trim())
                .ok_or_else(|| ParseFaultPlanError(item.trim().to_owned()))?;
        }
        Ok(plan)
    }
}

impl FaultPlan {
    fn set(&mut self, item: &str) -> Option<()> {
        let (name, value) = item.split_once('=')?;
        match name {
            "seed" => self.seed = value.parse().ok()?,
            "fail" => self.fail_one_in = value.parse().ok()?,
            "lose_ack" => self.lose_ack_one_in = value.parse().ok()?,
            "cut" => self.cut_reads_one_in = value.parse().ok()?,
            "truncate" => self.truncate_reads_one_in = value.parse().ok()?,
            "unsynced" => self.unsynced = Some(value.to_owned()),
            "denied" => self.denied = Some(value.to_owned()),
            "disk" => self.disk_bytes = Some(value.parse().ok()?),
            "stall" => {
                let (one_in, time) = value.split_once(':')?;
                self.stall = Some((one_in.parse().ok()?, parse_time(time)?));
            }
            "outage" => {
                let (after, time) = value.split_once(':')?;
                self.outage = Some((after.parse().ok()?, parse_time(time)?));
            }
            _ => return None,
        }
        Some(())
    }
}

fn parse_time(text: &str) -> Option<Duration> {
    match text.strip_suffix("ms") {
        Some(milliseconds) => milliseconds.parse().ok().map(Duration::from_millis),
        None => text.strip_suffix('s')?.parse().ok().map(Duration::from_secs),
    }
}

/// The plan for a store that's being opened.
pub(crate) fn plan_for(
    options: &StoreOptions,
) -> std::result::Result<Option<FaultPlan>, ParseFaultPlanError> {
    #[cfg(feature = "testing")]
    if options.faults.is_none()
        && let Ok(text) = std::env::var("PGKEEP_TEST_STORE_FAULTS")
    {
        tracing::debug!(plan = text, "faults on purpose, by PGKEEP_TEST_STORE_FAULTS");
        return text.parse().map(Some);
    }
    Ok(options.faults.clone())
}

/// A store some of whose requests go wrong.
pub(crate) struct FaultyStore {
    plan: FaultPlan,
    inner: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    requests: u64,
    outage_ends: Option<Instant>,
    /// What was put, in bytes, as far as it wasn't deleted again.
    on_disk: HashMap<Path, u64>,
    disk_is_full: bool,
}

/// What is to happen to one request.
struct Fate {
    fail: Option<HttpErrorKind>,
    lose_ack: bool,
    stall: Option<Duration>,
    cut: Option<f64>,
    truncate: Option<f64>,
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl FaultyStore {
    pub(crate) fn new(
        plan: FaultPlan,
        inner: Arc<dyn ObjectStore>,
        multipart: Option<Arc<dyn MultipartStore>>,
    ) -> Self {
        let random = StdRng::seed_from_u64(plan.seed);
        let state = Arc::new(Mutex::new(State {
            random,
            requests: 0,
            outage_ends: None,
            on_disk: HashMap::new(),
            disk_is_full: false,
        }));
        Self {
            plan,
            inner,
            multipart,
            state,
        }
    }

    fn decide(&self) -> Fate {
        decide(&self.plan, &self.state)
    }

    /// Stalls, fails, or lets the request be performed; then perhaps forgets to tell.
    async fn perform<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        let fate = self.decide();
        fate.before().await?;
        let result = request.await?;
        if fate.lose_ack { Err(lost()) } else { Ok(result) }
    }

    /// Takes room on the disk.
    fn take_room(&self, location: &Path, bytes: u64) -> Result<()> {
        let Some(disk_bytes) = self.plan.disk_bytes else {
            return Ok(());
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.disk_is_full |= state.on_disk.values().sum::<u64>().saturating_add(bytes) > disk_bytes;
        if state.disk_is_full {
            return Err(object_store::Error::Generic {
                store: "fault",
                source: Box::new(std::io::Error::from(std::io::ErrorKind::StorageFull)),
            });
        }
        state.on_disk.insert(location.clone(), bytes);
        Ok(())
    }

    fn may_read(&self, location: &Path) -> Result<()> {
        match &self.plan.denied {
            Some(part) if location.as_ref().contains(part) => Err(object_store::Error::PermissionDenied {
                path: location.to_string(),
                source: "denied on purpose".into(),
            }),
            _ => Ok(()),
        }
    }

    fn multipart(&self) -> Result<&Arc<dyn MultipartStore>> {
        self.multipart
            .as_ref()
            .ok_or_else(|| object_store::Error::NotImplemented {
                operation: "multipart uploads".to_owned(),
                implementer: self.to_string(),
            })
    }
}

fn decide(plan: &FaultPlan, state: &Mutex<State>) -> Fate {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.requests += 1;
    if let Some((after, time)) = plan.outage
        && state.requests > after
        && state.outage_ends.is_none()
    {
        state.outage_ends = Some(Instant::now() + time);
    }
    let out = state.outage_ends.is_some_and(|end| Instant::now() < end);
    let random = &mut state.random;
    let mut one_in = |n: u32| n > 0 && random.random_ratio(1, n);
    // Half of the failures look like a request that may have arrived.
    let fail = one_in(plan.fail_one_in).then(|| match one_in(2) {
        true => HttpErrorKind::Interrupted,
        false => HttpErrorKind::Connect,
    });
    let fail = if out { Some(HttpErrorKind::Connect) } else { fail };
    let lose_ack = one_in(plan.lose_ack_one_in);
    let stall = plan.stall.filter(|(n, _)| one_in(*n)).map(|(_, time)| time);
    let (cut, truncate) = (one_in(plan.cut_reads_one_in), one_in(plan.truncate_reads_one_in));
    let share: f64 = random.random();
    Fate {
        fail,
        lose_ack,
        stall,
        cut: cut.then_some(share),
        truncate: truncate.then_some(share),
    }
}

impl Fate {
    async fn before(&self) -> Result<()> {
        if let Some(time) = self.stall {
            tokio::time::sleep(time).await;
        }
        match self.fail {
            Some(kind) => Err(transport(kind, "refused on purpose")),
            None => Ok(()),
        }
    }
}

fn lost() -> object_store::Error {
    transport(HttpErrorKind::Interrupted, "answer lost on purpose")
}

fn transport(kind: HttpErrorKind, text: &str) -> object_store::Error {
    let source = HttpError::new(kind, std::io::Error::other(text.to_owned()));
    object_store::Error::Generic {
        store: "fault",
        source: Box::new(source),
    }
}

/// The first part of the body, by share of its bytes, then an error or the end.
fn shortened(result: GetResult, share: f64, error: bool) -> GetResult {
    let GetResult {
        range,
        meta,
        attributes,
        extensions,
        ..
    } = &result;
    let (range, meta, attributes, extensions) = (
        range.clone(),
        meta.clone(),
        attributes.clone(),
        extensions.clone(),
    );
    // Never the whole body. The precision of a test's random share doesn't matter.
    let length = range.end - range.start;
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    let mut left = ((length as f64) * share) as u64;
    left = left.min(length.saturating_sub(1));
    let body = result.into_stream().map_ok(move |bytes| {
        let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        left -= taken as u64;
        bytes.slice(..taken)
    });
    let end =
        futures::stream::iter(error.then(|| Err(transport(HttpErrorKind::Interrupted, "cut on purpose"))));
    let body = body
        .try_take_while(|bytes| futures::future::ready(Ok(!bytes.is_empty())))
        .chain(end);
    GetResult {
        payload: GetResultPayload::Stream(body.boxed()),
        range,
        meta,
        attributes,
        extensions,
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.take_room(location, payload.content_length() as u64)?;
        let put = self
            .perform(self.inner.put_opts(location, payload, options))
            .await?;
        match &self.plan.unsynced {
            Some(name) if location.filename() == Some(name) => Err(object_store::Error::Generic {
                store: "fault",
                source: Box::new(std::io::Error::other("not durable on purpose")),
            }),
            _ => Ok(put),
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.perform(self.inner.put_multipart_opts(location, options))
            .await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.may_read(location)?;
        let fate = self.decide();
        fate.before().await?;
        let head = options.head;
        let result = self.inner.get_opts(location, options).await?;
        Ok(match (fate.cut, fate.truncate) {
            _ if head => result,
            (Some(share), _) => shortened(result, share, true),
            (None, Some(share)) => shortened(result, share, false),
            (None, None) => result,
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        // One request, as a bulk delete is.
        let fate = self.decide();
        let inner = Arc::clone(&self.inner);
        let state = Arc::clone(&self.state);
        let locations = locations.inspect_ok(move |location| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.on_disk.remove(location).is_some() {
                state.disk_is_full = false;
            }
        });
        let locations = locations.boxed();
        let deleted = async move {
            fate.before().await?;
            let results: Vec<_> = inner.delete_stream(locations).collect().await;
            if fate.lose_ack {
                Err(lost())
            } else {
                Ok(futures::stream::iter(results))
            }
        };
        futures::stream::once(deleted).try_flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match prefix.map_or(Ok(()), |prefix| self.may_read(prefix)) {
            Ok(()) => listing(self.decide(), self.inner.list(prefix)),
            Err(error) => futures::stream::once(futures::future::ready(Err(error))).boxed(),
        }
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        listing(self.decide(), self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.perform(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.perform(self.inner.copy_opts(from, to, options)).await
    }
}

/// A listing fails before its first object, or, where an answer is lost, after its third.
fn listing(
    fate: Fate,
    inner: BoxStream<'static, Result<ObjectMeta>>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let start = async move {
        fate.before().await?;
        let cut = futures::stream::iter(fate.lose_ack.then(|| Err(lost())));
        let first = if fate.lose_ack { 3 } else { usize::MAX };
        Ok::<_, object_store::Error>(inner.take(first).chain(cut))
    };
    futures::stream::once(start).try_flatten().boxed()
}

#[async_trait]
impl MultipartStore for FaultyStore {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.perform(self.multipart()?.create_multipart(path)).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        index: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        self.perform(self.multipart()?.put_part(path, id, index, data))
            .await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        self.perform(self.multipart()?.complete_multipart(path, id, parts))
            .await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.perform(self.multipart()?.abort_multipart(path, id)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_from_text() {
        let plan: FaultPlan =
            "seed=7,fail=5,lose_ack=7,stall=50:2s,outage=20:60s,cut=2,truncate=3,disk=1000,unsynced=manifest,denied=/pin/"
                .parse()
                .unwrap();
        let expected = FaultPlan {
            seed: 7,
            fail_one_in: 5,
            lose_ack_one_in: 7,
            stall: Some((50, Duration::from_secs(2))),
            outage: Some((20, Duration::from_secs(60))),
            cut_reads_one_in: 2,
            truncate_reads_one_in: 3,
            disk_bytes: Some(1000),
            unsynced: Some("manifest".to_owned()),
            denied: Some("/pin/".to_owned()),
        };
        assert_eq!(plan, expected);
        for bad in ["fail", "fail=x", "stall=5", "stall=5:2", "disk=x", "oops=1"] {
            assert!(bad.parse::<FaultPlan>().is_err(), "{bad}");
        }
    }
}
