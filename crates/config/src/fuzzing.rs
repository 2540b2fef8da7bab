//! What a fuzz target of fuzz/ does with outside bytes: they are read or refused, and no message shows a secret. The test
//! runs the committed corpus through it.

use std::collections::BTreeMap;
use std::path::Path;

use crate::file::parse;
use crate::{Config, Overrides, unknown_variables};

/// Stands for a password in a file.
const SECRET: &str = "hunter2";

/// A configuration file; after a NUL, lines of the environment (`NAME=VALUE`).
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (file, environment) = text.split_once('\0').unwrap_or((&text, ""));
    let variables: BTreeMap<&str, &str> = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    for warning in unknown_variables(variables.keys().copied(), &["PGKEEP_OWN"]) {
        let _ = warning.to_string();
    }
    let shown = read(file, &variables);
    drop(shown);
    if text.to_lowercase().contains(SECRET) {
        return;
    }
    for own in [
        format!("[cluster.a]\nconnection = \"{SECRET}\"\n{file}"),
        format!("[cluster.a.s3]\nsecret_access_key = \"{SECRET}\"\n{file}"),
        format!("{file}\n[cluster.a]\nconnection = \"{SECRET}\""),
    ] {
        let said = read(&own, &variables);
        assert!(!said.contains(SECRET), "{said}");
    }
}

/// What is said and shown of it.
fn read(file: &str, variables: &BTreeMap<&str, &str>) -> String {
    let clusters = match parse(file, Path::new("/pgkeep.toml")) {
        Ok(clusters) => clusters,
        Err(error) => return told(&error),
    };
    let names: Vec<String> = clusters.keys().cloned().collect();
    let config = Config::new(clusters, &|name| {
        variables.get(name).map(|value| (*value).to_owned())
    });
    let mut said = format!("{config:?}");
    for name in names.iter().map(|name| Some(name.as_str())).chain([None]) {
        said += &match config.select(name, &Overrides::default()) {
            Ok((_, cluster)) => format!("{cluster:?} {}", cluster.holds_secrets()),
            Err(error) => told(&error),
        };
    }
    said
}

fn told(error: &crate::ConfigError) -> String {
    format!("{error} {:?}", pgkeep_base::Classified::hint(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzer_is_read_or_refused() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/config");
        let entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(Result::unwrap).collect();
        assert!(!entries.is_empty(), "{folder}");
        for entry in entries {
            config(&std::fs::read(entry.path()).unwrap());
        }
    }
}
