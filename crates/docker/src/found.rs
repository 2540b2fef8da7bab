//! PostgreSQL servers that run in somebody else's containers, by the conventions of the official image: what a client has to
//! know to reach them.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::{ContainerInspectResponse, PortBinding};
use pgkeep_base::Secret;

use crate::{DockerError, Engine};

pub(crate) const PORT_DEFAULT: u16 = 5432;
const SUPERUSER_DEFAULT: &str = "postgres";
/// Set by every image made from the official one.
const IMAGES_VARIABLE: &str = "PGDATA";
const LABEL_PROJECT: &str = "com.docker.compose.project";
const LABEL_SERVICE: &str = "com.docker.compose.service";
const LABEL_DIRECTORY: &str = "com.docker.compose.project.working_dir";

/// Which service of which Compose project a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeService {
    /// The project's name.
    pub project: String,
    /// The service's.
    pub service: String,
    /// Where the Compose file is.
    pub directory: PathBuf,
}

/// A server in a running container.
#[derive(Debug, Clone)]
pub struct FoundServer {
    /// The container's name.
    pub name: String,
    /// Its image, as it was named.
    pub image: String,
    /// Where Docker Compose made it.
    pub compose: Option<ComposeService>,
    /// Where it is reached from this machine.
    pub host: String,
    /// The same.
    pub port: u16,
    /// Whether that is a published port. Otherwise it is the container's address, which changes when it is made anew.
    pub is_published: bool,
    /// The superuser that the image made.
    pub user: String,
    /// The database that the image made.
    pub database: String,
    /// The superuser's password, where the container was given one. (It may have been changed since.)
    pub password: Option<Secret>,
}

impl Engine {
    /// The server in a running container of that name; none if there is no such container, or it is no server that can be
    /// reached.
    ///
    /// # Errors
    /// The engine's.
    pub async fn server(&self, container: &str) -> Result<Option<FoundServer>, DockerError> {
        let Some(inspected) = self.inspect(container).await? else {
            return Ok(None);
        };
        let password_file = variables(&inspected).remove("POSTGRES_PASSWORD_FILE");
        let Some(mut found) = from_inspected(inspected) else {
            return Ok(None);
        };
        if let (None, Some(path)) = (&found.password, password_file) {
            // A secret of Compose: mounted, and not always to be copied out.
            if let Ok(bytes) = self.read_file(&found.name, &path).await {
                let text = String::from_utf8_lossy(&bytes);
                found.password = Some(Secret::new(text.trim_end_matches(['\r', '\n'])));
            }
        }
        Ok(Some(found))
    }

    /// All servers in running containers, by their containers' names.
    ///
    /// # Errors
    /// The engine's.
    pub async fn servers(&self) -> Result<Vec<FoundServer>, DockerError> {
        let mut servers = Vec::new();
        for id in self.running().await? {
            servers.extend(self.server(&id).await?);
        }
        servers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(servers)
    }
}

fn variables(inspected: &ContainerInspectResponse) -> HashMap<String, String> {
    let config = inspected.config.as_ref();
    let lines = config
        .and_then(|config| config.env.as_ref())
        .into_iter()
        .flatten();
    lines
        .filter_map(|line| line.split_once('='))
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn from_inspected(inspected: ContainerInspectResponse) -> Option<FoundServer> {
    let mut variables = variables(&inspected);
    if !variables.contains_key(IMAGES_VARIABLE) || inspected.state?.running != Some(true) {
        return None;
    }
    let inside = variables
        .get("PGPORT")
        .and_then(|port| port.parse().ok())
        .unwrap_or(PORT_DEFAULT);
    let config = inspected.config.unwrap_or_default();
    let network = inspected.network_settings.unwrap_or_default();
    let bindings = network
        .ports
        .unwrap_or_default()
        .remove(&format!("{inside}/tcp"))
        .flatten();
    let published = bindings.into_iter().flatten().find_map(published);
    let address = network
        .networks
        .unwrap_or_default()
        .into_values()
        .filter_map(|endpoint| endpoint.ip_address)
        .find(|address| !address.is_empty());
    let is_published = published.is_some();
    // On the host's own network there is neither.
    let (host, port) = published
        .or_else(|| Some((address?, inside)))
        .unwrap_or_else(|| ("127.0.0.1".to_owned(), inside));
    let user = variables
        .remove("POSTGRES_USER")
        .unwrap_or_else(|| SUPERUSER_DEFAULT.to_owned());
    Some(FoundServer {
        name: inspected
            .name
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned(),
        image: config.image.unwrap_or_default(),
        compose: compose(&config.labels.unwrap_or_default()),
        host,
        port,
        is_published,
        database: variables.remove("POSTGRES_DB").unwrap_or_else(|| user.clone()),
        password: variables.remove("POSTGRES_PASSWORD").map(Secret::new),
        user,
    })
}

/// What is published on all addresses is published on this machine's own.
fn published(binding: PortBinding) -> Option<(String, u16)> {
    let port = binding.host_port?.parse().ok()?;
    let host = match binding.host_ip.as_deref() {
        None | Some("" | "0.0.0.0" | "::") => "127.0.0.1".to_owned(),
        Some(address) => address.to_owned(),
    };
    Some((host, port))
}

fn compose(labels: &HashMap<String, String>) -> Option<ComposeService> {
    Some(ComposeService {
        project: labels.get(LABEL_PROJECT)?.clone(),
        service: labels.get(LABEL_SERVICE)?.clone(),
        directory: labels.get(LABEL_DIRECTORY).map(PathBuf::from)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(text: &str) -> ContainerInspectResponse {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_compose_service_is_known_with_all_that_a_client_needs() {
        let found = from_inspected(inspected(
            r#"{"Name": "/gamepulse-db-1", "State": {"Running": true},
                "Config": {"Image": "timescale/timescaledb:2.17.2-pg17",
                  "Env": ["PGDATA=/var/lib/postgresql/data", "POSTGRES_USER=game", "POSTGRES_DB=app",
                          "POSTGRES_PASSWORD=hunter2", "EMPTY="],
                  "Labels": {"com.docker.compose.project": "gamepulse", "com.docker.compose.service": "db",
                             "com.docker.compose.project.working_dir": "/srv/gamepulse"}},
                "NetworkSettings": {"Ports": {"5432/tcp": [{"HostIp": "0.0.0.0", "HostPort": "15432"}]},
                  "Networks": {"default": {"IPAddress": "172.18.0.2"}}}}"#,
        ))
        .unwrap();
        assert_eq!(
            (
                found.name.as_str(),
                found.host.as_str(),
                found.port,
                found.is_published
            ),
            ("gamepulse-db-1", "127.0.0.1", 15432, true)
        );
        assert_eq!((found.user.as_str(), found.database.as_str()), ("game", "app"));
        assert_eq!(found.password.as_ref().unwrap().expose(), "hunter2");
        assert!(!format!("{found:?}").contains("hunter2"));
        let compose = found.compose.unwrap();
        assert_eq!(
            (compose.service.as_str(), compose.directory),
            ("db", PathBuf::from("/srv/gamepulse"))
        );
    }

    #[test]
    fn without_a_published_port_there_is_the_address_and_what_is_no_server_is_passed_over() {
        let found = from_inspected(inspected(
            r#"{"Name": "/db", "State": {"Running": true},
                "Config": {"Image": "postgres:17", "Env": ["PGDATA=/data", "PGPORT=6000"]},
                "NetworkSettings": {"Ports": {"6000/tcp": null}, "Networks": {"bridge": {"IPAddress": "172.17.0.2"}}}}"#,
        ))
        .unwrap();
        assert_eq!(
            (found.host.as_str(), found.port, found.is_published),
            ("172.17.0.2", 6000, false)
        );
        assert_eq!(
            (found.user.as_str(), found.database.as_str()),
            ("postgres", "postgres")
        );
        for other in [
            r#"{"Name": "/web", "State": {"Running": true}, "Config": {"Env": ["PATH=/bin"]}}"#,
            r#"{"Name": "/db", "State": {"Running": false}, "Config": {"Env": ["PGDATA=/data"]}}"#,
            "{}",
        ] {
            assert!(from_inspected(inspected(other)).is_none(), "{other}");
        }
    }
}
