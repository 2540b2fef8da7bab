//! The command line is an interface: what `--help` says is held by a snapshot. `PGKEEP_TEST_UPDATE=1` writes it anew.

use std::fmt::Write;

use crate::support::Place;

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/help.txt");
const COMMANDS: &[&[&str]] = &[
    &[],
    &["init"],
    &["dump"],
    &["backup"],
    &["restore"],
    &["list"],
    &["show"],
    &["verify"],
    &["prune"],
    &["pin"],
    &["unpin"],
    &["copy"],
    &["export"],
    &["run"],
    &["wal"],
    &["wal", "stream"],
    &["wal", "status"],
    &["wal", "fetch"],
    &["wal", "push"],
    &["key"],
    &["key", "new"],
    &["key", "show"],
    &["bucket"],
    &["bucket", "check"],
    &["bucket", "setup"],
    &["doctor"],
    &["completions"],
    &["version"],
];

#[test]
fn the_help_is_as_it_was() {
    let place = Place::new();
    let mut text = String::new();
    for command in COMMANDS {
        let args: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
        let help = place.run(&args).expect(0).stdout;
        // The global options are the same everywhere: once is enough.
        let own = if command.is_empty() {
            help.as_str()
        } else {
            help.split("\nGlobal options:").next().unwrap()
        };
        write!(text, "$ pgkeep {}\n{}\n\n", args.join(" "), own.trim_end()).unwrap();
    }
    if std::env::var_os("PGKEEP_TEST_UPDATE").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots")).unwrap();
        std::fs::write(SNAPSHOT, &text).unwrap();
    }
    let expected = std::fs::read_to_string(SNAPSHOT).unwrap();
    assert!(
        text == expected,
        "the help differs from {SNAPSHOT}; look at it, then PGKEEP_TEST_UPDATE=1:\n{text}"
    );
}

#[test]
fn completions_and_version_need_nothing() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = place.run(&["completions", shell]).expect(0).stdout;
        assert!(
            script.contains("pgkeep") && script.contains("verify"),
            "{shell}: {script}"
        );
    }
    assert_eq!(
        place.run(&["version"]).expect(0).stdout,
        format!("pgkeep {}\n", env!("CARGO_PKG_VERSION"))
    );
    let version = place.run(&["version", "--json"]).expect(0).json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_key_file_is_private_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let before = std::fs::read(place.path("pgkeep.key")).unwrap();
    assert_eq!(
        std::fs::metadata(place.path("pgkeep.key"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    let refused = place.run(&["key", "new", "--output", "pgkeep.key"]).expect(4);
    assert!(refused.stderr.contains("never overwritten"), "{}", refused.stderr);
    assert_eq!(std::fs::read(place.path("pgkeep.key")).unwrap(), before);
    let made = place
        .run(&["key", "new", "--output", "other.key", "--json"])
        .expect(0)
        .json();
    let shown = place
        .run(&["key", "show", "other.key", "--json"])
        .expect(0)
        .json();
    assert_eq!(made["recipient"], shown["recipients"][0]);
}
