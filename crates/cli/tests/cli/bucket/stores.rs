//! Set up from nothing, twice, and with what some stores haven't got.

use jiff::Timestamp;
use pgkeep_base::Secret;
use pgkeep_repository::bucket::{Came, ClusterKept, Kept, Wanted, apply, examine};
use pgkeep_store::{S3Options, Store, StoreOptions};
use pgkeep_testkit::require;
use pgkeep_testkit::stores::{Moto, RcloneS3, SeaweedFs};

use super::{at_moto, check, configure, place, setting, settings, setup, to_set};

const ALL: [&str; 11] = [
    "bucket",
    "public access",
    "ownership",
    "encryption",
    "versioning",
    "Object Lock",
    "old versions",
    "unfinished uploads",
    "marks of deletion",
    "doctor's probes",
    "leases of main",
];

#[test]
fn a_bucket_is_made_and_set_up_and_nothing_is_left_to_do() {
    let moto = require!(Moto::start());
    let place = at_moto(&moto, "made", "");
    let asked = ["--object-lock", "governance:7", "--set", "s3.path_style=true"];
    let none = setup(&place, &asked).expect(2);
    let mend = "pgkeep bucket setup --object-lock governance:7 --set s3.path_style=true --create";
    assert!(none.stderr.contains(mend), "{}", none.stderr);

    let args = [
        "--create",
        "--object-lock",
        "governance:7",
        "--transition",
        "GLACIER_IR:10",
        "--json",
    ];
    let planned = setup(&place, &[&args[..], &["--dry-run"]].concat())
        .expect(0)
        .json();
    assert_eq!(to_set(&planned), [&ALL[..], &["dumps of main move"]].concat());
    assert_eq!(moto.get("/made?versioning").0, 404, "a dry run makes no bucket");

    let told = setup(&place, &args).expect(0).json();
    let applied = told["applied"].as_array().unwrap();
    assert!(applied.iter().all(|one| one["state"] == "done"), "{told}");
    for (query, says) in [
        ("versioning", "<Status>Enabled</Status>"),
        (
            "publicAccessBlock",
            "<RestrictPublicBuckets>true</RestrictPublicBuckets>",
        ),
        ("ownershipControls", "BucketOwnerEnforced"),
        ("encryption", "AES256"),
        ("object-lock", "<Days>7</Days>"),
        ("lifecycle", "pgkeep/main/lease/"),
        ("lifecycle", "<NoncurrentDays>30</NoncurrentDays>"),
        ("lifecycle", "<DaysAfterInitiation>7</DaysAfterInitiation>"),
        ("lifecycle", "GLACIER_IR"),
    ] {
        let (status, body) = moto.get(&format!("/made?{query}"));
        assert!(
            status == 200 && body.contains(says),
            "{query} without {says}: {body}"
        );
    }

    // Without keep everything is kept, and nobody asked for dumps to go.
    assert_eq!(setting(&told, "dumps of main")["wanted"], "stay", "{told}");
    assert!(!moto.get("/made?lifecycle").1.contains("<Days>30</Days>"));

    let before = settings(&moto, "made");
    let again = setup(&place, &["--create", "--object-lock", "governance:7"]).expect(0);
    assert!(again.stdout.contains("Nothing to do."), "{}", again.stdout);
    assert_eq!(settings(&moto, "made"), before);
    let right = check(&place, &["--object-lock", "governance:7"]).expect(0);
    assert!(
        right.stdout.contains("The bucket is right for backups."),
        "{}",
        right.stdout
    );

    // In another region, too.
    configure(&place, "abroad", "");
    setup(&place, &["--create", "--s3-region", "eu-central-1"]).expect(0);
    let (_, location) = moto.get("/abroad?location");
    assert!(location.contains("eu-central-1"), "{location}");
}

#[test]
fn a_dry_run_and_a_check_change_nothing() {
    let moto = require!(Moto::start());
    moto.bucket("untouched");
    let place = at_moto(&moto, "untouched", "keep = { window = \"30d\" }");
    let before = settings(&moto, "untouched");
    let dry = setup(&place, &["--dry-run"]).expect(0);
    assert!(
        dry.stdout.contains("would be set; nothing was."),
        "{}",
        dry.stdout
    );
    check(&place, &[]).expect(3);
    assert_eq!(settings(&moto, "untouched"), before);
    setup(&place, &[]).expect(0);
    assert_ne!(settings(&moto, "untouched"), before);
    check(&place, &[]).expect(0);
}

#[test]
fn what_is_stronger_already_stays_and_so_do_rules_of_others() {
    let moto = require!(Moto::start());
    moto.bucket("strong");
    let place = at_moto(&moto, "strong", "keep = { window = \"30d\" }");
    setup(
        &place,
        &[
            "--object-lock",
            "compliance:90",
            "--kms-key",
            "arn:aws:kms:us-east-1:1:key/k",
            "--noncurrent-days",
            "60",
        ],
    )
    .expect(0);
    let theirs = "<Rule><ID>theirs &amp; &lt;ours&gt;</ID><Status>Enabled</Status><Filter><And><Prefix>other/</Prefix><Tag><Key>a\
                  </Key><Value>b</Value></Tag></And></Filter><Expiration><Days>3</Days></Expiration></Rule>";
    let own = moto.get("/strong?lifecycle").1;
    let own = &own[own.find("<Rule>").unwrap()..own.rfind("</Rule>").unwrap() + "</Rule>".len()];
    moto.put(
        "/strong?lifecycle",
        &format!("<LifecycleConfiguration>{theirs}{own}</LifecycleConfiguration>"),
    );
    let before = settings(&moto, "strong");
    let nothing = setup(&place, &["--object-lock", "governance:30"]).expect(0);
    assert!(nothing.stdout.contains("Nothing to do."), "{}", nothing.stdout);
    assert_eq!(settings(&moto, "strong"), before);
    // Longer and not less strict.
    setup(
        &place,
        &["--object-lock", "governance:120", "--expire-dumps-after", "400"],
    )
    .expect(0);
    let lock = moto.get("/strong?object-lock").1;
    assert!(
        lock.contains("COMPLIANCE") && lock.contains("<Days>120</Days>"),
        "{lock}"
    );
    let rules = moto.get("/strong?lifecycle").1;
    for says in [
        "theirs &amp; &lt;ours&gt;",
        "other/",
        "<Days>3</Days>",
        "<Days>400</Days>",
        "<NoncurrentDays>60",
    ] {
        assert!(rules.contains(says), "{says}: {rules}");
    }
}

/// A plan may be as old as its reader's coffee; the rules are written by what they are then.
#[tokio::test]
async fn rules_that_others_changed_since_the_plan_stay_changed() {
    let moto = require!(Moto::start());
    moto.bucket("late");
    let key = || Some(Secret::new("test"));
    let options = StoreOptions {
        s3: S3Options {
            endpoint: Some(moto.endpoint.clone()),
            region: Some("us-east-1".to_owned()),
            access_key_id: key(),
            secret_access_key: key(),
            ..S3Options::default()
        },
        ..StoreOptions::default()
    };
    let store = Store::open("s3://late/pgkeep", &options).await.unwrap();
    let wanted = Wanted {
        clusters: vec![ClusterKept {
            name: "main".to_owned(),
            kept: Kept::default(),
        }],
        ..Wanted::default()
    };
    let theirs = |days: u32| {
        let rule = format!(
            "<LifecycleConfiguration><Rule><ID>theirs</ID><Status>Enabled</Status><Filter><Prefix>logs/</Prefix></Filter>\
             <Expiration><Days>{days}</Days></Expiration></Rule></LifecycleConfiguration>"
        );
        moto.put("/late?lifecycle", &rule);
    };
    theirs(3);
    let now = Timestamp::now();
    let planned = examine(&store, &wanted, false, now).await.unwrap();
    theirs(400);
    let set_up = apply(&store, &wanted, planned, now).await.unwrap();
    for one in &set_up.applied {
        assert!(matches!(one.came, Came::Done(_)), "{one:?}");
    }
    // Versioning came before the rules, and there were no old versions yet.
    let rules = moto.get("/late?lifecycle").1;
    for says in ["<Days>400</Days>", "pgkeep/main/lease/", "<NoncurrentDays>30<"] {
        assert!(rules.contains(says), "{says}: {rules}");
    }
}

/// SeaweedFS has versioning, lifecycle rules and encryption, and no public access block.
#[test]
fn what_seaweedfs_has_not_is_said_and_stops_nothing() {
    let server = require!(SeaweedFs::start());
    let keys = (server.access_key.as_str(), server.secret_key.as_str());
    let place = place(&server.endpoint, keys, "made", "keep = { window = \"30d\" }");
    let done = setup(&place, &["--create", "--object-lock", "governance:1"]).expect(0);
    assert!(done.stderr.contains("note: public access: "), "{}", done.stderr);
    assert!(done.stderr.contains("501 NotImplemented"), "{}", done.stderr);
    let told = check(&place, &["--json"]).expect(0).json();
    for (name, now) in [
        ("public access", "not supported"),
        ("versioning", "enabled"),
        ("encryption", "AES256"),
        ("Object Lock", "governance for 1 day"),
        ("leases of main", "go after 7 days"),
    ] {
        assert_eq!(setting(&told, name)["now"], now, "{told}");
    }
    let again = setup(&place, &[]).expect(0);
    assert!(again.stdout.contains("Nothing to do."), "{}", again.stdout);

    // What may not be seen isn't touched, and the permission is named.
    let keys = (
        server.write_only_access_key.as_str(),
        server.write_only_secret_key.as_str(),
    );
    let writer = super::place(&server.endpoint, keys, "made", "");
    let refused = setup(&writer, &[]).expect(3);
    assert!(
        refused.stderr.contains("lack s3:GetBucketVersioning"),
        "{}",
        refused.stderr
    );
    assert!(refused.stdout.contains("Nothing to do."), "{}", refused.stdout);
}

/// rclone knows none of it.
#[test]
fn what_rclone_has_not_is_said_with_what_it_costs() {
    let server = require!(RcloneS3::start());
    server.bucket("plain");
    let keys = (server.access_key.as_str(), server.secret_key.as_str());
    let place = place(&server.endpoint, keys, "plain", "");
    let done = setup(&place, &[]).expect(3);
    assert!(
        done.stderr
            .contains("versioning: the store didn't take it: it answers 501"),
        "{}",
        done.stderr
    );
    assert!(
        done.stderr
            .contains("what is deleted by mistake or malice is gone"),
        "{}",
        done.stderr
    );
    let told = check(&place, &["--json"]).expect(3).json();
    for name in ["public access", "ownership", "encryption", "lifecycle rules"] {
        let told = setting(&told, name);
        assert_eq!(
            (&told["action"], &told["severity"]),
            (&"unsupported".into(), &"info".into())
        );
    }
    // What was asked for and can't be had needs attention.
    let asked = check(&place, &["--expire-dumps-after", "30", "--json"])
        .expect(3)
        .json();
    assert_eq!(setting(&asked, "lifecycle rules")["severity"], "warning");
}
