use std::error::Error;
use std::time::Duration;

use pgkeep_base::{Classified, Hint, RetryClass};

/// What can go wrong between this program and Docker's engine, or with a container.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// `DOCKER_HOST` names a way that isn't spoken here.
    #[error("DOCKER_HOST is '{0}', and only unix:// and tcp:// without TLS are supported")]
    Host(String),
    /// Nobody answers.
    #[error("Docker's engine can't be reached at {address}: {reason}")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// Why.
        reason: String,
    },
    /// The engine answered with an error.
    #[error("{doing}: {message}")]
    Engine {
        /// What was asked of it, in the present tense.
        doing: String,
        /// The HTTP status, where it gave one.
        status: Option<u16>,
        /// Its answer.
        message: String,
    },
    /// The engine took too long.
    #[error("{doing}: Docker's engine did not answer within {} s", after.as_secs())]
    Deadline {
        /// What was asked of it.
        doing: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// A program was to be run in a container that doesn't run.
    #[error("there is no running container '{0}'")]
    NotRunning(String),
    /// A container's programs were to be used for a server elsewhere.
    #[error("the programs of the container '{container}' reach its own server, and {server} is another one")]
    OtherServer {
        /// The container's name.
        container: String,
        /// The server, as it was named.
        server: String,
    },
    /// A name of an image that can't be one.
    #[error("'{0}' is no name of an image")]
    ImageName(String),
    /// A name that no container can have.
    #[error("'{0}' is no name of a container: letters, digits, '_', '.' and '-', two at least")]
    Name(String),
    /// Where the container listens can't be written as a connection string.
    #[error("the container's address is not usable: {0}")]
    Address(String),
    /// The image could not be brought from its registry.
    #[error("the image {image} is not on this machine and can't be pulled: {reason}")]
    Pull {
        /// The image.
        image: String,
        /// Why.
        reason: String,
    },
    /// The image says nothing of where PostgreSQL keeps its data.
    #[error("the image {0} sets no PGDATA, as images of PostgreSQL do")]
    NotPostgres(String),
    /// A container or volume of that name is there already, and wasn't touched.
    #[error("there is a {kind} '{name}' already")]
    NameTaken {
        /// `container` or `volume`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// What was to be gone on with isn't there, or is something else.
    #[error("there is no container '{name}' with an unfinished restore of this dump")]
    NothingToResume {
        /// The container's name.
        name: String,
    },
    /// The container ended instead of serving.
    #[error("the container '{name}' ended while starting (exit code {exit_code}); its log ends with:\n{log}")]
    Ended {
        /// Its name.
        name: String,
        /// Its exit code.
        exit_code: i64,
        /// The end of its log.
        log: String,
    },
    /// It was not ready in time.
    #[error("the server in container '{name}' could not be reached within {} s: {reason}; its log ends with:\n{log}",
        after.as_secs())]
    NotReady {
        /// The container's name.
        name: String,
        /// How long it was waited for.
        after: Duration,
        /// What the last attempt to connect said.
        reason: String,
        /// The end of its log.
        log: String,
    },
    /// It had to be killed.
    #[error("the server in container '{name}' did not shut down cleanly (exit code {exit_code})")]
    NotStopped {
        /// The container's name.
        name: String,
        /// Its exit code.
        exit_code: i64,
    },
    /// Everything is restored, and the server could not be handed over.
    #[error(
        "the restore is complete in the volume '{name}', but its server could not be started anew: {source}"
    )]
    HandOver {
        /// The name of the volume, and of the container.
        name: String,
        /// What starts a container on it.
        start_command: String,
        /// What went wrong.
        source: Box<DockerError>,
    },
    /// No port is free.
    #[error("no port of 127.0.0.1 from {first} to {last} is free")]
    NoPort {
        /// The first that was tried.
        first: u16,
        /// The last.
        last: u16,
    },
    /// A statement that the new server has to be prepared with failed.
    #[error("preparing the server in container '{name}': {source}")]
    Prepare {
        /// The container's name.
        name: String,
        /// PostgreSQL's answer.
        source: pgkeep_pg::PgError,
    },
    /// The user pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl DockerError {
    /// Something on this side of the engine failed.
    pub(crate) fn here(error: &std::io::Error, doing: &str) -> Self {
        Self::Engine {
            doing: doing.to_owned(),
            status: None,
            message: error.to_string(),
        }
    }

    pub(crate) fn of(error: &bollard::errors::Error, doing: &str, address: &str, after: Duration) -> Self {
        use bollard::errors::Error as Bollard;
        match error {
            Bollard::DockerResponseServerError { status_code, message } => Self::Engine {
                doing: doing.to_owned(),
                status: Some(*status_code),
                message: message.trim().to_owned(),
            },
            Bollard::DockerStreamError { error } => Self::Engine {
                doing: doing.to_owned(),
                status: None,
                message: error.clone(),
            },
            Bollard::RequestTimeoutError => Self::Deadline {
                doing: doing.to_owned(),
                after,
            },
            Bollard::SocketNotFoundError(_) => Self::Unreachable {
                address: address.to_owned(),
                reason: "there is no such socket".to_owned(),
            },
            Bollard::HyperLegacyError { err } if err.is_connect() => Self::Unreachable {
                address: address.to_owned(),
                reason: innermost(err),
            },
            other => Self::Engine {
                doing: doing.to_owned(),
                status: None,
                message: innermost(other),
            },
        }
    }

    /// Somebody has the port that was to lead to a container.
    pub(crate) fn is_port_taken(&self) -> bool {
        let taken = |message: &str| {
            message.contains("port is already allocated") || message.contains("address already in use")
        };
        matches!(self, Self::Engine { message, .. } if taken(message))
    }

    /// The engine knows no such container, image or volume.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Engine {
                status: Some(404),
                ..
            }
        )
    }
}

/// The last cause says what happened; those above it only that something did.
fn innermost(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

impl Classified for DockerError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::Host(_)
            | Self::ImageName(_)
            | Self::Name(_)
            | Self::NotPostgres(_)
            | Self::NotRunning(_)
            | Self::OtherServer { .. } => RetryClass::Usage,
            Self::NameTaken { .. } | Self::NothingToResume { .. } => RetryClass::Refused,
            Self::Deadline { .. } | Self::NotReady { .. } => RetryClass::Transient,
            Self::Prepare { source, .. } => source.retry_class(),
            _ => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        let text = match self {
            Self::Host(_) => {
                "for another machine's engine, run pgkeep on that machine".to_owned()
            }
            Self::Unreachable { reason, .. } if reason.contains("ermission denied") => {
                "run pgkeep as root, or as a member of the group docker".to_owned()
            }
            Self::Unreachable { .. } => {
                "start Docker, or name its socket: export DOCKER_HOST=unix:///run/user/1000/docker.sock".to_owned()
            }
            Self::NotRunning(name) => format!("start it: docker start {name}; 'docker ps' shows those that run"),
            Self::OtherServer { .. } => {
                "name a directory with PostgreSQL's programs: --pg-bin DIRECTORY".to_owned()
            }
            Self::ImageName(_) => "write --into image:NAME[:TAG], such as image:postgres:17".to_owned(),
            Self::Pull { image, .. } => {
                format!("bring it by hand, with your own credentials: docker pull {image}")
            }
            Self::NotPostgres(_) => {
                "use the official image or one made from it: image:postgres:17, image:timescale/timescaledb:latest-pg17"
                    .to_owned()
            }
            Self::NameTaken { .. } => {
                "give the new one another name with --container NAME; what a restore left unfinished goes on with --resume"
                    .to_owned()
            }
            Self::NothingToResume { .. } => "start over without --resume".to_owned(),
            Self::NotReady { .. } => {
                "pgkeep has to run on the machine of Docker's engine, or in a container on its bridge network".to_owned()
            }
            Self::HandOver { name, start_command, .. } => {
                format!("look at 'docker logs {name}'; start a container on the volume with: {start_command}")
            }
            Self::NoPort { .. } => "choose one with --port PORT".to_owned(),
            Self::Prepare { source, .. } => return source.hint(),
            _ => return None,
        };
        Some(Hint::new(text))
    }
}
