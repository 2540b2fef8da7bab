//! The store against every kind of store that runs here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod conformance;
mod faults;
mod files;
mod probe;
mod surroundings;

use pgkeep_base::Secret;
use pgkeep_store::{S3Options, StoreOptions};
use pgkeep_testkit::stores::SeaweedFs;

/// Options for an S3 server in a test.
fn s3(endpoint: &str, access_key: &str, secret_key: &str) -> StoreOptions {
    StoreOptions {
        s3: S3Options {
            endpoint: Some(endpoint.to_owned()),
            region: Some("us-east-1".to_owned()),
            access_key_id: Some(Secret::new(access_key)),
            secret_access_key: Some(Secret::new(secret_key)),
            ..S3Options::default()
        },
        ..StoreOptions::default()
    }
}

fn seaweedfs(server: &SeaweedFs) -> StoreOptions {
    s3(&server.endpoint, &server.access_key, &server.secret_key)
}
