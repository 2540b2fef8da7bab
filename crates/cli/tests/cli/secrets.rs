//! No secret leaves the program: not to standard output or error, however much it is asked to say, and not into the
//! repository. `Place::done` looks for the password and for secret keys in what every command prints.

use std::path::Path;
use std::process::Command;

use pgkeep_testkit::{Cluster, ClusterOptions, require, requirements};

use crate::support::{PASSWORD, Place, files, server, server_with};

/// Commands that read, write, succeed and fail, with and without `--json`, and how each ends.
const COMMANDS: &[(&str, i32)] = &[
    ("dump", 0),
    ("dump --json", 0),
    ("dump --format plain --output all.sql.gz", 0),
    ("dump --format directory --output app -d app", 0),
    ("dump -d nowhere", 2),
    ("list --all", 0),
    ("show --tables --json", 0),
    ("verify all", 0),
    ("verify --stored-only --json", 0),
    ("pin latest --reason kept", 0),
    ("prune --dry-run --keep-daily 1", 0),
    ("prune --keep-daily 1", 0),
    ("copy all --to SECOND", 0),
    ("export --output folder", 0),
    ("export --format plain --output whole.sql", 0),
    ("restore --dry-run", 0),
    ("restore -d app --target-database app2 --into", 0),
    ("restore -d app --target-database app2 --into", 4),
    ("restore --into files:all", 0),
    ("doctor", 3),
    ("doctor --json", 3),
    ("doctor --pg-bni", 2),
    ("show nothing", 2),
];

#[test]
fn nothing_prints_a_password_or_a_key() {
    let options = ClusterOptions::default().hba_line("host all guarded 127.0.0.1/32 scram-sha-256");
    let cluster = server_with(options);
    cluster.psql(
        "postgres",
        &format!("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '{PASSWORD}'"),
    );
    let mut place = Place::with(&cluster, Some("encryption = \"none\""));
    let uri = format!(
        "postgres://guarded:{PASSWORD}@127.0.0.1:{}/postgres",
        cluster.port()
    );
    let keywords = format!(
        "host=127.0.0.1 port={} user=guarded password={PASSWORD} dbname=postgres",
        cluster.port()
    );
    // Where a secret may stand and isn't needed for these commands.
    let key = std::fs::read_to_string(place.path("pgkeep.key")).unwrap();
    let key = key
        .lines()
        .find(|line| line.starts_with("AGE-SECRET-KEY-1"))
        .unwrap();
    for (name, value) in [
        ("PGKEEP_S3__SECRET_ACCESS_KEY", PASSWORD),
        ("PGKEEP_S3__SESSION_TOKEN", PASSWORD),
        ("PGKEEP_AZURE__ACCESS_KEY", PASSWORD),
        ("PGKEEP_AZURE__SAS_TOKEN", PASSWORD),
        ("PGKEEP_IDENTITY", key),
        ("PGPASSWORD", PASSWORD),
        ("RUST_LOG", "trace"),
    ] {
        place.environment.push((name.to_owned(), value.to_owned()));
    }
    let second = format!("file://{}", place.path("second").display());
    for (number, (command, code)) in COMMANDS.iter().enumerate() {
        let connection = if number % 2 == 0 { &uri } else { &keywords };
        let command = command.replace("SECOND", &second);
        let mut args: Vec<&str> = command.split(' ').collect();
        if command.ends_with("--into") {
            args.push(connection);
        }
        args.extend(["--connection", connection, ["-vv", "-vvv"][number % 2]]);
        place.run(&args).expect(*code);
    }
    // The configuration's own password is in its errors as little.
    let broken = place.run(&[
        "dump",
        "--connection",
        &format!("host=x password={PASSWORD} prot=1"),
    ]);
    assert!(broken.expect(2).stderr.contains("unknown connection parameter"));
    assert_eq!(holds(&place.path("repository"), PASSWORD), Vec::<String>::new());
    assert_eq!(holds(&place.path("second"), PASSWORD), Vec::<String>::new());
}

/// Objects that hold a text, decompressed where they are compressed.
fn holds(folder: &Path, text: &str) -> Vec<String> {
    let objects = files(folder);
    assert!(objects.len() > 5, "{objects:?}");
    let zstd = requirements::tool("zstd").unwrap();
    let found = objects.into_iter().filter(|path| {
        let opened = Command::new(&zstd)
            .args(["-dcfq"])
            .arg(path)
            .output()
            .unwrap()
            .stdout;
        opened.windows(text.len()).any(|window| window == text.as_bytes())
    });
    found.map(|path| path.display().to_string()).collect()
}

/// pg_restore repeats the statement that failed, and some statements hold passwords.
#[test]
fn a_statement_that_fails_is_not_repeated_with_its_password() {
    let source = server_with(ClusterOptions::default());
    source.psql(
        "app",
        &format!(
            "CREATE ROLE mapped; CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER far FOREIGN DATA WRAPPER nothing;
             CREATE USER MAPPING FOR mapped SERVER far OPTIONS (\"user\" 'u', password '{PASSWORD}');"
        ),
    );
    let place = Place::with(&source, None);
    place.dump();
    let target = Cluster::start(ClusterOptions::default()).unwrap();
    let into = target.tcp_conninfo("postgres");
    let failed = place
        .run(&[
            "restore",
            "--into",
            &into,
            "-d",
            "app",
            "--no-roles",
            "--no-owner",
            "-vv",
        ])
        .expect(1);
    assert!(
        failed.stderr.contains("\"mapped\" does not exist")
            && failed.stderr.contains("CREATE USER MAPPING ..."),
        "{}",
        failed.stderr
    );
}

#[test]
fn what_is_typed_wrong_is_not_repeated_with_a_password() {
    let place = Place::new();
    for args in [
        vec!["dump", "--connection", "host=h", &format!("password={PASSWORD}")],
        vec!["list", "--set", &format!("s3.secret_access_key:{PASSWORD}")],
        vec!["list", &format!("postgres://u:{PASSWORD}@h/d")],
        vec!["dump", &format!("--jobs=postgres://u:{PASSWORD}@h/d")],
    ] {
        let done = place.run(&args).expect(2);
        assert!(done.stderr.contains("[not shown]"), "{}", done.stderr);
    }
}

/// A store's own errors name URLs, and some URLs hold signatures.
#[test]
fn errors_of_stores_hold_no_secret() {
    require!(requirements::long());
    let mut place = Place::new();
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", PASSWORD),
        ("AWS_SECRET_ACCESS_KEY", PASSWORD),
        ("PGKEEP_S3__ENDPOINT", "http://127.0.0.1:1"),
        ("PGKEEP_S3__REGION", "us-east-1"),
        ("PGKEEP_AZURE__ACCOUNT", "account"),
        ("PGKEEP_AZURE__ENDPOINT", "http://127.0.0.1:1"),
        (
            "PGKEEP_AZURE__SAS_TOKEN",
            &format!("sv=2024-01-01&sig={PASSWORD}"),
        ),
    ] {
        place.environment.push((name.to_owned(), value.to_owned()));
    }
    for url in ["s3://bucket/x", "az://container/x"] {
        place.run(&["list", "--repository", url, "-vvv"]).expect(1);
    }
}

/// A setting that is refused, or not made at all, is named, and its value is not.
#[test]
fn values_of_settings_that_cannot_be_made_are_not_printed() {
    let cluster = server();
    cluster.psql(
        "postgres",
        &format!(
            "CREATE ROLE app_role; CREATE ROLE restorer LOGIN CREATEDB;
             ALTER ROLE ALL SET app.token TO '{PASSWORD}';
             ALTER DATABASE app SET app.key TO '{PASSWORD}';
             ALTER ROLE app_role IN DATABASE app SET app.key TO '{PASSWORD}';
             ALTER DATABASE app SET work_mem TO '5MB'"
        ),
    );
    let place = Place::with(&cluster, None);
    place.dump();
    place.run(&["show", "--tables"]).expect(0);
    let shown = place.run(&["show", "--json"]).expect(0).json();
    let mut settings: Vec<(String, String)> = shown["manifest"]["databases"][1]["properties"]["settings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|setting| (setting["name"].to_string(), setting["value"].to_string()))
        .collect();
    settings.sort();
    let expected = [("app.key", "null"), ("app.key", "null"), ("work_mem", "\"5MB\"")];
    assert_eq!(
        settings,
        expected.map(|(name, value)| (format!("\"{name}\""), value.to_owned()))
    );

    // As on another server, which doesn't have it yet.
    cluster.psql("postgres", "ALTER ROLE ALL RESET app.token");

    let superuser = cluster.tcp_conninfo("postgres");
    let restore = |into: &str, name: &str| {
        let args = ["restore", "--into", into, "-d", "app", "--target-database", name];
        let more = if into == superuser {
            &[][..]
        } else {
            &["--no-roles", "--no-owner"]
        };
        place.run(&[&args[..], more].concat()).expect(3).stderr
    };
    // The server has other databases, whose sessions the setting would change.
    let told = restore(&superuser, "second");
    assert!(told.contains("ALTER ROLE ALL SET \"app\".\"token\""), "{told}");
    let told = restore(&superuser.replace("user=postgres", "user=restorer"), "third");
    let shown = "ALTER ROLE \"app_role\" IN DATABASE \"third\" SET \"app\".\"key\": ERROR: permission denied";
    assert!(told.contains(shown), "{told}");
    assert!(
        told.contains("ALTER DATABASE \"third\" SET \"app\".\"key\": ERROR"),
        "{told}"
    );
}
