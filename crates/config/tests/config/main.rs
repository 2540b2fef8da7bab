//! Files, variables and flags: what they mean together, and each error's words and place.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod errors;
mod properties;
mod secrets;
mod values;
mod written;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_config::{Cluster, Config, ConfigError, Loaded, Overrides, load};

/// Looks like a recipient; its checksum is nobody's business here.
const RECIPIENT: &str = "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq";

fn no_variables(_: &str) -> Option<String> {
    None
}

fn variables<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
    |name| {
        pairs
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned())
    }
}

/// A configuration file that only its owner may read, for as long as the folder lives.
fn file(text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pgkeep.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    (folder, path)
}

fn load_text(text: &str, pairs: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let (_folder, path) = file(text);
    load(Some(&path), &variables(pairs))
}

/// The error of a file, or of choosing from it, without the file's folder.
fn error_of(text: &str, pairs: &[(&str, &str)], overrides: &Overrides) -> String {
    let (folder, path) = file(text);
    let result = load(Some(&path), &variables(pairs)).and_then(|l| l.config.select(None, overrides));
    let error = result.map(|_| ()).unwrap_err();
    assert_eq!(error.retry_class(), RetryClass::Usage);
    error
        .to_string()
        .replace(&format!("{}/", folder.path().display()), "")
}

fn selected(text: &str, pairs: &[(&str, &str)], overrides: &Overrides) -> Cluster {
    load_text(text, pairs)
        .unwrap()
        .config
        .select(None, overrides)
        .unwrap()
        .1
}

/// An empty file and these variables.
fn from_variables(pairs: &[(&str, &str)]) -> Config {
    load_text("", pairs).unwrap().config
}
