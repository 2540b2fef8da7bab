//! Rows near the gibibyte that is PostgreSQL's own limit.

use pgkeep_testkit::{Cluster, ClusterOptions, require, requirements};

use crate::memory::measured;
use crate::support::Place;

const VALUE_BYTES: u64 = 300 << 20;
/// Bytes that don't compress.
const WIDE: &str = "
    CREATE TABLE wide (value bytea); ALTER TABLE wide ALTER value SET STORAGE EXTERNAL;
    INSERT INTO wide SELECT string_agg(sha512(n::text::bytea), '') FROM generate_series(1, 300 << 14) n;";
/// Each value can be stored and read. A row of both can be stored, and not be sent.
const TOO_WIDE: &str = "
    CREATE TABLE too_wide (a text, b text);
    ALTER TABLE too_wide ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL;
    INSERT INTO too_wide (a) SELECT repeat('x', 600 << 20);
    UPDATE too_wide SET b = repeat('y', 600 << 20);";
const HASH: &str = "SELECT octet_length(value), sha256(value) FROM wide";

#[test]
fn a_row_of_300_mebibytes_comes_back_and_one_that_cannot_be_sent_is_told() {
    require!(requirements::long());
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.create_database("app");
    cluster.psql("app", WIDE);
    let place = Place::with(&cluster, None);
    let into = cluster.tcp_conninfo("postgres");
    let restore = [
        "restore",
        "-d",
        "app",
        "--into",
        &into,
        "--target-database",
        "again",
    ];
    for args in [&["dump"][..], &["verify"], &restore] {
        let (done, peak_bytes) = measured(&place, args);
        done.expect(0);
        eprintln!("{args:?}: {} MiB", peak_bytes >> 20);
        // Its object is held whole once, and what else a command takes is as always.
        assert!(
            peak_bytes < VALUE_BYTES + (128 << 20),
            "{args:?}: {} MiB",
            peak_bytes >> 20
        );
    }
    assert_eq!(cluster.psql("again", HASH), cluster.psql("app", HASH));

    cluster.psql("app", TOO_WIDE);
    let told = place.run(&["dump"]).expect(1).stderr;
    assert!(
        told.contains("reading table public.too_wide of database 'app'"),
        "{told}"
    );
    let mend = ["--exclude-table-data", "\"public\".\"too_wide\""];
    assert!(told.contains(&format!("{} '{}'", mend[0], mend[1])), "{told}");
    place.run(&[&["dump"], &mend[..]].concat()).expect(0);
}
