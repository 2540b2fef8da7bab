//! `pgkeep bucket` against moto, which has every setting, SeaweedFS, which has some, and rclone, which has none.

mod mistakes;
mod stores;

use std::fs;

use pgkeep_testkit::stores::Moto;
use serde_json::Value;

use crate::support::{Done, Place};

/// Settings that moto is asked for when nothing may have changed.
pub const SETTINGS: [&str; 6] = [
    "versioning",
    "publicAccessBlock",
    "ownershipControls",
    "encryption",
    "object-lock",
    "lifecycle",
];

/// Settings with nothing of this machine's own, for a repository in a bucket.
pub fn place(endpoint: &str, keys: (&str, &str), bucket: &str, settings: &str) -> Place {
    let mut place = Place::new();
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", keys.0),
        ("AWS_SECRET_ACCESS_KEY", keys.1),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL_S3", endpoint),
    ] {
        place.environment.push((name.to_owned(), value.to_owned()));
    }
    configure(&place, bucket, settings);
    place
}

/// Writes pgkeep.toml anew.
pub fn configure(place: &Place, bucket: &str, settings: &str) {
    let text = format!(
        "[cluster.main]\nconnection = \"host=/nowhere\"\nrepository = \"s3://{bucket}/pgkeep\"\nencryption = \"none\"\n{settings}\n"
    );
    fs::write(place.path("pgkeep.toml"), text).unwrap();
}

/// The same at moto.
pub fn at_moto(moto: &Moto, bucket: &str, settings: &str) -> Place {
    place(&moto.endpoint, ("test", "test"), bucket, settings)
}

/// All settings of a bucket, as moto has them.
pub fn settings(moto: &Moto, bucket: &str) -> Vec<(u16, String)> {
    SETTINGS
        .iter()
        .map(|setting| {
            let (status, body) = moto.get(&format!("/{bucket}?{setting}"));
            // Errors name the request.
            (status, if status == 200 { body } else { String::new() })
        })
        .collect()
}

/// `setup` with arguments.
pub fn setup(place: &Place, args: &[&str]) -> Done {
    place.run(&[&["bucket", "setup"], args].concat())
}

/// `check` with arguments.
pub fn check(place: &Place, args: &[&str]) -> Done {
    place.run(&[&["bucket", "check"], args].concat())
}

/// One setting of a JSON answer.
#[track_caller]
pub fn setting<'a>(told: &'a Value, name: &str) -> &'a Value {
    let mut settings = told["settings"].as_array().unwrap().iter();
    settings
        .find(|setting| setting["setting"] == name)
        .unwrap_or_else(|| panic!("no {name}: {told}"))
}

/// Names of the settings that are to be set.
pub fn to_set(told: &Value) -> Vec<&str> {
    let settings = told["settings"].as_array().unwrap().iter();
    settings
        .filter(|setting| setting["action"] == "set")
        .map(|setting| setting["setting"].as_str().unwrap())
        .collect()
}
