//! A restore into a server that is made from an image.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use pgkeep_testkit::{Cluster, ClusterOptions, poll_until, require, requirements};

use crate::support::{Place, server, server_with};

const LIMIT: Duration = Duration::from_secs(120);

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    let (stdout, stderr) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "docker {args:?}: {stderr}");
    String::from_utf8(stdout).unwrap().trim().to_owned()
}

/// The test's own container and volume; gone at the end.
struct Container(String);

impl Container {
    fn new(what: &str) -> Self {
        Self(format!("pgkeep-test-{what}-{}", std::process::id()))
    }

    fn exists(&self) -> bool {
        let filter = format!("name={}", self.0);
        let found = docker(&["ps", "--all", "--quiet", "--filter", &filter]);
        !(found + &docker(&["volume", "ls", "--quiet", "--filter", &filter])).is_empty()
    }

    fn psql(&self, database: &str, sql: &str) -> String {
        docker(&[
            "exec",
            &self.0,
            "psql",
            "-XAtq",
            "--username=postgres",
            "--dbname",
            database,
            "--command",
            sql,
        ])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        for args in [["rm", "--force", "--volumes"].as_slice(), &["volume", "rm"]] {
            let mut command = Command::new("docker");
            let _ = command
                .args(args)
                .arg(&self.0)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn dumped(cluster: &Cluster) -> Place {
    let place = Place::with(cluster, None);
    place.dump();
    place
}

#[test]
fn a_restore_makes_a_server_from_an_image() {
    let image = format!("image:{}", require!(requirements::image("postgresql")));
    let place = dumped(&server());
    let container = Container::new("restored");
    let args = ["restore", "--into", &image, "--container", &container.0];
    let plan = place.run(&[&args[..], &["--dry-run"]].concat()).expect(0);
    assert!(plan.stdout.contains("Nothing was done."), "{}", plan.stdout);
    assert!(!container.exists());

    let done = place.run(&[&args[..], &["--json"]].concat()).expect(0).json();
    assert_eq!(done["server"]["container"], container.0.as_str());
    let counts =
        "SELECT (SELECT count(*) FROM players), (SELECT count(*) FROM scores), current_setting('wal_level')";
    assert_eq!(container.psql("app", counts), "3000|5000|replica");
    // As the summary tells the user to connect.
    let password = done["server"]["password_command"].as_str().unwrap();
    let password = docker(&password.split(' ').skip(1).collect::<Vec<_>>());
    let port = &done["server"]["port"];
    let conninfo = format!("host=127.0.0.1 port={port} user=postgres password={password} dbname=postgres");
    let taken = place.run(&["restore", "--into", &conninfo]).expect(4);
    assert!(
        taken.stderr.contains("'app' is there already"),
        "{}",
        taken.stderr
    );
    let taken = place.run(&args).expect(4);
    assert!(taken.stderr.contains("--container NAME"), "{}", taken.stderr);
}

/// A machine that has Docker, and no pg_restore that will do.
#[test]
fn without_programs_on_this_machine_the_images_own_restore() {
    let image = format!("image:{}", require!(requirements::image("postgresql")));
    let cluster = server();
    cluster.psql("app", "SELECT lo_from_bytea(77, 'a large object') \\g /dev/null");
    let place = dumped(&cluster);
    let text = std::fs::read_to_string(place.path("pgkeep.toml")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("pg_bin"));
    std::fs::write(place.path("pgkeep.toml"), lines.collect::<Vec<_>>().join("\n")).unwrap();
    let container = Container::new("bare");
    let done = place.run(&["restore", "--into", &image, "--container", &container.0]);
    let done = done.expect(0);
    assert!(!done.stderr.contains("pg_restore"), "{}", done.stderr);
    assert_eq!(container.psql("app", "SELECT count(*) FROM scores"), "5000");
    assert_eq!(
        container.psql("app", "SELECT convert_from(lo_get(77), 'UTF8')"),
        "a large object"
    );
    let left = docker(&["exec", &container.0, "sh", "-c", "ls /tmp"]);
    assert!(!left.contains("pgkeep"), "{left}");
}

#[test]
fn a_restore_into_a_container_goes_on_where_it_stopped() {
    let image = format!("image:{}", require!(requirements::image("postgresql")));
    let cluster = server();
    // A restore that fails at its end unless the role is there.
    cluster.psql(
        "app",
        "CREATE ROLE blessing;
         CREATE FUNCTION blessed() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
           PERFORM 'blessing'::regrole; RETURN true; END $$;
         CREATE MATERIALIZED VIEW blessed AS SELECT blessed();
         DROP ROLE blessing;",
    );
    let place = dumped(&cluster);
    let container = Container::new("resumed");
    let args = ["restore", "--into", &image, "--container", &container.0];
    let failed = place.run(&args).expect(1);
    assert!(
        failed.stderr.contains("blessing") && failed.stderr.contains("--resume"),
        "{}",
        failed.stderr
    );
    assert!(container.exists(), "what is loaded stays");
    container.psql("postgres", "CREATE ROLE blessing");
    place.run(&[&args[..], &["--resume"]].concat()).expect(0);
    assert_eq!(container.psql("app", "SELECT count(*) FROM players"), "3000");
}

#[test]
fn an_interrupted_restore_into_a_container_leaves_nothing() {
    let image = format!("image:{}", require!(requirements::image("postgresql")));
    let place = dumped(&server());
    let container = Container::new("interrupted");
    let child = place
        .command(&["restore", "--into", &image, "--container", &container.0])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    poll_until("the container", LIMIT, || container.exists());
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-s", "INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let done = place.done(child.wait_with_output().unwrap()).expect(1);
    assert!(done.stderr.contains("error: interrupted"), "{}", done.stderr);
    assert!(!container.exists());
}

#[test]
fn what_belongs_to_containers_is_refused_elsewhere() {
    let cluster = server();
    let place = dumped(&cluster);
    let into = cluster.tcp_conninfo("postgres");
    let refused = place
        .run(&["restore", "--into", &into, "--port", "6000"])
        .expect(2);
    assert!(refused.stderr.contains("--into image:"), "{}", refused.stderr);
    place.run(&["restore", "--into", "image:"]).expect(2);
    place.run(&["restore", "--into", "image:a b"]).expect(2);
    let nowhere = place
        .done(
            place
                .command(&["restore", "--into", "image:postgres:17"])
                .env("DOCKER_HOST", "unix:///nowhere.sock")
                .output()
                .unwrap(),
        )
        .expect(1);
    assert!(
        nowhere.stderr.contains("Docker's engine can't be reached") && nowhere.stderr.contains("hint:"),
        "{}",
        nowhere.stderr
    );
}

/// The folder of a server in a container: `init` writes so where this machine has no programs that will do.
fn use_programs_of(place: &Place, container: &Container) {
    let path = place.path("pgkeep.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("pg_bin"));
    let text = lines.collect::<Vec<_>>().join("\n");
    std::fs::write(path, format!("{text}\npg_bin = \"container:{}\"\n", container.0)).unwrap();
}

/// Whether packages installed it, of that version or a later one.
fn machine_has(program: &str, major: u32) -> bool {
    let entries = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let suitable = entries.filter(|entry| {
        let found: Option<u32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        found.is_some_and(|found| found >= major)
    });
    suitable
        .into_iter()
        .any(|entry| entry.path().join("bin").join(program).exists())
}

#[test]
fn the_programs_of_a_container_are_used_for_its_own_server_only() {
    let image = format!("image:{}", require!(requirements::image("postgresql")));
    let place = dumped(&server());
    let own = Container::new("own");
    let args = ["restore", "--into", &image, "--container", &own.0, "--json"];
    let made = place.run(&args).expect(0).json();
    use_programs_of(&place, &own);

    let other = Container::new("other");
    let args = ["restore", "--into", &image, "--container", &other.0];
    let done = place.run(&args).expect(0);
    assert!(!done.stderr.contains("own server"), "{}", done.stderr);
    assert_eq!(other.psql("app", "SELECT count(*) FROM scores"), "5000");

    let password = made["server"]["password_command"].as_str().unwrap();
    let password = docker(&password.split(' ').skip(1).collect::<Vec<_>>());
    let port = &made["server"]["port"];
    let itself = format!("host=127.0.0.1 port={port} user=postgres password={password} dbname=postgres");
    let args = [
        "restore",
        "--into",
        &itself,
        "--database",
        "app",
        "--target-database",
        "copy",
    ];
    place.run(&args).expect(0);
    assert_eq!(own.psql("copy", "SELECT count(*) FROM scores"), "5000");

    if machine_has("pg_restore", 17) {
        // They will do everywhere.
        return;
    }
    let elsewhere = Cluster::start(ClusterOptions::default()).unwrap();
    let into = elsewhere.tcp_conninfo("postgres");
    let directory = place.path("new");
    let new = format!("server:{}", directory.display());
    for into in [&into, &new] {
        for dry_run in [true, false] {
            let mut args = vec!["restore", "--into", into];
            args.extend(dry_run.then_some("--dry-run"));
            let refused = place.run(&args).expect(2);
            assert!(
                refused.stderr.contains("--pg-bin DIRECTORY") && refused.stderr.contains(&own.0),
                "{}",
                refused.stderr
            );
            assert!(!refused.stderr.contains("pgkeep failed"), "{}", refused.stderr);
        }
    }
    assert!(!directory.exists());
    assert_eq!(
        elsewhere.psql(
            "postgres",
            "SELECT count(*) FROM pg_database WHERE datname = 'app'"
        ),
        "0"
    );
}

/// Where this machine has programs of its own that will do, they do.
#[test]
fn a_server_elsewhere_gets_the_programs_of_this_machine() {
    require!(requirements::postgresql(15));
    let image = format!("image:{}", require!(requirements::image("postgresql")));
    if !machine_has("pg_restore", 15) {
        return;
    }
    let cluster = server_with(ClusterOptions::new(15));
    let place = dumped(&cluster);
    let own = Container::new("elsewhere");
    place
        .run(&["restore", "--into", &image, "--container", &own.0])
        .expect(0);
    use_programs_of(&place, &own);
    let into = cluster.tcp_conninfo("postgres");
    let args = [
        "restore",
        "--into",
        &into,
        "--database",
        "app",
        "--target-database",
        "copy",
    ];
    let done = place.run(&args).expect(0);
    assert!(
        done.stderr.contains("this machine's own programs are used"),
        "{}",
        done.stderr
    );
    assert_eq!(cluster.psql("copy", "SELECT count(*) FROM scores"), "5000");
    let directory = place.path("new");
    let new = format!("server:{}", directory.display());
    // The server's user has to get there.
    std::fs::set_permissions(place.folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let made = place.run(&["restore", "--into", &new]);
    let has_server = machine_has("initdb", 15);
    assert_eq!(made.code, if has_server { 0 } else { 2 }, "{}", made.stderr);
    assert_eq!(directory.join("PG_VERSION").exists(), has_server);
}
