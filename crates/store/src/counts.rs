use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What was asked of the store since it was opened. Attempts count, failed ones too: stores bill for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// Objects and parts sent.
    pub puts: u64,
    /// Bodies asked for, whole or by range.
    pub gets: u64,
    /// Listings (a long one costs one request for each thousand objects).
    pub lists: u64,
    /// Delete requests (one may name a thousand objects).
    pub deletes: u64,
    /// Requests for an object's size and time.
    pub heads: u64,
    /// Attempts that were made because another one failed; they are in the other counts too.
    pub retries: u64,
    /// Bytes of bodies in attempts to send.
    pub bytes_sent: u64,
    /// Bytes of bodies that arrived.
    pub bytes_received: u64,
}

/// What a store is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Put,
    Get,
    List,
    Delete,
    Head,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    heads: AtomicU64,
    retries: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    /// The store has answered at least once.
    contacted: AtomicBool,
}

impl Counters {
    pub(crate) fn request(&self, request: Request) {
        let counter = match request {
            Request::Put => &self.puts,
            Request::Get => &self.gets,
            Request::List => &self.lists,
            Request::Delete => &self.deletes,
            Request::Head => &self.heads,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, bytes: u64) {
        self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: u64) {
        self.bytes_received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn answered(&self) {
        self.contacted.store(true, Ordering::Relaxed);
    }

    pub(crate) fn contacted(&self) -> bool {
        self.contacted.load(Ordering::Relaxed)
    }

    pub(crate) fn snapshot(&self) -> RequestCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RequestCounts {
            puts: read(&self.puts),
            gets: read(&self.gets),
            lists: read(&self.lists),
            deletes: read(&self.deletes),
            heads: read(&self.heads),
            retries: read(&self.retries),
            bytes_sent: read(&self.bytes_sent),
            bytes_received: read(&self.bytes_received),
        }
    }
}
