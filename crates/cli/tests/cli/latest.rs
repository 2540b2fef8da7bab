//! What `latest` means when some dumps hold less than others.

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

/// Ids are ordered by their second.
fn dump(place: &Place, args: &[&str]) -> String {
    let before = std::time::SystemTime::now();
    let second = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let args = [&["dump", "--quiet"], args].concat();
    let id = place.run(&args).expect(0).stdout.trim().to_owned();
    pgkeep_testkit::poll_until("the next second", std::time::Duration::from_secs(5), || {
        second(std::time::SystemTime::now()) > second(before) + 1
    });
    id
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
    let text = std::fs::read_to_string(&path).unwrap();
    let dump = "dump = { databases = [\"app\"], exclude_table_data = [\"scores\"] }\n";
    std::fs::write(&path, text + dump).unwrap();
    let id = place.dump();
    assert_eq!(planned(&place, &[]), (id.clone(), Vec::new()));
    assert_eq!(planned(&place, &["-t", "pl*"]).0, id);
}
