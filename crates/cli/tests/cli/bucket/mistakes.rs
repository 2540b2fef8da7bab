//! Mistakes that were made on purpose, and what is refused.

use std::fs;

use pgkeep_testkit::require;
use pgkeep_testkit::stores::Moto;

use super::{at_moto, check, configure, place, setting, settings, setup, to_set};
use crate::support::Place;

fn rule(id: &str, prefix: &str, days: u32) -> String {
    format!(
        "<Rule><ID>{id}</ID><Status>Enabled</Status><Filter><Prefix>{prefix}</Prefix></Filter><Expiration><Days>{days}</Days>\
         </Expiration></Rule>"
    )
}

fn put_rules(moto: &Moto, bucket: &str, rules: &str) {
    let text = format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>");
    moto.put(&format!("/{bucket}?lifecycle"), &text);
}

/// Each mistake alone is found, named, and mended by the setup.
#[test]
fn every_mistake_is_found_and_mended() {
    // Of old versions that nothing ends, none goes unasked.
    const ASKED: [&str; 2] = ["--noncurrent-days", "30"];
    let moto = require!(Moto::start());
    moto.bucket("faulty");
    let place = at_moto(&moto, "faulty", "keep = { window = \"30d\" }");
    setup(&place, &ASKED).expect(0);
    let right = settings(&moto, "faulty");
    let block = "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls></PublicAccessBlockConfiguration>";
    let owner =
        "<OwnershipControls><Rule><ObjectOwnership>ObjectWriter</ObjectOwnership></Rule></OwnershipControls>";
    let suspended = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";
    let mistakes = [
        ("PUT", "versioning", suspended, "versioning"),
        ("PUT", "publicAccessBlock", block, "public access"),
        ("DELETE", "publicAccessBlock", "", "public access"),
        ("PUT", "ownershipControls", owner, "ownership"),
        ("DELETE", "encryption", "", "encryption"),
        ("DELETE", "lifecycle", "", "old versions"),
    ];
    for (method, query, body, name) in mistakes {
        let (status, said) = moto.request(method, &format!("/faulty?{query}"), body);
        assert!((200..300).contains(&status), "{query}: {status} {said}");
        let told = check(&place, &[&ASKED[..], &["--json"]].concat())
            .expect(3)
            .json();
        assert!(to_set(&told).contains(&name), "{name}: {told}");
        assert!(query == "lifecycle" || to_set(&told).len() == 1, "{name}: {told}");
        assert_eq!(
            setting(&told, name)["mend"],
            "pgkeep bucket setup --noncurrent-days 30",
            "{told}"
        );
        let said = check(&place, &ASKED).expect(3).stderr;
        assert!(said.contains(&format!("attention: {name}: ")), "{said}");
        setup(&place, &ASKED).expect(0);
        assert_eq!(settings(&moto, "faulty"), right, "{name}");
    }
    let told = check(&place, &["--object-lock", "governance:7", "--json"])
        .expect(3)
        .json();
    let lock = setting(&told, "Object Lock");
    assert_eq!((&lock["now"], &lock["action"]), (&"off".into(), &"set".into()));
    assert_eq!(lock["mend"], "pgkeep bucket setup --object-lock governance:7");
}

#[test]
fn a_rule_that_contradicts_keep_is_refused_and_found() {
    let moto = require!(Moto::start());
    moto.bucket("torn");
    let incremental = "keep = { window = \"30d\" }\ndump = { incremental = true }";
    let place = at_moto(&moto, "torn", incremental);
    let before = settings(&moto, "torn");
    let refused = setup(&place, &["--expire-dumps-after", "37"]).expect(4);
    assert!(
        refused.stderr.contains("--expire-dumps-after 38"),
        "{}",
        refused.stderr
    );
    assert!(
        refused.stderr.contains("dump.reuse_max_age"),
        "{}",
        refused.stderr
    );
    assert_eq!(settings(&moto, "torn"), before);
    setup(&place, &["--expire-dumps-after", "38"]).expect(0);
    check(&place, &[]).expect(0);

    // What was right becomes wrong when more is to be kept; the setup takes its own rule back.
    configure(
        &place,
        "torn",
        "keep = { monthly = 6 }\ndump = { incremental = true, reuse_max_age = \"14d\" }",
    );
    let told = check(&place, &["--json"]).expect(3).json();
    assert_eq!(setting(&told, "dumps of main")["now"], "go after 38 days");
    assert_eq!(setting(&told, "dumps of main")["wanted"], "stay");
    setup(&place, &[]).expect(0);
    check(&place, &[]).expect(0);

    // Without keep everything is kept, and needed by what builds on it.
    configure(&place, "torn", "dump = { incremental = true }");
    let never = setup(&place, &["--expire-dumps-after", "9999"]).expect(4);
    assert!(never.stderr.contains("keep.window"), "{}", never.stderr);
}

#[test]
fn rules_of_others_that_tear_backups_apart_are_left_to_them() {
    let moto = require!(Moto::start());
    moto.bucket("shared");
    let place = at_moto(&moto, "shared", "keep = { window = \"30d\" }");
    setup(&place, &[]).expect(0);
    for (prefix, says) in [
        ("pgkeep/main/dump/", "after 10 days, 38 would do"),
        ("", "expires objects after 10 days"),
    ] {
        put_rules(&moto, "shared", &rule("theirs", prefix, 10));
        let told = check(&place, &["--json"]).expect(3).json();
        let found = setting(&told, "lifecycle rules");
        assert!(found["now"].as_str().unwrap().contains(says), "{found}");
        assert_eq!(
            (&found["action"], &found["severity"]),
            (&"by_hand".into(), &"error".into())
        );
        // Set up as far as it goes, and said again.
        let done = setup(&place, &[]).expect(3);
        assert!(done.stderr.contains("'theirs'"), "{}", done.stderr);
        assert!(moto.get("/shared?lifecycle").1.contains("theirs"));
        // The doctor has it by the same comparison.
        let doctor = place.run(&["doctor", "--json"]).expect(1);
        let finding = doctor.json_lines().into_iter().find(|finding| {
            finding["what"]
                .as_str()
                .is_some_and(|what| what.contains("'theirs'"))
        });
        assert_eq!(finding.unwrap()["severity"], "error", "{}", doctor.stdout);
    }
}

/// What another rule overrules isn't done, whatever was written.
#[test]
fn a_wish_that_a_rule_of_others_overrules_is_told() {
    let moto = require!(Moto::start());
    moto.bucket("overruled");
    let place = at_moto(&moto, "overruled", "");
    let old = "<Rule><ID>old</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter><NoncurrentVersionExpiration>\
               <NoncurrentDays>30</NoncurrentDays></NoncurrentVersionExpiration></Rule>";
    let theirs = format!("{}{old}", rule("theirs", "pgkeep/main/dump/", 31));
    put_rules(&moto, "overruled", &theirs);
    setup(&place, &[]).expect(0);
    check(&place, &[]).expect(0);
    for (wish, says) in [
        (
            ["--noncurrent-days", "60"],
            "'old' deletes old versions after 30 days, before 60 days",
        ),
        (
            ["--expire-dumps-after", "40"],
            "'theirs' expires objects below 'pgkeep/main/dump/' after 31 days",
        ),
        (
            ["--expire-dumps-after", "never"],
            "'theirs' expires objects below 'pgkeep/main/dump/' after 31 days",
        ),
    ] {
        for done in [setup(&place, &wish).expect(3), check(&place, &wish).expect(3)] {
            assert!(done.stderr.contains(says), "{wish:?}: {}", done.stderr);
        }
    }
}

#[test]
fn dumps_that_are_there_do_not_go_by_default_and_those_of_other_clusters_stay() {
    let moto = require!(Moto::start());
    moto.bucket("old");
    moto.put("/old/pgkeep/main/dump/d20240101T000000Z-0a0a0a/manifest", "{}");
    let place = at_moto(&moto, "old", "");
    let told = setup(&place, &["--json"]).expect(0).json();
    let dumps = setting(&told, "dumps of main");
    assert_eq!(dumps["wanted"], "stay", "{told}");
    assert_eq!(dumps["why"], "", "{told}");
    assert!(!moto.get("/old?lifecycle").1.contains("main/dump/"));
    let dry = setup(&place, &["--expire-dumps-after", "30", "--dry-run"]).expect(0);
    for says in ["1 of the dumps there are older", "nothing here says what is kept"] {
        assert!(dry.stderr.contains(says), "{}", dry.stderr);
    }

    clusters_of_one_repository_are_set_up_together(&moto);
}

#[test]
fn what_does_not_fit_together_is_refused_with_the_reason() {
    // Nobody has to be asked.
    let place = place("http://127.0.0.1:1", ("a", "b"), "refused", "");
    for (args, says) in [
        (&["--transition", "GLACIER:30"][..], "hours of waiting"),
        (&["--transition", "STANDARD_IA:10"], "before it is 30 days old"),
        (
            &["--transition", "GLACIER_IR:30", "--expire-dumps-after", "30"],
            "before they are moved",
        ),
        (
            &["--object-lock", "governance:90", "--expire-dumps-after", "30"],
            "locked for 90 days",
        ),
        (&["--transition", "GLACIER_IR"], "CLASS:DAYS"),
        (&["--expire-dumps-after", "0"], "or never"),
    ] {
        let refused = setup(&place, args).expect(2);
        assert!(refused.stderr.contains(says), "{args:?}: {}", refused.stderr);
    }
    for (url, says) in [
        ("gs://bucket/pgkeep", "gcloud storage buckets update"),
        ("az://container@account/pgkeep", "az storage account"),
        ("file:///srv/backups", "chmod 700"),
    ] {
        let mut place = Place::new();
        for variable in ["GOOGLE_SKIP_SIGNATURE", "AZURE_SKIP_SIGNATURE"] {
            place.environment.push((variable.to_owned(), "true".to_owned()));
        }
        let text = format!("[cluster.main]\nrepository = \"{url}\"\n");
        fs::write(place.path("pgkeep.toml"), text).unwrap();
        let refused = check(&place, &[]).expect(2);
        assert!(refused.stderr.contains(says), "{url}: {}", refused.stderr);
    }
}

fn clusters_of_one_repository_are_set_up_together(moto: &Moto) {
    moto.bucket("two");
    let place = at_moto(
        moto,
        "two",
        "keep = { window = \"30d\" }\n[cluster.other]\nrepository = \"s3://two/pgkeep\"\nkeep = { yearly = 1 }",
    );
    let refused = setup(&place, &["--expire-dumps-after", "40"]).expect(4);
    assert!(
        refused.stderr.contains("--expire-dumps-after 374"),
        "{}",
        refused.stderr
    );
    setup(&place, &["--expire-dumps-after", "374"]).expect(0);
    let rules = moto.get("/two?lifecycle").1;
    for prefix in [
        "pgkeep/main/lease/",
        "pgkeep/other/lease/",
        "pgkeep/main/dump/",
        "pgkeep/other/dump/",
    ] {
        assert!(rules.contains(prefix), "{prefix}: {rules}");
    }
    let one = setup(&place, &["--cluster", "main", "--expire-dumps-after", "40"]).expect(0);
    assert!(one.stdout.contains("Set 1 setting."), "{}", one.stdout);
    assert!(moto.get("/two?lifecycle").1.contains("<Days>374</Days>"));
}
