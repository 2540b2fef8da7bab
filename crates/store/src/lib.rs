//! Object storage by URL: local directories, Amazon S3 and compatibles, Google Cloud Storage, Azure Blob Storage.
//!
//! One small interface ([`Store`]) over the `object_store` crate, which nobody else may name. What is added to it:
//!
//! - objects are only ever created: an atomic create-only put, which is right in spite of lost answers;
//! - retries with full jitter and a budget, a deadline on every attempt, downloads that are taken up where they broke
//!   off, and errors that say what was done to what, why it failed, and whether trying again may help;
//! - durable writes and deletes and private file modes on `file://` ([`durable`] has what other files need as well);
//! - named profiles and SSO for S3;
//! - the settings of an S3 bucket ([`bucket`]);
//! - a probe that finds out what a store can and can't do ([`Store::probe`]);
//! - faults on purpose for tests ([`fault`]).

mod aws_profile;
pub mod bucket;
mod classify;
mod counts;
mod disk;
pub mod durable;
mod error;
pub mod fault;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod list;
mod local;
mod open;
mod options;
mod permission;
mod probe;
mod reader;
mod retry;
mod s3;
mod store;
mod store_url;
mod throttle;
mod writer;

pub use counts::RequestCounts;
pub use disk::Disk;
pub use error::{StoreError, StoreErrorKind};
pub use options::{AzureOptions, GcsOptions, S3Addressing, S3Checksum, S3Options, StoreOptions};
pub use probe::{Capabilities, DIRECTORY_PREFIX as PROBE_PREFIX, Finding, ProbeReport};
pub use reader::ObjectReader;
pub use retry::RetryOptions;
pub use store::{ObjectInfo, PutOutcome, Store};
pub use store_url::{ParseStoreUrlError, StoreUrl};
pub use writer::ObjectWriter;
