//! Which server: one that is named, one in a container, or one whose socket lies about.

use std::path::Path;

use pgkeep_base::{Secret, quote_for_shell};
use pgkeep_config::Cluster;
use pgkeep_docker::{Engine, FoundServer};
use pgkeep_dump::check::ServerFacts;
use pgkeep_pg::{Conninfo, Environment, PasswordSource};

use super::ask::Ask;
use crate::args::InitArgs;
use crate::context::Context;
use crate::exit::Failure;

/// Where packaged servers, then those built from source, put their sockets.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const SOCKET_PREFIX: &str = ".s.PGSQL.";

/// The server, and how it is reached.
pub(super) struct Source {
    /// Without the password.
    pub conninfo: Conninfo,
    /// The line of a password file that gives the password; none where libpq finds it by itself, or there is none.
    pub passfile_line: Option<Secret>,
    /// The container's name.
    pub container: Option<String>,
    /// The container's image.
    pub image: Option<String>,
    /// What the server is, once it was looked at.
    pub facts: Option<ServerFacts>,
}

/// What may be taken where nothing is named.
enum Candidate {
    Container(Box<FoundServer>),
    Socket { directory: String, port: u16 },
}

impl Candidate {
    /// Whether it is of the Compose project in this folder.
    fn is_here(&self) -> bool {
        match self {
            Self::Container(found) => is_here(found),
            Self::Socket { .. } => false,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Container(found) => format!("container {} ({})", found.name, found.image),
            Self::Socket { directory, port } => format!("socket {directory}, port {port}"),
        }
    }
}

pub(super) async fn find(
    context: &Context,
    given: &Cluster,
    args: &InitArgs,
    ask: &Ask<'_>,
) -> Result<Source, Failure> {
    if let Some(name) = &args.container {
        return of_container(context, named_container(name).await?);
    }
    if let Some(connection) = &given.connection {
        return of_conninfo(Conninfo::parse(connection.expose())?);
    }
    let by_variables = ["PGHOST", "PGHOSTADDR", "PGSERVICE"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    if by_variables {
        return of_conninfo(Conninfo::default());
    }
    let mut candidates = candidates().await;
    let chosen = match candidates.len() {
        0 => {
            let hint = "name it with --connection postgres://user@host/database or --container NAME; a Compose project's \
                        server has to run: docker compose up -d";
            return Err(Failure::usage(
                "no PostgreSQL server was found on this machine",
                hint,
            ));
        }
        // Whatever runs on this machine isn't what was meant because it is alone.
        1 if !(candidates.iter().all(Candidate::is_here) || ask.is_interactive() || args.yes) => {
            let texts: Vec<String> = candidates.iter().map(Candidate::text).collect();
            return Err(Failure::usage(
                format!("no server was named; there is one: {}", texts.join("; ")),
                "say that it is meant with --container NAME or --connection 'host=... port=...', or take it with --yes",
            ));
        }
        1 if !ask.is_interactive() || candidates.iter().all(Candidate::is_here) => 0,
        _ if ask.is_interactive() => {
            let texts: Vec<String> = candidates.iter().map(Candidate::text).collect();
            ask.choice("Which server?", &texts).await?
        }
        _ => {
            let texts: Vec<String> = candidates.iter().map(Candidate::text).collect();
            return Err(Failure::usage(
                format!("there are several servers: {}", texts.join("; ")),
                "name one with --container NAME or --connection 'host=... port=...'",
            ));
        }
    };
    let candidate = candidates.swap_remove(chosen);
    context.output.note(format!("the server: {}", candidate.text()));
    match candidate {
        Candidate::Container(found) => of_container(context, *found),
        Candidate::Socket { directory, port } => {
            let conninfo = Conninfo::default()
                .with_setting("host", &directory)
                .with_setting("port", &port.to_string())
                .with_setting("dbname", "postgres");
            of_conninfo(conninfo)
        }
    }
}

async fn engine() -> Result<Engine, Failure> {
    Ok(Engine::connect(|name| std::env::var(name).ok()).await?)
}

/// By the container's name, or the service's in the Compose project of this folder or, if it is the only one, of any.
async fn named_container(name: &str) -> Result<FoundServer, Failure> {
    let engine = engine().await?;
    let servers = engine.servers().await?;
    if let Some(found) = servers.iter().find(|server| server.name == name) {
        return Ok(found.clone());
    }
    let of_service = |server: &&FoundServer| {
        server
            .compose
            .as_ref()
            .is_some_and(|compose| compose.service == name)
    };
    let services: Vec<&FoundServer> = servers.iter().filter(of_service).collect();
    let here = services.iter().find(|server| is_here(server));
    if let Some(found) = here.or(if services.len() == 1 {
        services.first()
    } else {
        None
    }) {
        return Ok((*found).clone());
    }
    let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
    Err(Failure::usage(
        format!("no running container '{name}' with a PostgreSQL server"),
        match names.is_empty() {
            true => format!(
                "start it: docker compose up -d, or docker start {}",
                quote_for_shell(name)
            ),
            false => format!(
                "running are: {}; or start it: docker compose up -d, or docker start {}",
                names.join(", "),
                quote_for_shell(name)
            ),
        },
    ))
}

/// Whether the container is of the Compose project in this folder.
fn is_here(server: &FoundServer) -> bool {
    let here = std::env::current_dir().and_then(|path| path.canonicalize());
    let directory = server
        .compose
        .as_ref()
        .map(|compose| compose.directory.canonicalize());
    matches!((here, directory), (Ok(here), Some(Ok(directory))) if here == directory)
}

/// The servers of this folder's Compose project; else all in containers, and all with a socket.
async fn candidates() -> Vec<Candidate> {
    let containers = match engine().await {
        Ok(engine) => engine.servers().await.unwrap_or_default(),
        Err(failure) => {
            tracing::debug!(?failure, "no Docker");
            Vec::new()
        }
    };
    let (here, elsewhere): (Vec<_>, Vec<_>) = containers.into_iter().partition(is_here);
    let containers = |found: Vec<FoundServer>| {
        found
            .into_iter()
            .map(|found| Candidate::Container(Box::new(found)))
    };
    if !here.is_empty() {
        return containers(here).collect();
    }
    containers(elsewhere).chain(sockets()).collect()
}

fn sockets() -> Vec<Candidate> {
    let mut found = Vec::new();
    for directory in SOCKET_DIRECTORIES {
        let Ok(entries) = Path::new(directory).read_dir() else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let port = name.to_str().and_then(|name| name.strip_prefix(SOCKET_PREFIX));
            if let Some(port) = port.and_then(|port| port.parse().ok()) {
                let directory = directory.to_owned();
                found.push(Candidate::Socket { directory, port });
            }
        }
    }
    found
}

fn of_container(context: &Context, found: FoundServer) -> Result<Source, Failure> {
    if !found.is_published {
        context.output.note(format!(
            "the container {} publishes no port: {} is its address only until it is made anew; publish one \
             (ports: [\"127.0.0.1:5432:5432\"])",
            found.name, found.host
        ));
    }
    let mut conninfo = Conninfo::default()
        .with_setting("host", &found.host)
        .with_setting("port", &found.port.to_string())
        .with_setting("user", &found.user)
        .with_setting("dbname", &found.database);
    if let Some(password) = &found.password {
        conninfo = conninfo.with_setting("password", password.expose());
    }
    Ok(Source {
        container: Some(found.name),
        image: Some(found.image),
        ..of_conninfo(conninfo)?
    })
}

/// What was written, completed with what only this shell's variables say.
fn of_conninfo(written: Conninfo) -> Result<Source, Failure> {
    let target = written.resolve(&Environment::process())?;
    let password = match target.password() {
        Some((password, PasswordSource::ConnectionString | PasswordSource::Variable(_))) => Some(password),
        _ => None,
    };
    let (mut conninfo, _) = written.split_password();
    if conninfo.setting("service").is_none() && std::env::var_os("PGSERVICE").is_none() {
        let host = target.first_host();
        let values = [
            ("host", host.as_ref().map(|(host, _)| host.clone())),
            ("port", host.as_ref().map(|(_, port)| port.to_string())),
            ("user", Some(target.user().to_owned())),
            ("dbname", Some(target.database().to_owned())),
        ];
        for (name, value) in values {
            let is_given = conninfo.setting(name).is_some()
                || (name == "host" && conninfo.setting("hostaddr").is_some());
            if let (false, Some(value)) = (is_given, value) {
                conninfo = conninfo.with_setting(name, &value);
            }
        }
    }
    Ok(Source {
        passfile_line: password.as_ref().map(|password| target.passfile_line(password)),
        conninfo,
        container: None,
        image: None,
        facts: None,
    })
}
