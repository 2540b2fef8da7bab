use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResultPayload};

use crate::counts::Request;
use crate::error::{Cause, StoreError, StoreErrorKind};
use crate::local::blocking;
use crate::retry::RetryBudget;
use crate::store::Store;

/// Pieces in which files are read; some of them wait between the stages that open an object.
const FILE_PIECE_BYTES: u64 = 256 * 1024;
/// What is reserved at once for an object of announced size; more grows as it arrives.
const RESERVE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The body of an object, piece by piece. What comes out is exactly as long as the store promised, or an error.
pub struct ObjectReader {
    store: Store,
    location: Path,
    doing: String,
    /// What is still to come.
    range: Range<u64>,
    length: u64,
    /// Size of the whole object, and its etag: a body is only taken up where they are still the same.
    size: u64,
    etag: Option<String>,
    body: Option<Body>,
    budget: RetryBudget,
}

enum Body {
    File(Arc<File>),
    Stream(BoxStream<'static, object_store::Result<Bytes>>),
}

struct Answer {
    size: u64,
    etag: Option<String>,
    range: Range<u64>,
    body: Body,
}

impl std::fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectReader")
            .field("location", &self.location)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl ObjectReader {
    pub(crate) async fn open(
        store: Store,
        key: &str,
        wanted: Option<Range<u64>>,
    ) -> Result<Self, StoreError> {
        let location = store.locate(key)?;
        let doing = format!("read object '{key}'");
        let answer = store
            .retry(&doing, || request(&store, &location, wanted.clone(), None))
            .await?;
        if let Some(wanted) = &wanted
            && answer.range != *wanted
        {
            let why = format!(
                "it has only {} bytes, {}..{} were asked for",
                answer.size, wanted.start, wanted.end
            );
            return Err(
                StoreError::new(StoreErrorKind::ShortBody, doing, store.url(), why)
                    .with_attempts(1, Default::default()),
            );
        }
        let budget = RetryBudget::new(store.inner.options.retry);
        let length = answer.range.end - answer.range.start;
        Ok(Self {
            store,
            location,
            doing,
            range: answer.range,
            length,
            size: answer.size,
            etag: answer.etag,
            body: Some(answer.body),
            budget,
        })
    }

    /// Bytes of the whole body, also after some were read.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// True for an object without bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The next bytes, none at the end.
    ///
    /// # Errors
    /// The connection was cut or the body ended early, and taking it up failed until the retry budget was spent; or the
    /// object isn't the same any more.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        while self.range.start < self.range.end {
            match self.try_next().await {
                Ok(bytes) => {
                    self.range.start += bytes.len() as u64;
                    self.store.inner.counters.received(bytes.len() as u64);
                    self.budget.progressed();
                    return Ok(Some(bytes));
                }
                Err(cause) => {
                    self.body = None;
                    self.store.pause(&mut self.budget, cause, &self.doing).await?;
                }
            }
        }
        self.body = None;
        Ok(None)
    }

    /// The whole rest at once.
    pub(crate) async fn collect(mut self) -> Result<Bytes, StoreError> {
        let Some(first) = self.next().await? else {
            return Ok(Bytes::new());
        };
        if self.range.is_empty() {
            return Ok(first);
        }
        let reserve = usize::try_from(self.length.min(RESERVE_BYTES_MAX)).unwrap_or(0);
        let mut all = BytesMut::with_capacity(reserve);
        all.extend_from_slice(&first);
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    async fn try_next(&mut self) -> Result<Bytes, Cause> {
        let left = self.range.end - self.range.start;
        if self.body.is_none() {
            let answer = request(
                &self.store,
                &self.location,
                Some(self.range.clone()),
                self.etag.clone(),
            )
            .await?;
            if answer.size != self.size || answer.range != self.range {
                return Err(
                    Cause::new(StoreErrorKind::ShortBody, "the object changed while it was read").final_(),
                );
            }
            self.body = Some(answer.body);
        }
        let timeout = self.store.inner.options.request_timeout;
        let next = match &mut self.body {
            Some(Body::Stream(stream)) => {
                let next = async { stream.next().await.transpose() };
                self.store.attempt(Request::Get, timeout, next).await?
            }
            Some(Body::File(file)) => {
                let (file, start) = (Arc::clone(file), self.range.start);
                let read = blocking(move || read_piece(&file, start, left.min(FILE_PIECE_BYTES)));
                let read = tokio::time::timeout(timeout, read)
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                Some(read.map_err(|error| crate::classify::by_io(&error))?)
            }
            None => None,
        };
        match next {
            // An empty piece means nothing; ask again on the same connection.
            Some(bytes) if bytes.is_empty() && matches!(self.body, Some(Body::Stream(_))) => Ok(bytes),
            Some(bytes) if bytes.len() as u64 > left => Err(Cause::new(
                StoreErrorKind::ShortBody,
                "the store sent more bytes than it promised",
            )
            .final_()),
            Some(bytes) if !bytes.is_empty() => Ok(bytes),
            _ => Err(Cause::new(
                StoreErrorKind::ShortBody,
                format!("the body ended {left} bytes early"),
            )),
        }
    }
}

async fn request(
    store: &Store,
    location: &Path,
    range: Option<Range<u64>>,
    etag: Option<String>,
) -> Result<Answer, Cause> {
    store.inner.counters.request(Request::Get);
    let options = GetOptions {
        range: range.map(GetRange::Bounded),
        if_match: etag,
        ..GetOptions::default()
    };
    let answer = store.inner.opened.objects.get_opts(location, options);
    let result = store
        .attempt(Request::Get, store.inner.options.request_timeout, answer)
        .await?;
    let (size, etag, range) = (result.meta.size, result.meta.e_tag.clone(), result.range.clone());
    let body = match result.payload {
        GetResultPayload::File(file, _) => Body::File(Arc::new(file)),
        GetResultPayload::Stream(stream) => Body::Stream(stream),
    };
    Ok(Answer {
        size,
        etag,
        range,
        body,
    })
}

fn read_piece(file: &File, start: u64, length: u64) -> io::Result<Bytes> {
    let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, start + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer.into())
}
