//! Objects that aren't what was written, and keys that don't fit.

use std::fs;
use std::path::Path;

use pgkeep_repository::encryption::{Encryption, OpenOptions, open_bytes, seal_bytes};
use serde_json::Value;

use crate::support::{Place, files, server};

fn flip_last_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 0x40;
    fs::write(path, bytes).unwrap();
}

#[test]
fn damage_is_found_named_and_remembered() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let into = cluster.tcp_conninfo("postgres");
    let restore = [
        "restore",
        "--into",
        &into,
        "-d",
        "app",
        "--target-database",
        "other",
    ];
    let first = place.dump();
    let object = place.object("d2/000001.sql.zst.age");
    let whole = fs::read(&object).unwrap();

    for (damage, word) in [("altered", "BLAKE3"), ("cut", "BLAKE3"), ("removed", "missing")] {
        match damage {
            "altered" => flip_last_byte(&object),
            "cut" => fs::write(&object, &whole[..whole.len() / 2]).unwrap(),
            _ => fs::remove_file(&object).unwrap(),
        }
        for args in [&["verify"][..], &["verify", "--stored-only"]] {
            let done = place.run(args).expect(1);
            assert!(
                done.stdout.contains("is damaged") && done.stdout.contains("d2/000001.sql.zst.age"),
                "{}",
                done.stdout
            );
            assert!(done.stdout.contains(word), "no '{word}' in {}", done.stdout);
            assert!(
                done.stderr.contains("hint: restore from another backup"),
                "{}",
                done.stderr
            );
        }
        fs::write(&object, &whole).unwrap();
        place.run(&["verify"]).expect(0);
    }

    flip_last_byte(&object);
    place.run(&["verify", "--json"]).expect(1);
    let restored = place.run(&restore).expect(1);
    assert!(
        restored.stderr.contains("000001.sql.zst.age")
            && restored
                .stderr
                .contains("hint: restore another dump with --overwrite")
            && restored.stderr.contains(&format!("'pgkeep verify {first}'")),
        "{}",
        restored.stderr
    );
    // Half a database is nothing to dump.
    let half = place.run(&["dump", "-d", "other"]).expect(4).stderr;
    assert!(half.contains("'other' holds an unfinished restore"), "{half}");
    cluster.psql("postgres", "DROP DATABASE other");
    listed_and_let_go(&place, &first);
}

/// The damaged one is the newest, and still the good one after it is kept in its stead.
fn listed_and_let_go(place: &Place, first: &str) {
    let listed = place.run(&["list"]).expect(3);
    let says = format!("pgkeep verify {first}");
    assert!(
        listed.stdout.contains("DAMAGED") && listed.stderr.contains(&says),
        "{listed:?}"
    );
    let second = place.dump();
    let plan = place
        .run(&["prune", "--keep-daily", "1", "--json"])
        .expect(0)
        .json_lines();
    let goes = |id: &str| {
        plan.iter()
            .find(|line| line["id"] == id)
            .map(|line| line["keep"] == false)
    };
    assert_eq!(
        (goes(first), goes(&second)),
        (Some(true), Some(false)),
        "{plan:?}"
    );
}

/// The list of checksums has the manifest's, so no key is needed to see that it is damaged, nor that the list is cut short.
#[test]
fn a_damaged_manifest_is_found_without_the_key_and_not_copied() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    place.dump();
    let second = format!("file://{}", place.path("second").display());
    let list = place.object("checksums.b3");
    let whole = fs::read_to_string(&list).unwrap();
    let found = |what: &str| {
        for args in [
            &["verify", "--stored-only"][..],
            &["verify", "--stored-only", "--sample", "1%"],
        ] {
            let said = place.run(args).expect(1).stdout;
            assert!(said.contains("is damaged") && said.contains(what), "{said}");
        }
        place.run(&["copy", "latest", "--to", &second]).expect(1);
        let there = place.run(&["list", "--json", "--repository", &second]).expect(0);
        assert_eq!(there.stdout, "");
    };
    let (cut, _) = whole.trim_end().rsplit_once('\n').unwrap();
    fs::write(&list, format!("{cut}\n")).unwrap();
    found("it is cut short");
    fs::write(&list, &whole).unwrap();
    flip_last_byte(&place.object("/manifest"));
    found("manifest: its BLAKE3 hash");
}

/// What is missing is seen before anything is touched, and such a dump is no reason to let another one go.
#[test]
fn a_dump_without_all_its_objects_is_not_begun_with_and_pushes_no_other_out() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let into = cluster.tcp_conninfo("postgres");
    let [first, second] = [0; 2].map(|_| place.dump());
    let object = place
        .path("repository/main/dump")
        .join(&second)
        .join("d2/000001.sql.zst.age");
    let whole = fs::read(&object).unwrap();
    for cut in [true, false] {
        if cut {
            fs::write(&object, &whole[..whole.len() / 2]).unwrap();
        } else {
            fs::remove_file(&object).unwrap();
        }
        for dry_run in [true, false] {
            let mut args = vec![
                "restore",
                "--into",
                &into,
                "-d",
                "app",
                "--target-database",
                "other",
            ];
            args.extend(dry_run.then_some("--dry-run"));
            let said = place.run(&args).expect(1).stderr;
            assert!(
                said.contains("lacks") && said.contains("d2/000001.sql.zst.age"),
                "{said}"
            );
            assert!(
                said.contains(&format!("hint: 'pgkeep verify {second}'")),
                "{said}"
            );
        }
        let made = "SELECT count(*) FROM pg_database WHERE datname = 'other'";
        assert_eq!(cluster.psql("postgres", made), "0");
    }
    let plan = place
        .run(&["prune", "--keep-daily", "1", "--json"])
        .expect(0)
        .json_lines();
    let kept = |id: &str| plan.iter().any(|line| line["id"] == id && line["keep"] == true);
    assert!(kept(&first), "{plan:?}");
}

/// What an encrypted manifest is can be told by opening it alone: it takes no sound dump's place.
#[test]
fn a_dump_whose_manifest_cannot_be_opened_pushes_no_other_out() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let first = place.dump();
    let second = place.dump();
    let folder = place.path("repository").join("main/dump");
    flip_last_byte(&folder.join(&second).join("manifest"));
    let plan = place
        .run(&["prune", "--keep-daily", "1", "--json"])
        .expect(0)
        .json_lines();
    let kept = |id: &str| plan.iter().any(|line| line["id"] == id && line["keep"] == true);
    assert!(kept(&first), "{plan:?}");
    place.run(&["show", &first]).expect(0);
}

#[test]
fn the_wrong_key_opens_nothing_and_no_key_says_which_is_wanted() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    place.dump();
    place.run(&["key", "new", "--output", "other.key"]).expect(0);
    for command in [&["show"][..], &["verify"], &["restore", "--dry-run"]] {
        let args: Vec<&str> = command
            .iter()
            .copied()
            .chain(["--identity", "other.key"])
            .collect();
        let done = place.run(&args).expect(2);
        assert!(
            done.stderr.contains("none of the identities given opens"),
            "{}",
            done.stderr
        );
        assert!(
            done.stderr.contains(&place.recipient()),
            "it names the one that would: {}",
            done.stderr
        );
    }
    let done = place.run(&["verify", "--identity", "other.key"]).expect(2);
    assert!(
        done.stderr.contains("pgkeep verify --stored-only"),
        "{}",
        done.stderr
    );
    // What takes no key is told all the same.
    let id = place.run(&["list", "--json"]).expect(0).json()["id"].clone();
    for (key, told) in [
        ("other.key", "none of the identities given opens"),
        (
            "nothing.key",
            "going on without a secret key: could not read the identity file nothing.key",
        ),
    ] {
        let done = place.run(&["list", "--identity", key]).expect(0);
        assert!(done.stdout.contains(id.as_str().unwrap()), "{}", done.stdout);
        assert!(
            done.stderr.contains(told) && done.stderr.contains("--identity FILE"),
            "{}",
            done.stderr
        );
    }
    let listed = place.run(&["list", "--json"]).expect(0).json_lines();
    assert_eq!(
        listed[0]["verification"],
        Value::Null,
        "a wrong key says nothing about the dump"
    );

    let text = fs::read_to_string(place.path("pgkeep.toml")).unwrap();
    fs::write(
        place.path("host.toml"),
        text.replace("identity_file", "# identity_file"),
    )
    .unwrap();
    let done = place.run(&["show", "--config", "host.toml"]).expect(2);
    assert!(done.stderr.contains("--identity FILE"), "{}", done.stderr);
    // A host without the key takes dumps all the same.
    place.run(&["dump", "--config", "host.toml"]).expect(0);
    // One line of JSON for each.
    assert_eq!(
        place
            .run(&["verify", "all", "--json"])
            .expect(0)
            .json_lines()
            .len(),
        2
    );
}

#[test]
fn what_a_later_version_wrote_is_left_to_it() {
    let cluster = server();
    let place = Place::with(&cluster, Some("encryption = \"none\""));
    place.dump();
    let options = OpenOptions {
        identities: &[],
        recipients: &[],
        bytes_max: 1 << 20,
    };
    let path = place.object("/manifest");
    let manifest = String::from_utf8(open_bytes(&fs::read(&path).unwrap(), &options).unwrap()).unwrap();
    let sealed = |text: &str| seal_bytes(&Encryption::None, 3, text.as_bytes()).unwrap();

    assert!(manifest.starts_with("{\"format\":1,"), "{manifest}");
    fs::write(
        &path,
        sealed(&manifest.replacen("\"format\":1", "\"format\":99", 1)),
    )
    .unwrap();
    let done = place.run(&["show"]).expect(1);
    assert!(
        done.stderr.contains("format version 99") && done.stderr.contains("install the pgkeep"),
        "{}",
        done.stderr
    );
    // Nor is it let go, nor another one in its favour.
    let pruned = place.run(&["prune", "--keep-window", "0s"]).expect(1);
    assert!(pruned.stderr.contains("format version 99"), "{pruned:?}");
    assert!(path.exists());

    fs::write(&path, sealed(&manifest[..manifest.len() / 2])).unwrap();
    let done = place.run(&["show"]).expect(1);
    assert!(done.stderr.contains("is not readable"), "{}", done.stderr);

    // A manifest that names objects outside the dump's folder.
    fs::write(&path, sealed(&manifest.replace("d2/dependents", "../dependents"))).unwrap();
    let done = place.run(&["verify"]).expect(1);
    assert!(done.stdout.contains("is no name of an object"), "{}", done.stdout);
    fs::write(&path, sealed(&manifest)).unwrap();
    place.run(&["verify"]).expect(0);

    let marker = place.path("repository/pgkeep.json");
    let text = fs::read_to_string(&marker).unwrap();
    fs::write(&marker, text.replace("\"format\": 1", "\"format\": 99")).unwrap();
    for args in [&["list"][..], &["dump"], &["prune"]] {
        let done = place.run(args).expect(1);
        assert!(done.stderr.contains("format version 99"), "{}", done.stderr);
    }
}

/// As whoever can write to the store does it: with the right hash in the list.
fn replace_manifest(place: &Place, manifest: &[u8]) {
    let sealed = seal_bytes(&Encryption::None, 3, manifest).unwrap();
    let list = place.object("checksums.b3");
    let text = fs::read_to_string(&list).unwrap();
    let (others, _) = text.trim_end().rsplit_once('\n').unwrap();
    let hash = blake3::hash(&sealed).to_hex();
    fs::write(place.object("/manifest"), sealed).unwrap();
    fs::write(&list, format!("{others}\n{hash}  manifest\n")).unwrap();
}

/// Everything has the right hash, and the manifest says something else: only reading the contents finds it.
#[test]
fn what_the_manifest_says_is_held_against_the_rows() {
    let cluster = server();
    let place = Place::with(&cluster, Some("encryption = \"none\""));
    place.dump();
    let path = place.object("/manifest");
    let options = OpenOptions {
        identities: &[],
        recipients: &[],
        bytes_max: 1 << 20,
    };
    let original = open_bytes(&fs::read(&path).unwrap(), &options).unwrap();
    let lie = |change: &dyn Fn(&mut Value)| {
        let mut manifest: Value = serde_json::from_slice(&original).unwrap();
        change(&mut manifest["databases"][1]);
        replace_manifest(&place, manifest.to_string().as_bytes());
        assert_eq!(
            place.run(&["verify", "--stored-only"]).code,
            0,
            "the hashes are right"
        );
        place.run(&["verify"]).expect(1).stdout
    };
    let rows = lie(&|database| {
        database["data"][0]["segments"][0]["rows"] = 2999.into();
        database["relations"][0]["rows"] = 2999.into();
    });
    assert!(rows.contains("a block holds 3000 rows, not 2999"), "{rows}");
    let sum = lie(&|database| database["relations"][0]["rows"] = 2999.into());
    assert!(
        sum.contains("has 2999 rows") && sum.contains("hold 3000"),
        "{sum}"
    );
    let bytes = lie(&|database| {
        let bytes = database["data"][0]["segments"][0]["bytes"].as_u64().unwrap() - 1;
        database["data"][0]["segments"][0]["bytes"] = bytes.into();
        database["relations"][0]["plain_bytes"] = bytes.into();
    });
    assert!(bytes.contains("a block doesn't end where it should"), "{bytes}");
    let name = lie(&|database| database["relations"][0]["name"] = "gamers".into());
    assert!(name.contains("should have a block of public.gamers"), "{name}");
    let columns = lie(&|database| database["relations"][0]["columns"] = "\"id\"".into());
    assert!(
        columns.contains("should have a block of public.players"),
        "{columns}"
    );
    let hash = lie(&|database| database["relations"][0]["hash"] = "00".repeat(32).into());
    assert!(
        hash.contains("the rows of table public.players have the hash"),
        "{hash}"
    );
    let object = lie(&|database| database["data"][0]["hash"] = "00".repeat(32).into());
    assert!(object.contains("disagree about its hash"), "{object}");
    let gone = lie(&|database| {
        database["data"].as_array_mut().unwrap().clear();
    });
    assert!(gone.contains("its blocks hold 0 in 0"), "{gone}");
    replace_manifest(&place, &original);
    place.run(&["verify"]).expect(0);
    // Damage to the manifest itself is damage, and remembered.
    flip_last_byte(&path);
    let manifest = place.run(&["verify"]).expect(1).stdout;
    assert!(
        manifest.contains("is damaged") && manifest.contains("manifest"),
        "{manifest}"
    );
    assert!(place.run(&["list"]).stdout.contains("DAMAGED"));
}

/// A dump that is damaged in whatever way hides no other: each command goes on, names it, and says so by its exit code.
#[test]
fn a_damaged_dump_keeps_no_command_from_the_others() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let [rows, manifest, summary, good] = [0; 4].map(|_| place.dump());
    let folder = |id: &str| place.path("repository/main/dump").join(id);
    flip_last_byte(&folder(&rows).join("d2/000001.sql.zst.age"));
    fs::write(folder(&manifest).join("manifest"), "").unwrap();
    fs::remove_file(folder(&summary).join("summary")).unwrap();

    let listed = place.run(&["list"]).expect(3);
    for id in [&rows, &manifest, &summary, &good] {
        assert!(listed.stdout.contains(id.as_str()), "{}", listed.stdout);
    }
    for (id, what) in [
        (&manifest, "its manifest is damaged"),
        (&summary, "its summary can't be read"),
    ] {
        let said = format!("attention: {id}: {what}");
        assert!(listed.stderr.contains(&said), "{}", listed.stderr);
    }
    let states: Vec<(String, String)> = place
        .run(&["list", "--json"])
        .expect(3)
        .json_lines()
        .iter()
        .map(|entry| (entry["id"].to_string(), entry["state"].to_string()))
        .collect();
    assert!(states.contains(&(format!("\"{manifest}\""), "\"damaged\"".to_owned())));
    assert_eq!(
        states.iter().filter(|(_, state)| state == "\"complete\"").count(),
        3
    );
    let shown = place.run(&["show", &manifest]).expect(1);
    assert!(shown.stderr.contains("manifest"), "{}", shown.stderr);
    place.run(&["show", &good]).expect(0);
    for depth in [&["verify", "all"][..], &["verify", "all", "--stored-only"]] {
        let verified = place.run(depth).expect(1).stdout;
        for id in [&rows, &manifest, &summary] {
            assert!(verified.contains(&format!("{id} is damaged")), "{verified}");
        }
        assert!(verified.contains(&format!("{good} is good")), "{verified}");
    }

    let second = format!("file://{}", place.path("second").display());
    let copied = place.run(&["copy", "all", "--to", &second]).expect(1);
    assert!(
        copied.stderr.contains("3 backups of 4 could not be copied"),
        "{}",
        copied.stderr
    );
    let (_, summing_up) = copied.stderr.split_once("could not be copied").unwrap();
    assert!(
        [&rows, &manifest, &summary]
            .iter()
            .all(|id| summing_up.contains(id.as_str())),
        "{summing_up}"
    );
    let there = place
        .run(&["list", "--json", "--repository", &second])
        .expect(0)
        .json_lines();
    assert_eq!(
        there.iter().map(|entry| &entry["id"]).collect::<Vec<_>>(),
        [good.as_str()]
    );
    place.run(&["verify", "all", "--repository", &second]).expect(0);

    place.dump();
    place.run(&["prune", "--keep-daily", "1"]).expect(0);
    place.run(&["list"]).expect(0);
}

/// By a hand or a lifecycle rule: it is told, and stays.
#[test]
fn a_dump_whose_manifest_is_gone_is_told_and_not_swept() {
    let cluster = server();
    let mut place = Place::with(&cluster, None);
    for (name, value) in [
        ("PGKEEP_DUMP__SCHEDULE", "0 0 1 1 *"),
        ("PGKEEP_KEEP__DAILY", "1"),
    ] {
        place.environment.push((name.to_owned(), value.to_owned()));
    }
    let id = place.dump();
    place.run(&["verify", "--quiet"]).expect(0);
    let manifest = place.object("/manifest");
    let whole = fs::read(&manifest).unwrap();
    fs::remove_file(&manifest).unwrap();
    let objects = || files(&place.path("repository/main/dump").join(&id)).len();
    let before = objects();
    // The next dump sweeps what unfinished ones left.
    let told = |said: &str| {
        let to = format!("--to {}'", place.repository_url());
        for says in [&format!("{id}: its manifest is gone"), &to] {
            assert!(said.contains(says), "{says}: {said}");
        }
    };
    told(&place.run(&["run", "--once"]).expect(3).stderr);
    for args in [&["list"][..], &["prune"], &["prune", "--dry-run"]] {
        let done = place.run(args).expect(3);
        assert!(done.stdout.contains("its manifest is gone"), "{}", done.stdout);
        told(&done.stderr);
    }
    let list = place.run(&["list", "--json"]).expect(3).stdout;
    assert!(list.contains("\"manifest_gone\""), "{list}");
    assert_eq!(objects(), before);
    fs::write(&manifest, whole).unwrap();
    place.run(&["list"]).expect(0);
    place.run(&["verify", &id]).expect(0);
}

/// Keys come and go: what was written before one came is another key's, and sound.
#[test]
fn what_another_key_opens_is_not_damaged() {
    let cluster = server();
    let place = Place::with(&cluster, None);
    let old = place.dump();
    let first_key = fs::read_to_string(place.path("pgkeep.key")).unwrap();
    let earlier = place.recipient();
    fs::rename(place.path("pgkeep.key"), place.path("old.key")).unwrap();
    place.run(&["key", "new", "--output", "pgkeep.key"]).expect(0);
    let both = format!("recipients = [\"{earlier}\", \"{}\"]", place.recipient());
    place.configure(&cluster, &place.repository_url(), Some(&both));
    // As long as the newest is the other key's, the doctor says so.
    let doctor = place.run(&["doctor"]).stdout;
    assert!(
        doctor.contains(&format!("doesn't open the newest dump, {old}")),
        "{doctor}"
    );
    let new = place.dump();
    let verified = place.run(&["verify", "all"]).expect(3);
    assert!(
        verified.stdout.contains(&format!("{new} is good")),
        "{verified:?}"
    );
    assert!(
        verified.stderr.contains(&format!("{old} is not verified")) && !verified.stdout.contains("damaged"),
        "{verified:?}"
    );
    let told = place.run(&["verify", &old]).expect(2).stderr;
    assert!(told.contains("written for others"), "{told}");
    let listed = place.run(&["list"]).expect(0).stdout;
    assert!(!listed.contains("DAMAGED"), "{listed}");
    // Nothing goes for its sake, nor in its stead, where it can't be opened.
    place.run(&["prune", "--keep-window", "1s"]).expect(2);
    let keys = format!(
        "{first_key}{}",
        fs::read_to_string(place.path("pgkeep.key")).unwrap()
    );
    fs::write(place.path("pgkeep.key"), keys).unwrap();
    place.run(&["verify", "all"]).expect(0);

    // A header that is damaged is damage all the same: its hash says so.
    let manifest = place.path("repository/main/dump").join(&new).join("manifest");
    let mut bytes = fs::read(&manifest).unwrap();
    let stanza = b"-> X25519 ";
    for at in 0..bytes.len() - stanza.len() {
        if bytes[at..].starts_with(stanza) {
            let at = at + stanza.len();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        }
    }
    fs::write(&manifest, bytes).unwrap();
    let verified = place.run(&["verify", &new]).expect(1).stdout;
    assert!(verified.contains(&format!("{new} is damaged")), "{verified}");
}
