//! From nothing to a first dump that is proven, with everything that brings it back.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pgkeep_testkit::{Cluster, ClusterOptions, Missing, poll_until, require, requirements};

use crate::support::{PASSWORD, PLAYERS, Place, files, server, server_with};

const LIMIT: Duration = Duration::from_secs(120);

/// A server that wants a password.
fn guarded() -> Cluster {
    let cluster =
        server_with(ClusterOptions::default().hba_line("host all guarded 127.0.0.1/32 scram-sha-256"));
    let role = format!("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '{PASSWORD}'");
    cluster.psql("postgres", &role);
    cluster
}

/// An empty folder, on another disk than the server's where there is one in memory.
fn empty() -> Place {
    let place = Place::in_memory();
    fs::remove_file(place.path("pgkeep.key")).unwrap();
    place
}

fn pg_bin(cluster: &Cluster) -> String {
    format!("pg_bin={}", cluster.pg_bin().display())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn from_a_connection_to_a_proven_dump_and_back_by_the_kit_alone() {
    let cluster = guarded();
    let place = empty();
    let uri = format!(
        "postgres://guarded:{PASSWORD}@127.0.0.1:{}/postgres",
        cluster.port()
    );
    let repository = place.repository_url();
    let set = pg_bin(&cluster);
    let args = [
        "init",
        "--connection",
        &uri,
        "--repository",
        &repository,
        "--set",
        &set,
        "--set",
        "dump.jobs=2",
        "--set",
        "keep.daily=3",
    ];
    let done = place.run(&args).expect(0);
    for says in [
        "read back whole",
        "Recovery kit",
        "pgkeep.toml is written",
        "app (",
    ] {
        assert!(done.stdout.contains(says), "{says}: {}", done.stdout);
    }

    // The password is where only its owner reads it, and the configuration works without this shell.
    let config = fs::read_to_string(place.path("pgkeep.toml")).unwrap();
    assert!(
        !config.contains(PASSWORD) && config.lines().count() <= 12,
        "{config}"
    );
    for says in ["schedule = \"0 2 * * *\", jobs = 2 }", "daily = 3, weekly = 4"] {
        assert!(config.contains(says), "{config}");
    }
    assert!(
        fs::read_to_string(place.path("pgkeep.pass"))
            .unwrap()
            .contains(PASSWORD)
    );
    for file in ["pgkeep.toml", "pgkeep.pass", "pgkeep.key"] {
        assert_eq!(mode(&place.path(file)), 0o600, "{file}");
    }
    place.run(&["doctor"]).expect(0);
    place.run(&["dump", "--quiet"]).expect(0);
    let shown = place.run(&["show", "--json"]).expect(0).json();
    assert!(shown.to_string().contains("\"app\""), "{shown}");

    // What is there stays.
    let before = fs::read(place.path("pgkeep.key")).unwrap();
    let again = place.run(&args).expect(4);
    assert!(again.stderr.contains("never overwritten"), "{}", again.stderr);
    assert_eq!(fs::read(place.path("pgkeep.key")).unwrap(), before);

    back_by_the_kit(&done.stdout, &before);
}

/// What is on another machine: what was printed, and the key.
fn back_by_the_kit(printed: &str, key: &[u8]) {
    let elsewhere = empty();
    fs::write(elsewhere.path("pgkeep.key"), key).unwrap();
    let target = Cluster::start(ClusterOptions::default()).unwrap();
    let connection = target.tcp_conninfo("postgres");
    let is_one = |line: &&str| {
        let verbs = ["list", "verify", "restore"];
        verbs
            .iter()
            .any(|verb| line.starts_with(&format!("pgkeep {verb} ")))
    };
    let commands: Vec<&str> = printed.lines().map(str::trim).filter(is_one).collect();
    assert_eq!(commands.len(), 3, "{printed}");
    let set = pg_bin(&target);
    for command in commands {
        let mut args: Vec<&str> = command
            .split(' ')
            .skip(1)
            .filter(|word| !word.is_empty())
            .collect();
        if let Some(image) = args.iter_mut().find(|word| word.starts_with("image:postgres:16")) {
            *image = &connection;
        }
        args.extend(["--set", &set]);
        elsewhere.run(&args).expect(0);
    }
    assert_eq!(
        target.psql("app", "SELECT count(*) FROM players"),
        PLAYERS.to_string()
    );
}

#[test]
fn with_a_public_key_alone_or_without_a_dump() {
    let cluster = server();
    let place = empty();
    place.run(&["key", "new", "--output", "away.key"]).expect(0);
    let recipient = place.run(&["key", "show", "away.key"]).expect(0).stdout;
    let connection = cluster.tcp_conninfo("app");
    let url = place.repository_url();
    let set = pg_bin(&cluster);
    let common = [
        "--connection",
        &connection,
        "--repository",
        &url,
        "--set",
        &set,
        "--json",
    ];
    let args = [
        "init",
        "--recipient",
        recipient.trim(),
        "--cluster",
        "game.pulse",
        "--schedule",
        "@daily",
    ];
    let made = place.run(&[&args[..], &common].concat()).expect(0).json();
    assert_eq!(made["verified"], true);
    assert_eq!(made["identity_file"], serde_json::Value::Null);
    assert_eq!(made["recipients"][0], recipient.trim());
    place.run(&["verify", "--identity", "away.key"]).expect(0);
    let config = fs::read_to_string(place.path("pgkeep.toml")).unwrap();
    assert!(
        config.contains("[cluster.\"game.pulse\"]") && config.contains("\"@daily\""),
        "{config}"
    );

    let args = [
        "init",
        "--config",
        "second.toml",
        "--key",
        "away.key",
        "--no-dump",
        "--cluster",
        "second",
    ];
    let made = place.run(&[&args[..], &common].concat()).expect(0).json();
    assert_eq!(
        (&made["dump"], &made["verified"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
    assert_eq!(made["recipients"][0], recipient.trim());
    place.run(&["dump", "--config", "second.toml"]).expect(0);
    let bad = ["init", "--config", "third.toml", "--schedule", "61 * * * *"];
    place.run(&[&bad[..], &common].concat()).expect(2);
    assert!(!place.path("third.toml").exists());
}

/// The folder's files, hidden ones aside.
fn left(place: &Place) -> Vec<String> {
    let all = files(place.folder.path());
    all.iter().map(|path| path.display().to_string()).collect()
}

#[test]
fn what_has_to_be_mended_first_is_told_and_nothing_is_left() {
    let cluster = guarded();
    let place = empty();
    let uri = format!(
        "postgres://guarded:{PASSWORD}@127.0.0.1:{}/postgres",
        cluster.port()
    );
    let url = place.repository_url();
    cluster.create_database("torn");
    cluster.psql("torn", "CREATE SCHEMA x; CREATE TABLE x.t (i int)");
    cluster.psql("postgres", "CREATE ROLE reader LOGIN");
    let reader = format!(
        "host=127.0.0.1 port={} user=reader dbname=postgres",
        cluster.port()
    );
    let set = pg_bin(&cluster);
    for (args, code, says) in [
        (
            vec![
                "--connection",
                &uri,
                "--repository",
                &url,
                "--set",
                "pg_bin=/nonexistent",
            ],
            1,
            "pg_dump",
        ),
        (
            vec!["--connection", &reader, "--repository", &url, "--set", &set],
            1,
            "GRANT",
        ),
        (vec!["--connection", &uri], 2, "--repository URL"),
        (
            vec![
                "--connection",
                "host=127.0.0.1 port=1 user=x",
                "--repository",
                &url,
            ],
            1,
            "pg_isready",
        ),
    ] {
        let done = place.run(&[&["init"], &args[..]].concat()).expect(code);
        let told = format!("{}{}", done.stdout, done.stderr);
        assert!(told.contains(says), "{says}: {told}");
        assert_eq!(left(&place), Vec::<String>::new(), "{args:?}");
    }
}

#[test]
fn a_name_that_another_server_had_is_taken_over_only_if_that_is_said() {
    let place = empty();
    let url = place.repository_url();
    let init = |cluster: &Cluster, more: &[&str]| {
        let connection = cluster.tcp_conninfo("postgres");
        let set = pg_bin(cluster);
        let args = [
            "init",
            "--repository",
            &url,
            "--connection",
            &connection,
            "--set",
            &set,
        ];
        place.run(&[&args[..], more].concat())
    };
    init(&server(), &["--config", "first.toml"]).expect(0);
    let other = server();
    let refused = init(&other, &[]).expect(1);
    for says in [
        "another database cluster",
        "pgkeep init --cluster NAME",
        "--accept-new-identity",
    ] {
        assert!(refused.stdout.contains(says), "{says}: {}", refused.stdout);
    }
    init(&other, &["--config", "second.toml", "--cluster", "other"]).expect(0);
    init(&other, &["--config", "third.toml", "--accept-new-identity"]).expect(0);
}

#[test]
fn an_interrupt_while_it_looks_leaves_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let place = empty();
    let connection = format!("postgres://u:{PASSWORD}@127.0.0.1:{port}/d");
    let url = place.repository_url();
    let mut command = place.command(&["init", "--connection", &connection, "--repository", &url]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Somebody who says nothing: it waits for the server, and has written its files.
    let _silent = listener.accept().unwrap();
    poll_until("the files", LIMIT, || place.path("pgkeep.toml").exists());
    let interrupt = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(interrupt.success());
    let done = place.done(child.wait_with_output().unwrap()).expect(1);
    assert!(done.stderr.contains("interrupted"), "{}", done.stderr);
    assert_eq!(left(&place), Vec::<String>::new());
}

#[test]
fn on_a_terminal_it_asks_for_what_it_does_not_find() {
    let script = Command::new("script").arg("--version").output();
    require!(script.map_err(|_| Missing("script, of util-linux".to_owned())));
    let cluster = server();
    let place = empty();
    let connection = cluster.tcp_conninfo("postgres");
    let line = format!(
        "{} init --set {} --connection \"{connection}\"",
        env!("CARGO_BIN_EXE_pgkeep"),
        pg_bin(&cluster)
    );
    let mut command = place.command_of(Path::new("script"), &["-qec", &line, "/dev/null"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    // An answer that is none is asked for again; an empty one takes the default.
    let answers = format!("\n{}\nmy.key\n\n", place.repository_url());
    input.write_all(answers.as_bytes()).unwrap();
    let done = place.done(child.wait_with_output().unwrap()).expect(0);
    drop(input);
    assert!(
        done.stdout.contains("Where should the dumps go?"),
        "{}",
        done.stdout
    );
    assert!(place.path("my.key").exists());
    let config = fs::read_to_string(place.path("pgkeep.toml")).unwrap();
    assert!(config.contains("schedule = \"0 2 * * *\""), "{config}");
    place.run(&["verify"]).expect(0);
}

/// A server in a container that is gone with the test.
struct Container(String);

impl Container {
    /// As Docker Compose would have made it, for a project in the folder.
    fn start(image: &str, folder: &Path) -> Self {
        let container = Self(format!("pgkeep-test-init-{}", std::process::id()));
        let directory = folder.canonicalize().unwrap();
        let directory = format!("com.docker.compose.project.working_dir={}", directory.display());
        let password = format!("POSTGRES_PASSWORD={PASSWORD}");
        let mut run = Command::new("docker");
        run.args([
            "run",
            "--detach",
            "--name",
            &container.0,
            "--publish",
            "127.0.0.1::5432",
        ]);
        for label in [
            "com.docker.compose.project=game",
            "com.docker.compose.service=db",
            &directory,
        ] {
            run.args(["--label", label]);
        }
        for variable in [&password, "POSTGRES_USER=game", "POSTGRES_DB=postgres"] {
            run.args(["--env", variable]);
        }
        let started = run.arg(image).output().unwrap();
        assert!(
            started.status.success(),
            "{}",
            String::from_utf8_lossy(&started.stderr)
        );
        poll_until("the server in the container", LIMIT, || {
            container.psql("SELECT 1")
        });
        container
    }

    /// By TCP, on which the image listens only when all is made.
    fn psql(&self, sql: &str) -> bool {
        let password = format!("PGPASSWORD={PASSWORD}");
        let mut command = Command::new("docker");
        command.args([
            "exec",
            "--env",
            &password,
            &self.0,
            "psql",
            "-XAt",
            "-h",
            "127.0.0.1",
        ]);
        command.args(["-U", "game", "-d", "postgres", "-c", sql]);
        command.output().unwrap().status.success()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut command = Command::new("docker");
        let _ = command
            .args(["rm", "--force", "--volumes", &self.0])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

#[test]
fn the_server_of_the_folders_compose_project_is_found() {
    let image = require!(requirements::image("postgresql"));
    let programs = require!(requirements::postgresql(17));
    let place = empty();
    let container = Container::start(&image, place.folder.path());
    for sql in ["CREATE DATABASE app", "CREATE DATABASE dagster"] {
        assert!(container.psql(sql), "{sql}");
    }
    let set = format!("pg_bin={}", programs.display());
    let url = place.repository_url();
    let common = ["--repository", &url, "--set", &set];
    let done = place.run(&[&["init", "--yes"], &common[..]].concat()).expect(0);
    for says in ["dagster (", "app (", "PostgreSQL 17", &format!("image:{image}")] {
        assert!(done.stdout.contains(says), "{says}: {}", done.stdout);
    }
    let config = fs::read_to_string(place.path("pgkeep.toml")).unwrap();
    assert!(
        config.contains("user=game") && !config.contains(PASSWORD),
        "{config}"
    );
    // With no suitable programs on this machine, the container's own are used.
    let own = format!("file://{}", place.path("own").display());
    let done = place
        .run(&["init", "--yes", "--repository", &own, "--config", "own.toml"])
        .expect(0);
    assert!(done.stderr.contains("that in the container"), "{}", done.stderr);
    let config = fs::read_to_string(place.path("own.toml")).unwrap();
    assert!(
        config.contains(&format!("\"container:{}\"", container.0)),
        "{config}"
    );
    // Another server isn't mistaken for the one in the container.
    let elsewhere = server();
    let conninfo = elsewhere.tcp_conninfo("postgres");
    let refused = place.run(&[
        "dump",
        "--config",
        "own.toml",
        "--accept-new-identity",
        "--connection",
        &conninfo,
    ]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("is another one"), "{}", refused.stderr);
    // By the service's name, and by the container's.
    for (name, file) in [("db", "service.toml"), (container.0.as_str(), "container.toml")] {
        let args = ["init", "--container", name, "--config", file, "--no-dump"];
        place.run(&[&args[..], &common].concat()).expect(0);
    }
    // From another folder it is just one of this machine's, and nobody says that it is meant.
    let apart = empty();
    let args = ["init", "--repository", &url];
    let unnamed = apart.run(&args).expect(2);
    assert!(unnamed.stderr.contains(&container.0), "{}", unnamed.stderr);
    assert_eq!(left(&apart), Vec::<String>::new());
    let args = ["init", "--container", "nothing", "--config", "none.toml"];
    let none = place.run(&[&args[..], &common].concat()).expect(2);
    assert!(none.stderr.contains(&container.0), "{}", none.stderr);
}
