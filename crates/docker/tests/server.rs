//! Servers in containers, against Docker's engine, with the images that `scripts/test-setup` makes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests are tests"
)]

use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_docker::{DockerError, Engine, ImageName, Pulled, ServerContainer, ServerOptions};
use pgkeep_pg::Session;
use pgkeep_testkit::{poll_until, require, requirements};

const PATIENCE: Duration = Duration::from_secs(120);

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(
        output.status.success(),
        "docker {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A name of the test's own; what bears it is gone when the test is.
struct Name(String);

impl Name {
    fn new(what: &str) -> Self {
        Self(format!("pgkeep-test-{what}-{}", std::process::id()))
    }

    /// Containers and volumes of that name.
    fn left(&self) -> String {
        let filter = format!("name={}", self.0);
        let containers = docker(&["ps", "--all", "--quiet", "--filter", &filter]);
        containers + &docker(&["volume", "ls", "--quiet", "--filter", &filter])
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        for args in [
            ["rm", "--force", "--volumes"].as_slice(),
            &["volume", "rm"],
            &["image", "rm"],
        ] {
            let _ = Command::new("docker")
                .args(args)
                .arg(&self.0)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

async fn engine() -> Engine {
    Engine::connect(|name| std::env::var(name).ok()).await.unwrap()
}

fn options(image: &str, name: &Name) -> ServerOptions {
    ServerOptions {
        image: ImageName::parse(image).unwrap(),
        name: name.0.clone(),
        port: None,
        restore: "d1".to_owned(),
        settings: vec![("synchronous_commit".to_owned(), "off".to_owned())],
        timescaledb: false,
        deadline: PATIENCE,
    }
}

async fn start(options: ServerOptions) -> Result<ServerContainer, DockerError> {
    ServerContainer::start(&engine().await, options, |_| {}, std::future::pending()).await
}

async fn ask(server: &ServerContainer, sql: &str) -> String {
    let mut session = Session::connect(server.target()).await.unwrap();
    let rows = session.query(sql).await.unwrap();
    let answer = rows.first().map(|row| row.get::<String>(0).unwrap());
    session.close().await;
    answer.unwrap_or_default()
}

const SETTINGS: &str = "SELECT concat_ws(' ', current_setting('synchronous_commit'), \
    current_setting('shared_preload_libraries'), current_setting('cluster_name'))";

#[tokio::test]
async fn a_server_is_loaded_fast_and_handed_over_as_the_image_has_it() {
    let image = require!(requirements::image("postgresql"));
    let name = Name::new("handed");
    let options = ServerOptions {
        timescaledb: true,
        ..options(&image, &name)
    };
    let mut server = start(options.clone()).await.unwrap();
    assert!(ask(&server, SETTINGS).await.starts_with("off timescaledb "));
    ask(&server, "CREATE TABLE kept AS SELECT 1 AS n").await;

    // The password is nobody's business but root's in the container.
    let password = docker(&["exec", &name.0, "cat", "/etc/pgkeep/password"]);
    assert_eq!(password.len(), 32);
    assert!(server.password_command().contains(&name.0));
    let shown = docker(&["inspect", &name.0]) + &docker(&["logs", &name.0]) + &docker(&["top", &name.0]);
    assert!(!shown.contains(&password), "the password is shown: {shown}");
    let mode = docker(&["exec", &name.0, "stat", "-c", "%a %U", "/etc/pgkeep/password"]);
    assert_eq!(mode, "400 root");

    // The name is taken now, whoever asks.
    let taken = start(options.clone()).await.err().unwrap();
    assert!(
        matches!(
            &taken,
            DockerError::NameTaken {
                kind: "container",
                ..
            }
        ),
        "{taken}"
    );
    assert_eq!(taken.retry_class(), RetryClass::Refused);

    server.hand_over().await.unwrap();
    assert_eq!(ask(&server, SETTINGS).await, "on timescaledb ");
    assert_eq!(ask(&server, "SELECT n::text FROM kept").await, "1");
    let bound = docker(&["port", &name.0]);
    assert_eq!(bound, format!("5432/tcp -> 127.0.0.1:{}", server.port()));
    // There is nothing to go on with in a server that was handed over.
    let resumed = ServerContainer::resume(&engine().await, options.clone(), std::future::pending()).await;
    assert!(matches!(resumed, Err(DockerError::NothingToResume { .. })));
    docker(&["rm", "--force", &name.0]);
    let taken = start(options).await.err().unwrap();
    assert!(
        matches!(taken, DockerError::NameTaken { kind: "volume", .. }),
        "{taken}"
    );
}

/// TimescaleDB's image puts its extension into every database: the one that a restore fills has to be empty.
#[tokio::test]
async fn what_the_image_puts_into_the_database_is_not_in_the_way() {
    let image = require!(requirements::image("timescaledb"));
    let name = Name::new("empty");
    let server = start(options(&image, &name)).await.unwrap();
    let extensions = "SELECT string_agg(extname, ' ') FROM pg_extension";
    assert_eq!(ask(&server, extensions).await, "plpgsql");
    // A run that goes on finds what the first one left, stopped or not.
    server.stop().await.unwrap();
    let engine = engine().await;
    let resume = |restore: &str| {
        let options = ServerOptions {
            restore: restore.to_owned(),
            ..options(&image, &name)
        };
        ServerContainer::resume(&engine, options, std::future::pending())
    };
    assert!(matches!(
        resume("d2").await,
        Err(DockerError::NothingToResume { .. })
    ));
    let resumed = resume("d1").await.unwrap();
    assert_eq!(resumed.port(), server.port());
    ask(&resumed, "CREATE TABLE kept ()").await;
    resumed.remove().await;
    assert!(!name.left().is_empty(), "only the run that made it removes it");
    server.remove().await;
    assert_eq!(name.left(), "");
}

#[tokio::test]
async fn what_ends_while_starting_shows_its_log_and_leaves_nothing() {
    let image = require!(requirements::image("postgresql"));
    let name = Name::new("broken");
    let change = "ENTRYPOINT [\"sh\", \"-c\", \"echo the disk is made of cheese >&2; exit 3\"]";
    let made = docker(&["create", &image]);
    docker(&["commit", "--change", change, &made, &name.0]);
    docker(&["rm", "--volumes", &made]);
    let error = start(options(&name.0, &name)).await.err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains("exit code 3") && text.ends_with("the disk is made of cheese"),
        "{text}"
    );
    assert_eq!(name.left(), "");
}

#[tokio::test]
async fn a_start_that_is_cancelled_leaves_nothing() {
    let image = require!(requirements::image("postgresql"));
    let name = Name::new("cancelled");
    let engine = engine().await;
    let made = async {
        let begun = std::time::Instant::now();
        while engine.container(&name.0).await.unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "no container is made");
            tokio::task::yield_now().await;
        }
    };
    let started = ServerContainer::start(&engine, options(&image, &name), |_| {}, made).await;
    assert!(matches!(started, Err(DockerError::Interrupted)));
    assert_eq!(name.left(), "");
}

/// A registry with an image, and nothing of the image elsewhere.
struct Registry {
    process: Child,
    directory: tempfile::TempDir,
    image: Name,
}

impl Registry {
    fn start() -> Result<Self, requirements::Missing> {
        let image = requirements::image("postgresql")?;
        let program = requirements::store("docker-registry")?;
        let port = TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let directory = tempfile::tempdir().unwrap();
        let configuration = directory.path().join("registry.yml");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            directory.path().display()
        );
        std::fs::write(&configuration, text).unwrap();
        let process = Command::new(program)
            .arg("serve")
            .arg(configuration)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self {
            process,
            directory,
            image: Name(format!("127.0.0.1:{port}/pgkeep-test:1")),
        };
        poll_until("the registry", PATIENCE, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        // A layer that nothing else has, or there would be nothing to fetch; large enough to be told of on its way.
        let made = docker(&["create", &image]);
        let file = registry.directory.path().join("layer");
        let noise = std::fs::File::open("/dev/urandom").unwrap();
        let mut layer = std::fs::File::create(&file).unwrap();
        std::io::copy(&mut noise.take(16 << 20), &mut layer).unwrap();
        let file = file.display().to_string();
        docker(&["cp", &file, &format!("{made}:/new")]);
        docker(&["commit", &made, &registry.image.0]);
        docker(&["rm", "--volumes", &made]);
        docker(&["push", "--quiet", &registry.image.0]);
        docker(&["image", "rm", &registry.image.0]);
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn an_image_is_pulled() {
    let registry = require!(Registry::start());
    let engine = engine().await;
    let name = ImageName::parse(&registry.image.0).unwrap();
    assert!(engine.image(&name).await.unwrap().is_none());
    let mut told = Pulled::default();
    engine.pull(&name, |pulled| told = pulled).await.unwrap();
    assert!(
        told.total_bytes > 0 && told.done_bytes == told.total_bytes,
        "{told:?}"
    );
    let image = engine.image(&name).await.unwrap().unwrap();
    assert_eq!(image.variable("PGDATA"), Some("/var/lib/postgresql/data"));

    let missing = ImageName::parse(&registry.image.0.replace(":1", ":2")).unwrap();
    let error = engine.pull(&missing, |_| {}).await.unwrap_err();
    assert!(matches!(error, DockerError::Pull { .. }), "{error}");
    let hint = error.hint().unwrap().to_string();
    assert!(hint.contains(&format!("docker pull {missing}")), "{hint}");
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_told_from_one_that_is_not_spoken_to() {
    let connect =
        |host: &'static str| Engine::connect(move |name| (name == "DOCKER_HOST").then(|| host.to_owned()));
    let nowhere = connect("unix:///nowhere/docker.sock").await.err().unwrap();
    assert!(
        nowhere
            .to_string()
            .contains("can't be reached at unix:///nowhere/docker.sock"),
        "{nowhere}"
    );
    assert!(nowhere.hint().unwrap().to_string().contains("DOCKER_HOST"));
    let refused = connect("tcp://127.0.0.1:1").await.err().unwrap();
    assert!(refused.to_string().contains("refused"), "{refused}");
    let foreign = connect("ssh://me@elsewhere").await.err().unwrap();
    assert!(matches!(foreign, DockerError::Host(_)), "{foreign}");
    assert_eq!(foreign.retry_class(), RetryClass::Usage);
}
