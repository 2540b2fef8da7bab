//! The stores start, answer, and are gone afterwards.
#![allow(clippy::unwrap_used, reason = "tests")]

use pgkeep_testkit::require;
use pgkeep_testkit::stores::{RcloneS3, SeaweedFs};

#[test]
fn seaweedfs_starts_makes_buckets_and_is_gone_when_dropped() {
    let server = require!(SeaweedFs::start());
    assert_eq!(server.bucket("one"), "s3://one");
    assert_eq!(server.bucket_with_lock("two"), "s3://two");
    let address = server.endpoint.strip_prefix("http://").unwrap().to_owned();
    assert!(std::net::TcpStream::connect(&address).is_ok());
    drop(server);
    assert!(std::net::TcpStream::connect(&address).is_err());
}

#[test]
fn rclone_starts_and_is_gone_when_dropped() {
    let server = require!(RcloneS3::start());
    assert_eq!(server.bucket("one"), "s3://one");
    let address = server.endpoint.strip_prefix("http://").unwrap().to_owned();
    drop(server);
    assert!(std::net::TcpStream::connect(&address).is_err());
}
