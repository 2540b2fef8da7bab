//! The binary as users meet it: what it prints, how it exits, what it leaves behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests are tests"
)]

mod bad_input;
mod base;
mod bucket;
mod container;
mod damage;
mod doctor;
mod help;
mod init;
mod interrupted;
mod keep;
mod kills;
mod large_rows;
mod latest;
mod memory;
mod namespaces;
mod odd_names;
mod pipes;
mod scheduled;
mod scheduled_base;
mod secrets;
mod several;
mod support;
mod synchronous;
mod wal;
mod whole;
