//! The HTTP client below `object_store`, which notes what the answers say besides their bodies.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use jiff::Timestamp;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

tokio::task_local! {
    /// Status of the last answer within one attempt: `object_store` keeps it only in the text of its errors.
    static LAST_STATUS: Cell<u16>;
}

/// Runs one attempt, and says which status the last answer in it had (0: there was none).
pub(crate) async fn with_status<F: Future>(attempt: F) -> (F::Output, u16) {
    LAST_STATUS
        .scope(Cell::new(0), async {
            let output = attempt.await;
            (output, LAST_STATUS.with(Cell::get))
        })
        .await
}

/// What the store's clock shows, by the `Date` of its answers.
#[derive(Debug)]
pub(crate) struct ServerClock {
    /// The store's clock minus ours, in milliseconds; [`UNKNOWN`] before the first answer.
    ahead_ms: AtomicI64,
}

const UNKNOWN: i64 = i64::MIN;

impl Default for ServerClock {
    fn default() -> Self {
        Self {
            ahead_ms: AtomicI64::new(UNKNOWN),
        }
    }
}

impl ServerClock {
    /// How far the store's clock is ahead of this machine's, in milliseconds (the header has whole seconds).
    pub(crate) fn ahead_ms(&self) -> Option<i64> {
        Some(self.ahead_ms.load(Ordering::Relaxed)).filter(|ahead| *ahead != UNKNOWN)
    }

    fn note(&self, response: &HttpResponse) {
        let date = response
            .headers()
            .get("date")
            .and_then(|value| value.to_str().ok());
        if let Some(date) = date.and_then(|text| jiff::fmt::rfc2822::parse(text).ok()) {
            let ahead = date.timestamp().as_millisecond() - Timestamp::now().as_millisecond();
            self.ahead_ms.store(ahead, Ordering::Relaxed);
        }
    }
}

/// Makes clients that note status and date.
#[derive(Debug, Clone, Default)]
pub(crate) struct NotingConnector {
    pub(crate) clock: Arc<ServerClock>,
}

impl HttpConnector for NotingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(NotingService {
            inner,
            clock: Arc::clone(&self.clock),
        }))
    }
}

#[derive(Debug)]
struct NotingService {
    inner: HttpClient,
    clock: Arc<ServerClock>,
}

#[async_trait]
impl HttpService for NotingService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let _ = LAST_STATUS.try_with(|status| status.set(0));
        let response = self.inner.execute(request).await?;
        let _ = LAST_STATUS.try_with(|status| status.set(response.status().as_u16()));
        self.clock.note(&response);
        Ok(response)
    }
}
