//! The arrows of docs/ARCHITECTURE.md, held by what cargo says about the workspace.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// What each crate may depend on, of the workspace's own. A new crate has to be entered here.
const ALLOWED: &[(&str, &[&str])] = &[
    ("pgkeep-base", &[]),
    ("pgkeep-store", &["pgkeep-base"]),
    ("pgkeep-pgformat", &["pgkeep-base"]),
    ("pgkeep-pg", &["pgkeep-base", "pgkeep-pgformat"]),
    ("pgkeep-config", &["pgkeep-base"]),
    ("pgkeep-schedule", &["pgkeep-base"]),
    (
        "pgkeep-repository",
        &["pgkeep-base", "pgkeep-pgformat", "pgkeep-store"],
    ),
    (
        "pgkeep-wal",
        &[
            "pgkeep-base",
            "pgkeep-pg",
            "pgkeep-pgformat",
            "pgkeep-repository",
            "pgkeep-store",
        ],
    ),
    ("pgkeep-timescale", &["pgkeep-base", "pgkeep-pg"]),
    ("pgkeep-docker", &["pgkeep-base", "pgkeep-pg", "pgkeep-timescale"]),
    (
        "pgkeep-dump",
        &[
            "pgkeep-base",
            "pgkeep-pg",
            "pgkeep-store",
            "pgkeep-repository",
            "pgkeep-timescale",
        ],
    ),
    (
        "pgkeep-physical",
        &[
            "pgkeep-base",
            "pgkeep-pg",
            "pgkeep-pgformat",
            "pgkeep-store",
            "pgkeep-repository",
            "pgkeep-wal",
        ],
    ),
    ("pgkeep-testkit", &["pgkeep-base", "pgkeep-store"]),
    (
        "pgkeep",
        &[
            "pgkeep-base",
            "pgkeep-config",
            "pgkeep-docker",
            "pgkeep-dump",
            "pgkeep-pg",
            "pgkeep-pgformat",
            "pgkeep-physical",
            "pgkeep-repository",
            "pgkeep-schedule",
            "pgkeep-store",
            "pgkeep-timescale",
            "pgkeep-pgformat",
            "pgkeep-wal",
        ],
    ),
];

/// Crates that only one of ours may name, so that they can be replaced in one place.
const OWNED: &[(&str, &str)] = &[
    ("age", "pgkeep-repository"),
    ("age-core", "pgkeep-repository"),
    ("aws-config", "pgkeep-store"),
    ("bollard", "pgkeep-docker"),
    ("clap", "pgkeep"),
    ("comfy-table", "pgkeep"),
    ("croner", "pgkeep-schedule"),
    ("indicatif", "pgkeep"),
    ("object_store", "pgkeep-store"),
    ("postgres-protocol", "pgkeep-pg"),
    ("quick-xml", "pgkeep-store"),
    ("sd-notify", "pgkeep"),
    ("tokio-rustls", "pgkeep-pg"),
];

/// Crates that must not come in by any way (deny.toml says why).
const BANNED: &[&str] = &[
    "tokio-postgres",
    "openssl",
    "openssl-sys",
    "native-tls",
    "aws-sdk-ec2",
];

fn metadata() -> Value {
    let metadata = pgkeep_testkit::run(
        Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml")),
    );
    serde_json::from_str(&metadata).unwrap()
}

/// Each workspace crate's direct dependencies by kind: `normal`, `build`, `dev`.
fn workspace() -> BTreeMap<String, Vec<(String, String)>> {
    let metadata = metadata();
    let members: BTreeSet<&str> = metadata["workspace_members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_str().unwrap())
        .collect();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|package| members.contains(package["id"].as_str().unwrap()))
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let by_kind = dependencies.map(|dependency| {
                (
                    dependency["kind"].as_str().unwrap_or("normal").to_owned(),
                    text(&dependency["name"]),
                )
            });
            (text(&package["name"]), by_kind.collect())
        })
        .collect()
}

#[test]
fn crates_depend_only_on_those_below() {
    let workspace = workspace();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    assert_eq!(
        workspace.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        allowed.keys().copied().collect::<BTreeSet<_>>(),
        "ALLOWED and the workspace name different crates"
    );
    let mut wrong = Vec::new();
    for (name, dependencies) in &workspace {
        for (kind, dependency) in dependencies {
            let permitted = !workspace.contains_key(dependency)
                || allowed[name.as_str()].contains(&dependency.as_str())
                || (kind == "dev" && dependency == "pgkeep-testkit");
            if !permitted {
                wrong.push(format!("{name} -> {dependency} ({kind})"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that docs/ARCHITECTURE.md doesn't have: {wrong:#?}"
    );
}

#[test]
fn the_arrows_have_no_circle() {
    // Each crate may name only crates that stand above it in ALLOWED's order of layers.
    let mut known = BTreeSet::new();
    for (name, below) in ALLOWED {
        for dependency in *below {
            assert!(known.contains(dependency), "{name} -> {dependency}: not below it");
        }
        known.insert(*name);
    }
}

#[test]
fn outside_crates_have_one_owner() {
    let mut wrong = Vec::new();
    for (name, dependencies) in workspace() {
        for (kind, dependency) in dependencies {
            if kind != "dev"
                && OWNED
                    .iter()
                    .any(|(crate_name, owner)| *crate_name == dependency && *owner != name)
            {
                wrong.push(format!("{name} -> {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "only their owner may name these: {wrong:#?}");
}

#[test]
fn banned_crates_are_nowhere_in_the_lock_file() {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeSet<&str> = packages
        .iter()
        .map(|package| package["name"].as_str().unwrap())
        .collect();
    assert!(names.contains("serde"), "the metadata names no dependency at all");
    let found: Vec<_> = BANNED.iter().filter(|name| names.contains(*name)).collect();
    assert!(found.is_empty(), "banned by deny.toml: {found:?}");
}
