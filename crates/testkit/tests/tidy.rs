//! What must not be in the tree, and what must.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

const LINES_MAX: usize = 600;

/// Each written in two pieces, or this file would be its own first find.
const UNFINISHED: &[&str] = &[
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("#[igno", "re"),
];
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk"),
    concat!("/ro", "ot"),
    concat!("/opt/p", "gt"),
];
const REGISTRY_HOSTS: &[&str] = &[
    concat!("deb.debian", ".org"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("static.crates", ".io"),
    concat!("index.crates", ".io"),
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// The tree's text files with their contents; neither build results nor what git or a fuzzer keeps.
fn files() -> Vec<(String, String)> {
    let top = top();
    let left_out = [
        "target",
        ".git",
        "corpus",
        "artifacts",
        "Cargo.lock",
        "__pycache__",
    ];
    let walk = WalkDir::new(&top).into_iter();
    let entries = walk.filter_entry(|entry| {
        !left_out
            .iter()
            .any(|name| entry.file_name().to_string_lossy() == *name)
    });
    let files: Vec<_> = entries
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .filter_map(|entry| {
            let name = entry
                .path()
                .strip_prefix(&top)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            Some((name, String::from_utf8(fs::read(entry.path()).unwrap()).ok()?))
        })
        .collect();
    assert!(
        files.len() > 30,
        "found only {} files under {}",
        files.len(),
        top.display()
    );
    files
}

fn is_source(name: &str) -> bool {
    name.ends_with(".rs") || name.starts_with("scripts/") || name.starts_with("bench/")
}

/// Whether a line holds an absolute path that begins with `prefix`: `$work/root` and `/rootless` hold none.
fn holds_path(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + prefix.len()..].chars().next();
        let joins = |character: char| character.is_alphanumeric() || "_-.}*/)".contains(character);
        !before.is_some_and(joins)
            && !after.is_some_and(|character| character.is_alphabetic() || character == '_')
    })
}

fn finds(check: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in files() {
        for (index, line) in text.lines().enumerate() {
            if check(&name, line) {
                found.push(format!("{name}:{}: {}", index + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn no_source_file_is_too_long() {
    let long: Vec<_> = files()
        .into_iter()
        .filter(|(name, text)| is_source(name) && text.lines().count() > LINES_MAX)
        .map(|(name, text)| format!("{name}: {} lines", text.lines().count()))
        .collect();
    assert!(long.is_empty(), "longer than {LINES_MAX} lines: {long:#?}");
}

#[test]
fn nothing_is_left_unfinished() {
    let found =
        finds(|name, line| name.ends_with(".rs") && UNFINISHED.iter().any(|mark| line.contains(mark)));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn what_cannot_run_is_reported_by_the_testkit() {
    // A test that says so itself and returns is counted as passed.
    let mark = concat!("\"SKIP", "PED");
    let found = finds(|name, line| name.ends_with(".rs") && line.contains(mark));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn no_path_of_one_machine_is_named() {
    let found = finds(|_, line| MACHINE_PATHS.iter().any(|path| holds_path(line, path)));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_machine_path_is_told_from_others() {
    let path = MACHINE_PATHS[1];
    for yes in [
        format!("cd {path}"),
        format!("'{path}/x'"),
        format!("a={path}/.cache"),
    ] {
        assert!(holds_path(&yes, path), "{yes}");
    }
    for no in [
        format!("$dir{path}"),
        format!("{path}less"),
        format!("a{path}/b"),
        format!("../..{path}"),
    ] {
        assert!(!holds_path(&no, path), "{no}");
    }
}

#[test]
fn no_registry_host_is_named() {
    let found = finds(|_, line| REGISTRY_HOSTS.iter().any(|host| line.contains(host)));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_crate_is_in_the_architecture_document() {
    let document = fs::read_to_string(top().join("docs/ARCHITECTURE.md")).unwrap();
    let crates = fs::read_dir(top().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let missing: Vec<_> = crates
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| {
            let words =
                |character: char| !character.is_alphanumeric() && character != '_' && character != '-';
            !document
                .split(words)
                .any(|word| word == name || word == format!("pgkeep-{name}"))
        })
        .collect();
    assert!(
        missing.is_empty(),
        "crates that docs/ARCHITECTURE.md doesn't name: {missing:?}"
    );
}
