//! Base backups with real servers of each version.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod delta;
mod exported;
mod faults;
mod incremental;
mod local;
mod points;
mod reader;
mod refusals;
mod rounds;
mod support;
