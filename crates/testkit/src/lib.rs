//! What the tests stand on: throwaway PostgreSQL servers, object stores that run here, realistic data, and a referee
//! that compares two databases. A dev-dependency only.
//!
//! It talks to servers through `psql` and knows nothing of pgkeep's own PostgreSQL code, so that a fault there can't hide
//! itself. Everything it starts is gone when the test is, however the test ended ([`cluster::Cluster`]). Programs come
//! from the cache that `scripts/test-setup` fills; a test whose server or program isn't there is reported as skipped
//! ([`require!`]), never as passed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test's support fails the test by panicking"
)]

pub mod cluster;
pub mod compare;
pub mod fixtures;
mod process;
mod random;
pub mod requirements;
pub mod stores;

pub use cluster::{Cluster, ClusterOptions, Session, StopMode};
pub use process::{poll_until, run, server_user};
pub use random::seed;
pub use requirements::{Missing, TestEnd, skip};
