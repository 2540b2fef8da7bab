//! What `latest` means when some dumps hold less than others.

use std::fs;
use std::path::PathBuf;

use pgkeep_repository::encryption::{Encryption, OpenOptions, open_bytes, seal_bytes};
use serde_json::Value;

use crate::support::{Place, server};

/// The dump that a restore would take, and those it would pass over.
fn planned(place: &Place, args: &[&str]) -> (String, Vec<(String, String)>) {
    let args = [&["restore", "latest", "--dry-run", "--json"], args].concat();
    let plan = place.run(&args).expect(0).json();
    let skipped = plan["skipped"].as_array().unwrap().iter();
    let skipped = skipped.map(|dump| {
        (
            dump["id"].as_str().unwrap().to_owned(),
            dump["reason"].as_str().unwrap().to_owned(),
        )
    });
    (plan["id"].as_str().unwrap().to_owned(), skipped.collect())
}

fn dump(place: &Place, args: &[&str]) -> String {
    let args = [&["dump", "--quiet"], args].concat();
    place.run(&args).expect(0).stdout.trim().to_owned()
}

fn object(place: &Place, id: &str, name: &str) -> PathBuf {
    place.path("repository/main/dump").join(id).join(name)
}

/// The same configuration without the key.
fn without_key(place: &Place) {
    let text = fs::read_to_string(place.path("pgkeep.toml")).unwrap();
    fs::write(
        place.path("host.toml"),
        text.replace("identity_file", "# identity_file"),
    )
    .unwrap();
}

#[test]
fn the_newest_dump_that_holds_what_is_asked_for() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let whole = dump(&place, &[]);
    let database = dump(&place, &["-d", "app"]);
    let table = dump(&place, &["-d", "app", "--table", "play*"]);
    let exact = dump(
        &place,
        &[
            "-d",
            "app",
            "--table",
            "public.players",
            "--exclude-table-data",
            "scores",
        ],
    );

    let (chosen, skipped) = planned(&place, &[]);
    assert_eq!(chosen, whole);
    let reasons: Vec<&str> = skipped.iter().map(|(_, reason)| reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "was made with --database app --table public.players --exclude-table-data scores",
            "was made with --database app --table play*",
            "was made with --database app",
        ]
    );
    assert_eq!(skipped[0].0, exact);
    let told = place.run(&["restore", "--dry-run"]).expect(0).stderr;
    assert!(
        told.contains(&format!(
            "latest is not {database}, which was made with --database app"
        )),
        "{told}"
    );

    for (args, expected) in [
        (&["-d", "app"][..], &database),
        (&["-d", "app", "-t", "public.players"], &exact),
        (&["-t", "public.players"], &exact),
        (&["-t", "play*"], &table),
        (&["-t", "p*"], &database),
        (&["-t", "scores"], &database),
        (&["-d", "postgres"], &whole),
    ] {
        assert_eq!(planned(&place, args).0, *expected, "{args:?}");
    }
    let exported = [
        "export", "--format", "plain", "--output", "app.sql", "-d", "app", "--json",
    ];
    assert_eq!(place.run(&exported).expect(0).json()["id"], database.as_str());
    // By its id, any dump can be had.
    let named = ["restore", &table, "--dry-run", "--json"];
    assert_eq!(place.run(&named).expect(0).json()["id"], table.as_str());
}

/// What the configuration leaves out is not missed: then no dump holds it.
#[test]
fn the_configuration_says_what_is_whole() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    place.run(&["dump", "-d", "app", "-t", "players"]).expect(0);
    let nothing = place.run(&["restore", "--dry-run"]).expect(2).stderr;
    assert!(
        nothing.contains("no dump holds what is asked for") && nothing.contains("--table players"),
        "{nothing}"
    );
    let path = place.path("pgkeep.toml");
    let text = fs::read_to_string(&path).unwrap();
    let dump = "dump = { databases = [\"app\"], exclude_table_data = [\"scores\"] }\n";
    fs::write(&path, text + dump).unwrap();
    let id = place.dump();
    assert_eq!(planned(&place, &[]), (id.clone(), Vec::new()));
    assert_eq!(planned(&place, &["-t", "pl*"]).0, id);
}

/// Whatever is wrong with the newest dump, an older one is taken only by its id.
#[test]
fn a_newer_dump_that_cannot_be_read_is_not_passed_over() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let [old, new] = [0; 2].map(|_| dump(&place, &[]));
    let manifest = object(&place, &new, "manifest");
    let whole = fs::read(&manifest).unwrap();
    let mut altered = whole.clone();
    *altered.last_mut().unwrap() ^= 0x40;
    for damage in [&[][..], b"no manifest", &altered, &whole[..whole.len() / 2]] {
        fs::write(&manifest, damage).unwrap();
        for command in [
            &["restore", "--dry-run"][..],
            &["restore", "--dry-run", "-d", "app", "-t", "players"],
            &["export", "--output", "folder"],
            &["show"],
        ] {
            let told = place.run(command).expect(4).stderr;
            let says = format!("dump {new} is newer than {old}, the newest sound one");
            assert!(
                told.contains(&says) && told.contains(&format!("{new}/manifest")),
                "{told}"
            );
            let hint = format!("for the older one: 'pgkeep {} {old} ...'", command[0]);
            assert!(told.contains(&hint), "{told}");
        }
        assert!(!place.path("folder").exists());
        place.run(&["restore", &old, "--dry-run"]).expect(0);
        // To find out what is wrong with it is what it is for.
        let verified = place.run(&["verify"]).expect(1).stdout;
        assert!(verified.contains(&format!("{new} is damaged")), "{verified}");
    }
    // Gone, by whatever hand: there is evidence that it was there.
    fs::remove_file(&manifest).unwrap();
    for command in [&["restore", "--dry-run"][..], &["show"]] {
        let told = place.run(command).expect(4).stderr;
        assert!(
            told.contains(&format!("dump {new} is newer than {old}")),
            "{told}"
        );
    }
    for command in [&["verify"][..], &["verify", "all"], &["pin", "latest"]] {
        let told = place.run(command).expect(1).stderr;
        assert!(
            told.contains(&new) && told.contains("gone"),
            "{command:?}: {told}"
        );
    }
    fs::write(&manifest, "").unwrap();
    // Without a sound one, there is only the damage.
    fs::rename(object(&place, &old, "manifest"), place.path("moved")).unwrap();
    let told = place.run(&["restore", "--dry-run"]).expect(1).stderr;
    assert!(told.contains(&format!("{new}/manifest")), "{told}");
    fs::rename(place.path("moved"), object(&place, &old, "manifest")).unwrap();

    // Its summary says that it isn't the latest in any case.
    fs::write(&manifest, &whole).unwrap();
    let part = dump(&place, &["-d", "app"]);
    fs::write(object(&place, &part, "manifest"), "").unwrap();
    let passed = (part, "was made with --database app".to_owned());
    assert_eq!(planned(&place, &[]), (new, vec![passed]));
}

/// A summary is only the manifest's in short.
#[test]
fn a_lost_summary_is_made_up_for_by_the_manifest() {
    let cluster = server();
    let place = Place::with(&cluster, Some("encryption = \"none\""));
    let old = dump(&place, &[]);
    let new = dump(&place, &[]);
    let part = dump(&place, &["-d", "app", "-t", "players"]);
    let summaries = [&new, &part].map(|id| object(&place, id, "summary"));
    let lacking = [(
        part.clone(),
        "was made with --database app --table players".to_owned(),
    )];
    for damage in [Some(&b"x"[..]), None] {
        for summary in &summaries {
            match damage {
                Some(damage) => fs::write(summary, damage).unwrap(),
                None => fs::remove_file(summary).unwrap(),
            }
        }
        assert_eq!(planned(&place, &[]), (new.clone(), lacking.to_vec()));
        assert_eq!(planned(&place, &["-d", "app", "-t", "players"]).0, part);
        let pinned = place.run(&["pin", "latest", "--json"]).expect(0);
        assert_eq!(pinned.json()["id"], new.as_str());
        assert!(
            pinned
                .stderr
                .contains(&format!("the summary of dump {new} can't be read"))
        );
    }
    // Earlier versions' manifests don't say what was asked for.
    let path = object(&place, &new, "manifest");
    let options = OpenOptions {
        identities: &[],
        recipients: &[],
        bytes_max: 1 << 20,
    };
    let text = open_bytes(&fs::read(&path).unwrap(), &options).unwrap();
    let mut manifest: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(manifest["asked"]["partial"], false);
    manifest.as_object_mut().unwrap().remove("asked");
    let sealed = seal_bytes(&Encryption::None, 3, manifest.to_string().as_bytes()).unwrap();
    fs::write(&path, sealed).unwrap();
    let told = place.run(&["restore", "--dry-run"]).expect(4).stderr;
    assert!(
        told.contains(&format!(
            "of which part of its cluster dump {new} is can't be told"
        )) && told.contains(&format!("'pgkeep restore {new} ...'"))
            && told.contains(&format!("'pgkeep restore {old} ...'")),
        "{told}"
    );
    let pinned = place.run(&["pin", "latest", "--json"]).expect(0);
    assert_eq!(pinned.json()["id"], new.as_str());
    assert!(
        pinned.stderr.contains(&format!("latest is taken to be {new}")),
        "{}",
        pinned.stderr
    );
    place.run(&["restore", &new, "--dry-run"]).expect(0);
}

/// The key was changed, and the old one opens the older dumps alone.
#[test]
fn a_newer_dump_of_another_key_is_not_passed_over() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let old = dump(&place, &[]);
    place.run(&["key", "new", "--output", "new.key"]).expect(0);
    let recipient = place.run(&["key", "show", "new.key"]).expect(0).stdout;
    let path = place.path("pgkeep.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&place.recipient(), recipient.trim())).unwrap();
    let new = dump(&place, &[]);
    let told = place.run(&["restore", "--dry-run"]).expect(4).stderr;
    assert!(
        told.contains(&format!("dump {new} is newer than {old}"))
            && told.contains("none of the identities given opens")
            && told.contains("--identity FILE")
            && told.contains(&format!("'pgkeep restore {old} ...'")),
        "{told}"
    );
    assert_eq!(planned(&place, &["--identity", "new.key"]).0, new);
}

#[test]
fn latest_is_the_same_for_every_command() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let part = dump(&place, &["-d", "app"]);
    // A part isn't the latest even where there is nothing else.
    for command in [&["show"][..], &["verify"], &["pin", "latest"]] {
        let told = place.run(command).expect(2).stderr;
        assert!(
            told.contains(&format!("{part} was made with --database app")) && told.contains("by its id"),
            "{told}"
        );
    }
    let whole = dump(&place, &[]);
    let newest = dump(&place, &["-d", "app", "-t", "players"]);
    let second = format!("file://{}", place.path("second").display());
    let commands: [&[&str]; 7] = [
        &["show"],
        &["verify"],
        &["verify", "--stored-only"],
        &["pin", "latest"],
        &["unpin", "latest"],
        &["copy", "latest", "--to", &second],
        &["export", "--output", "folder"],
    ];
    assert_eq!(planned(&place, &[]).0, whole);
    for command in commands {
        let done = place.run(&[command, &["--json"]].concat()).expect(0);
        assert_eq!(done.json()["id"], whole.as_str(), "{command:?}");
        let passed = format!("latest is not {newest}, which was made with --database app --table players");
        assert!(done.stderr.contains(&passed), "{command:?}: {}", done.stderr);
    }
    // Where there is no key, it can't be told.
    without_key(&place);
    for command in &commands[2..6] {
        let done = place
            .run(&[command, &["--json", "--config", "host.toml"][..]].concat())
            .expect(0);
        assert_eq!(done.json()["id"], newest.as_str(), "{command:?}");
        let taken = format!("latest is taken to be {newest}: without its key");
        assert!(done.stderr.contains(&taken), "{command:?}: {}", done.stderr);
    }
}

/// What was left out because it can't be dumped makes no part of a dump, and is told before a restore.
#[test]
fn a_dump_without_a_half_restored_database_is_the_latest() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    cluster.create_database("half");
    let before = dump(&place, &[]);
    cluster.psql(
        "half",
        &format!(
            "CREATE SCHEMA pgkeep_restore;
             CREATE TABLE pgkeep_restore.restore AS SELECT '{before}' AS dump, 'half' AS database, true AS whole;
             CREATE TABLE pgkeep_restore.step (name text);
             CREATE TABLE pgkeep_restore.relation (place bigint, rows bigint)"
        ),
    );
    let dumped = place.run(&["dump", "--json"]).expect(3);
    let omission = format!(
        "database 'half', which holds an unfinished restore of dump {before}; finish it with 'pgkeep restore {before} --resume ...'"
    );
    let attention = format!("attention: not in the dump: {omission}");
    assert!(dumped.stderr.contains(&attention), "{}", dumped.stderr);
    let id = dumped.json()["id"].clone();
    let plan = place.run(&["restore", "--dry-run", "--json"]).expect(0);
    let said = plan.json();
    assert_eq!(said["id"], id);
    assert!(
        said["omissions"][0].as_str().unwrap().starts_with(&omission),
        "{said}"
    );
    let told = place.run(&["restore", "--dry-run"]).expect(0).stderr;
    assert!(
        told.contains(&format!("note: not in the dump: {omission}")),
        "{told}"
    );
    // It is in the one before.
    let (chosen, skipped) = planned(&place, &["-d", "half"]);
    assert_eq!(
        (chosen, skipped[0].1.as_str()),
        (before, "has no database 'half'")
    );
    place.run(&["dump", "-d", "half"]).expect(4);
}
