//! A PostgreSQL server in a container of its own, its data in a volume of the same name, made for a restore.
//!
//! It serves twice: first with settings that make loading fast, then, when the data is complete and the server has shut
//! down cleanly, in a fresh container on the same volume with nothing but the image's own command.

use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use pgkeep_base::Secret;
use pgkeep_pg::{Conninfo, Environment, PgError, Session, Target};
use rand::Rng;
use rand::distr::Alphanumeric;

use crate::answer::{self, Answer};
use crate::engine::{ContainerState, NewContainer};
use crate::found::PORT_DEFAULT;
use crate::{DockerError, Engine, Image, ImageName, Pulled};

/// The superuser that the image makes.
const SUPERUSER: &str = "postgres";
const DATABASE: &str = "postgres";
/// Where the password lies in the container: neither in its environment, which `docker inspect` shows, nor in an
/// argument.
const PASSWORD_FOLDER: &str = "etc/pgkeep";
const PASSWORD_FILE: &str = "password";
const PASSWORD_CHARACTERS: usize = 32;
const RUN_CHARACTERS: usize = 16;
/// The labels that tell pgkeep's containers and volumes.
const LABEL_RESTORE: &str = "pgkeep.restore";
const LABEL_RUN: &str = "pgkeep.run";
/// Ports that are looked at when none is asked for.
const PORT_FIRST: u16 = 5432;
const PORT_LAST: u16 = 5531;
/// Docker gives 64 MiB, and parallel index builds need more.
const SHARED_MEMORY_BYTES: i64 = 1 << 30;
/// PostgreSQL's fast shutdown.
const STOP_SIGNAL: &str = "SIGINT";
/// A shutdown writes everything that is dirty to disk. Docker kills after 10 s unless told otherwise.
const STOP_LIMIT: Duration = Duration::from_secs(600);
const CONNECT_SECONDS: u64 = 5;
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// What a removal after a failure may take before it is given up.
const CLEANING_LIMIT: Duration = Duration::from_secs(60);

/// What to make.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The image.
    pub image: ImageName,
    /// The name of the container and of the volume.
    pub name: String,
    /// The port of 127.0.0.1; none for the first free one from 5432 on.
    pub port: Option<u16>,
    /// What is restored into it: a later run that is to go on must name the same.
    pub restore: String,
    /// Settings for loading. They are gone when the server is handed over.
    pub settings: Vec<(String, String)>,
    /// Whether the server needs TimescaleDB's library preloaded.
    pub timescaledb: bool,
    /// How long initialisation and start may take.
    pub deadline: Duration,
}

/// What the start is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// The image comes from its registry.
    Pulling(Pulled),
    /// The container is made, and the server in it initialised and started.
    Starting,
}

/// The server, running.
pub struct ServerContainer {
    engine: Engine,
    options: ServerOptions,
    image: Image,
    port: u16,
    password: Secret,
    /// What tells this server from any other that may listen where it is looked for.
    run: String,
    /// The system identifier, once it is known.
    identity: Option<String>,
    target: Target,
    /// An earlier run made it: it isn't for this one to throw away.
    resumed: bool,
}

/// Names as Docker permits them, which are also safe in the path of a request.
fn check_name(name: &str) -> Result<(), DockerError> {
    const NAME_BYTES_MAX: usize = 128;
    let permitted = |character: char| character.is_ascii_alphanumeric() || "_.-".contains(character);
    let right = (2..=NAME_BYTES_MAX).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(permitted);
    if right {
        Ok(())
    } else {
        Err(DockerError::Name(name.to_owned()))
    }
}

impl ServerContainer {
    /// Looks whether the name is free and the image usable, without making anything. Returns whether the image is on
    /// this machine already.
    ///
    /// # Errors
    /// [`DockerError::NameTaken`], [`DockerError::NotPostgres`], the engine's.
    pub async fn check(engine: &Engine, options: &ServerOptions) -> Result<bool, DockerError> {
        check_name(&options.name)?;
        let taken = |kind| DockerError::NameTaken {
            kind,
            name: options.name.clone(),
        };
        if engine.container(&options.name).await?.is_some() {
            return Err(taken("container"));
        }
        if engine.volume(&options.name).await?.is_some() {
            return Err(taken("volume"));
        }
        let Some(image) = engine.image(&options.image).await? else {
            return Ok(false);
        };
        data_mount(&image, &options.image)?;
        Ok(true)
    }

    /// Makes volume and container, and waits until the server lets clients in. When that fails, or `cancelled` comes
    /// first, nothing of it stays.
    ///
    /// # Errors
    /// See [`DockerError`].
    pub async fn start(
        engine: &Engine,
        options: ServerOptions,
        mut tell: impl FnMut(Started),
        cancelled: impl Future<Output = ()>,
    ) -> Result<Self, DockerError> {
        let mut cancelled = std::pin::pin!(cancelled);
        let looking = async {
            if !Self::check(engine, &options).await? {
                engine
                    .pull(&options.image, |pulled| tell(Started::Pulling(pulled)))
                    .await?;
            }
            usable_image(engine, &options.image).await
        };
        let image = tokio::select! {
            image = looking => image?,
            () = &mut cancelled => return Err(DockerError::Interrupted),
        };
        tell(Started::Starting);
        let mut server = Self::new(engine, options, image)?;
        // A request that is given up half-way may still be carried out: what makes something is never cancelled.
        let mut started = server.make().await;
        while started.as_ref().is_err_and(DockerError::is_port_taken) && server.options.port.is_none() {
            // Docker keeps ports that nobody listens on.
            server.remove().await;
            server.port = free_port(server.port.saturating_add(1))?;
            started = server.make().await;
        }
        if started.is_ok() {
            started = tokio::select! {
                ready = server.wait_until_ready() => ready,
                () = &mut cancelled => Err(DockerError::Interrupted),
            };
        }
        match started {
            Ok(()) => Ok(server),
            Err(error) => {
                server.remove().await;
                Err(error)
            }
        }
    }

    fn new(engine: &Engine, options: ServerOptions, image: Image) -> Result<Self, DockerError> {
        let port = options.port.map_or_else(|| free_port(PORT_FIRST), Ok)?;
        let password = random_text(PASSWORD_CHARACTERS);
        Ok(Self {
            target: target("127.0.0.1", port, &password)?,
            engine: engine.clone(),
            options,
            image,
            port,
            password: Secret::new(password),
            run: random_text(RUN_CHARACTERS),
            identity: None,
            resumed: false,
        })
    }

    /// Goes on with the container in which a restore of the same dump stopped half-way.
    ///
    /// # Errors
    /// [`DockerError::NothingToResume`]; see [`DockerError`] for the rest.
    pub async fn resume(
        engine: &Engine,
        options: ServerOptions,
        cancelled: impl Future<Output = ()>,
    ) -> Result<Self, DockerError> {
        check_name(&options.name)?;
        let name = options.name.clone();
        let nothing = || DockerError::NothingToResume { name: name.clone() };
        let looking = async {
            let found = engine.container(&name).await?.ok_or_else(nothing)?;
            let run = found.labels.get(LABEL_RUN).cloned();
            if found.labels.get(LABEL_RESTORE) != Some(&options.restore) {
                return Err(nothing());
            }
            let image_name = ImageName::parse(&found.image)?;
            let image = usable_image(engine, &image_name).await?;
            let port = found
                .ports
                .get(&port_inside(&image))
                .copied()
                .ok_or_else(nothing)?;
            let password = engine
                .read_file(&name, &format!("/{PASSWORD_FOLDER}/{PASSWORD_FILE}"))
                .await?;
            let password = String::from_utf8(password).map_err(|_| nothing())?;
            if !found.running {
                engine.start(&name).await?;
            }
            let mut server = Self {
                target: target("127.0.0.1", port, &password)?,
                engine: engine.clone(),
                options: ServerOptions {
                    image: image_name,
                    ..options
                },
                image,
                port,
                password: Secret::new(password),
                run: run.ok_or_else(nothing)?,
                identity: None,
                resumed: true,
            };
            server.wait_until_ready().await?;
            Ok(server)
        };
        tokio::select! {
            server = looking => server,
            () = cancelled => Err(DockerError::Interrupted),
        }
    }

    /// How to connect to it as superuser.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The name of the container and of the volume.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// The port of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The superuser.
    pub fn superuser(&self) -> &'static str {
        SUPERUSER
    }

    /// What shows its password.
    pub fn password_command(&self) -> String {
        format!(
            "docker exec {} cat /{PASSWORD_FOLDER}/{PASSWORD_FILE}",
            self.name()
        )
    }

    async fn make(&self) -> Result<(), DockerError> {
        self.engine.create_volume(self.name(), self.labels()).await?;
        let mut command = self.image.command.clone();
        if command.is_empty() {
            command.push("postgres".to_owned());
        }
        // By its name the server is known: something else may listen where it is looked for.
        let ours = [("cluster_name".to_owned(), self.run.clone())];
        for (name, value) in ours.iter().chain(&self.options.settings) {
            command.extend(["-c".to_owned(), format!("{name}={value}")]);
        }
        self.make_container(Some(command)).await
    }

    async fn make_container(&self, command: Option<Vec<String>>) -> Result<(), DockerError> {
        let mount = data_mount(&self.image, &self.options.image)?;
        let mut labels = self.labels();
        if command.is_none() {
            // There is nothing to go on with any more.
            labels.remove(LABEL_RESTORE);
        }
        let new = NewContainer {
            name: self.name(),
            image: &self.options.image,
            command,
            environment: vec![
                format!("POSTGRES_USER={SUPERUSER}"),
                format!("POSTGRES_PASSWORD_FILE=/{PASSWORD_FOLDER}/{PASSWORD_FILE}"),
            ],
            labels,
            volume: (self.name(), mount),
            port: (port_inside(&self.image), self.port),
            shared_memory_bytes: SHARED_MEMORY_BYTES,
            stop_signal: STOP_SIGNAL,
            stop_limit: STOP_LIMIT,
        };
        self.engine.create(new).await?;
        // Whoever the image begins as has to read it.
        let mode = if self.image.starts_as_root() { 0o400 } else { 0o444 };
        let password = self.password.expose().as_bytes();
        self.engine
            .put_file(self.name(), PASSWORD_FOLDER, PASSWORD_FILE, mode, password)
            .await?;
        self.engine.start(self.name()).await
    }

    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([
            (LABEL_RESTORE.to_owned(), self.options.restore.clone()),
            (LABEL_RUN.to_owned(), self.run.clone()),
        ])
    }

    /// Waits until it lets clients in, and prepares it: TimescaleDB's library may have to be preloaded, which takes a
    /// restart.
    async fn wait_until_ready(&mut self) -> Result<(), DockerError> {
        let mut session = self.wait_for_session().await?;
        let prepared = prepare(&mut session, self.options.timescaledb, self.resumed).await;
        session.close().await;
        if prepared.map_err(|source| self.prepare_error(source))? {
            self.engine.restart(self.name(), STOP_LIMIT).await?;
            self.wait_for_session().await?.close().await;
        }
        Ok(())
    }

    fn prepare_error(&self, source: PgError) -> DockerError {
        DockerError::Prepare {
            name: self.name().to_owned(),
            source,
        }
    }

    async fn wait_for_session(&mut self) -> Result<Session, DockerError> {
        let begun = Instant::now();
        let mut reason = String::new();
        loop {
            let state = self.engine.container(self.name()).await?.unwrap_or_default();
            if !state.running {
                return Err(DockerError::Ended {
                    name: self.name().to_owned(),
                    exit_code: state.exit_code,
                    log: self.log().await,
                });
            }
            for target in self.candidates(&state)? {
                match self.connect(&target).await {
                    Ok((session, identity)) => {
                        self.identity = Some(identity);
                        self.target = target;
                        return Ok(session);
                    }
                    Err(error) => {
                        tracing::trace!(error, "the server isn't ready yet");
                        reason = error;
                    }
                }
            }
            if begun.elapsed() > self.options.deadline {
                return Err(DockerError::NotReady {
                    name: self.name().to_owned(),
                    after: self.options.deadline,
                    reason,
                    log: self.log().await,
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// The published port; and, where pgkeep runs in a container itself, Docker's own network.
    fn candidates(&self, state: &ContainerState) -> Result<Vec<Target>, DockerError> {
        let inside = port_inside(&self.image);
        let addresses = state.addresses.iter().map(|address| (address.as_str(), inside));
        std::iter::once(("127.0.0.1", self.port))
            .chain(addresses)
            .map(|(host, port)| target(host, port, self.password.expose()))
            .collect()
    }

    /// A session, if it is this container's server that answers, and the server's system identifier.
    async fn connect(&self, target: &Target) -> Result<(Session, String), String> {
        let Answer {
            session,
            name,
            identity,
        } = answer::ask(target).await?;
        let ours = self
            .identity
            .as_ref()
            .map_or(name == self.run, |known| *known == identity);
        if ours {
            Ok((session, identity))
        } else {
            Err(format!("another server answers at {}", target.endpoint()))
        }
    }

    async fn log(&self) -> String {
        let log = self.engine.log_tail(self.name()).await;
        // No image should print it.
        log.replace(self.password.expose(), "[password]")
    }

    /// Hands the server over: stops it, so that all is on disk, and starts it again as the image has it.
    ///
    /// # Errors
    /// [`DockerError::HandOver`]: it doesn't shut down cleanly, or doesn't come up again. The volume stays in any case.
    pub async fn hand_over(&mut self) -> Result<(), DockerError> {
        let Err(source) = self.start_anew().await else {
            return Ok(());
        };
        // Where that can't be told, it is taken for being there: removing none does no harm.
        let found = self.engine.container(self.name()).await;
        let is_there = !matches!(found, Ok(None));
        Err(DockerError::HandOver {
            name: self.name().to_owned(),
            start_command: self.start_command(is_there),
            source: Box::new(source),
        })
    }

    /// What starts a container on the volume, in the place of one of that name that is there.
    fn start_command(&self, is_there: bool) -> String {
        let mount = self.image.data_mount().unwrap_or_default();
        let inside = port_inside(&self.image);
        start_command(
            self.name(),
            is_there,
            (self.port, inside),
            mount,
            &self.options.image,
        )
    }

    async fn start_anew(&mut self) -> Result<(), DockerError> {
        let name = self.name().to_owned();
        self.stop().await?;
        let state = self.engine.container(&name).await?.unwrap_or_default();
        if state.exit_code != 0 {
            return Err(DockerError::NotStopped {
                name,
                exit_code: state.exit_code,
            });
        }
        self.engine.remove(&name).await?;
        self.make_container(None).await?;
        self.wait_for_session().await?.close().await;
        Ok(())
    }

    /// Stops it; what it holds stays.
    ///
    /// # Errors
    /// The engine's.
    pub async fn stop(&self) -> Result<(), DockerError> {
        self.engine.stop(self.name(), STOP_LIMIT).await
    }

    /// Removes container and volume. What an earlier run made is only stopped.
    pub async fn remove(&self) {
        let removing = async {
            if self.resumed {
                return self.stop().await;
            }
            let ours = |labels: &HashMap<String, String>| labels.get(LABEL_RUN) == Some(&self.run);
            let container = self.engine.container(self.name()).await?;
            if container.is_some_and(|container| ours(&container.labels)) {
                self.engine.remove(self.name()).await?;
            }
            if self
                .engine
                .volume(self.name())
                .await?
                .is_some_and(|labels| ours(&labels))
            {
                self.engine.remove_volume(self.name()).await?;
            }
            Ok(())
        };
        match tokio::time::timeout(CLEANING_LIMIT, removing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the container or volume '{}' may be left", self.name()),
            Err(_) => tracing::warn!(
                "the container or volume '{}' may be left: Docker is slow",
                self.name()
            ),
        }
    }
}

fn start_command(
    name: &str,
    is_there: bool,
    (port, inside): (u16, u16),
    mount: &str,
    image: &ImageName,
) -> String {
    let remove = if is_there {
        format!("docker rm --force {name}; ")
    } else {
        String::new()
    };
    format!(
        "{remove}docker run --detach --name {name} --publish 127.0.0.1:{port}:{inside} --volume {name}:{mount} {image}"
    )
}

/// What a new server lacks. Returns whether it has to be restarted.
async fn prepare(session: &mut Session, timescaledb: bool, resumed: bool) -> Result<bool, PgError> {
    if !resumed {
        // TimescaleDB's image puts the extension into every database; the one that is there already must be empty for
        // the restore.
        session
            .execute("DROP EXTENSION IF EXISTS timescaledb CASCADE")
            .await?;
    }
    // Where the library isn't installed, the restore's own checks say so.
    if timescaledb {
        pgkeep_timescale::preload(session).await
    } else {
        Ok(false)
    }
}

async fn usable_image(engine: &Engine, name: &ImageName) -> Result<Image, DockerError> {
    let image = engine.image(name).await?.ok_or_else(|| DockerError::Pull {
        image: name.to_string(),
        reason: "the engine doesn't have it".to_owned(),
    })?;
    data_mount(&image, name)?;
    Ok(image)
}

fn data_mount<'a>(image: &'a Image, name: &ImageName) -> Result<&'a str, DockerError> {
    image
        .data_mount()
        .ok_or_else(|| DockerError::NotPostgres(name.to_string()))
}

fn port_inside(image: &Image) -> u16 {
    let set = image.variable("PGPORT").and_then(|port| port.parse().ok());
    set.unwrap_or(PORT_DEFAULT)
}

/// The first free one: a container's port should be one that a person can remember, and the same after a restart.
fn free_port(first: u16) -> Result<u16, DockerError> {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (first..=PORT_LAST).find(free).ok_or(DockerError::NoPort {
        first: PORT_FIRST,
        last: PORT_LAST,
    })
}

fn random_text(characters: usize) -> String {
    rand::rng()
        .sample_iter(Alphanumeric)
        .take(characters)
        .map(char::from)
        .collect()
}

fn target(host: &str, port: u16, password: &str) -> Result<Target, DockerError> {
    let text = format!(
        "host={host} port={port} user={SUPERUSER} password='{password}' dbname={DATABASE} connect_timeout={CONNECT_SECONDS}"
    );
    let resolved = Conninfo::parse(&text).and_then(|conninfo| conninfo.resolve(&Environment::empty()));
    resolved.map_err(|error| DockerError::Address(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_freed_before_it_is_taken_again() {
        let image = ImageName::parse("postgres:17").unwrap();
        let command = |is_there| start_command("n", is_there, (5433, 5432), "/data", &image);
        let run = "docker run --detach --name n --publish 127.0.0.1:5433:5432 --volume n:/data postgres:17";
        assert_eq!(command(false), run);
        assert_eq!(command(true), format!("docker rm --force n; {run}"));
    }
}
