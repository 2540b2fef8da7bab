use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, CreateImageInfo, HostConfig, Mount, MountType,
    PortBinding, VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, DownloadFromContainerOptions, ListContainersOptions,
    LogsOptions, RemoveContainerOptions, RemoveVolumeOptions, RestartContainerOptions, StopContainerOptions,
    UploadToContainerOptions,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};

use crate::DockerError;
use crate::image::{Image, ImageName, Pulled};

/// How long the engine may take for what it does at once.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// An image that is being pulled may be silent so long: extracting a large layer says nothing meanwhile.
const PULL_SILENCE_LIMIT: Duration = Duration::from_secs(300);
/// What is shown of a container's log.
const LOG_LINES: &str = "15";
const LOG_BYTES_MAX: usize = 16 << 10;
/// A file that is read from a container.
const FILE_BYTES_MAX: usize = 64 << 10;
/// What the user has when nothing else is said.
const SOCKET_DEFAULT: &str = "/var/run/docker.sock";

/// Docker's engine.
#[derive(Clone)]
pub struct Engine {
    pub(crate) docker: Docker,
    pub(crate) address: String,
}

/// A container to make.
pub(crate) struct NewContainer<'a> {
    pub name: &'a str,
    pub image: &'a ImageName,
    /// None for the image's own.
    pub command: Option<Vec<String>>,
    pub environment: Vec<String>,
    pub labels: HashMap<String, String>,
    /// The volume's name and where it is mounted.
    pub volume: (&'a str, &'a str),
    /// The port in the container and that of 127.0.0.1 that leads to it.
    pub port: (u16, u16),
    pub shared_memory_bytes: i64,
    pub stop_signal: &'a str,
    pub stop_limit: Duration,
}

/// What became of a container.
#[derive(Debug, Clone, Default)]
pub struct ContainerState {
    /// Its image, as it was named.
    pub image: String,
    /// Whether its first process runs.
    pub running: bool,
    /// How that process ended.
    pub exit_code: i64,
    /// What it was marked with.
    pub labels: HashMap<String, String>,
    /// Its addresses on Docker's networks.
    pub addresses: Vec<String>,
    /// Ports of this machine, by the port in the container.
    pub ports: HashMap<u16, u16>,
}

impl Engine {
    /// The engine that `DOCKER_HOST` names, else the one behind the usual socket: the machine's, or, where there is
    /// none, the user's own (rootless). `variable` reads the environment.
    ///
    /// # Errors
    /// [`DockerError::Host`], or [`DockerError::Unreachable`] when nobody answers.
    pub async fn connect(variable: impl Fn(&str) -> Option<String>) -> Result<Self, DockerError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let address = set("DOCKER_HOST").unwrap_or_else(|| {
            let rootless = set("XDG_RUNTIME_DIR").map(|directory| format!("{directory}/docker.sock"));
            let sockets = [Some(SOCKET_DEFAULT.to_owned()), rootless];
            let found = sockets
                .into_iter()
                .flatten()
                .find(|path| Path::new(path).exists());
            format!("unix://{}", found.as_deref().unwrap_or(SOCKET_DEFAULT))
        });
        let tls = set("DOCKER_TLS_VERIFY").is_some() && !address.starts_with("unix://");
        if tls
            || !["unix://", "tcp://", "http://"]
                .iter()
                .any(|way| address.starts_with(way))
        {
            return Err(DockerError::Host(address));
        }
        let doing = "connecting to Docker";
        let docker = Docker::connect_with_host(&address)
            .map_err(|error| DockerError::of(&error, doing, &address, REQUEST_LIMIT))?
            // Each request has a limit of its own.
            .with_timeout(Duration::MAX);
        let engine = Self { docker, address };
        let docker = engine
            .call(doing, REQUEST_LIMIT, engine.docker.clone().negotiate_version())
            .await?;
        Ok(Self { docker, ..engine })
    }

    pub(crate) async fn call<T>(
        &self,
        doing: &str,
        limit: Duration,
        request: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, DockerError> {
        match tokio::time::timeout(limit, request).await {
            Ok(answer) => answer.map_err(|error| DockerError::of(&error, doing, &self.address, limit)),
            Err(_) => Err(DockerError::Deadline {
                doing: doing.to_owned(),
                after: limit,
            }),
        }
    }

    /// What an image says of itself; none if it isn't on this machine.
    ///
    /// # Errors
    /// The engine's.
    pub async fn image(&self, name: &ImageName) -> Result<Option<Image>, DockerError> {
        let (doing, text) = (format!("looking at the image {name}"), name.to_string());
        let found = self
            .call(&doing, REQUEST_LIMIT, self.docker.inspect_image(&text))
            .await;
        let Some(image) = none_if_missing(found)? else {
            return Ok(None);
        };
        let config = image.config.unwrap_or_default();
        Ok(Some(Image {
            environment: config.env.unwrap_or_default(),
            command: config.cmd.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            volumes: config.volumes.unwrap_or_default(),
        }))
    }

    /// Brings an image from its registry; `tell` hears how far it has come. Registries that ask for credentials are for
    /// `docker pull`, which knows where they are.
    ///
    /// # Errors
    /// [`DockerError::Pull`]; the engine says nothing for too long.
    pub async fn pull(&self, name: &ImageName, mut tell: impl FnMut(Pulled)) -> Result<(), DockerError> {
        let doing = format!("pulling the image {name}");
        let options = CreateImageOptions {
            from_image: Some(name.repository().to_owned()),
            tag: name.tag().map(str::to_owned),
            ..CreateImageOptions::default()
        };
        let mut steps = self.docker.create_image(Some(options), None, None);
        let mut layers = Layers::default();
        while let Some(step) = self
            .call(&doing, PULL_SILENCE_LIMIT, async {
                steps.next().await.transpose()
            })
            .await
            .map_err(|error| pull_error(name, error))?
        {
            if layers.add(step) {
                tell(layers.sum());
            }
        }
        Ok(())
    }

    /// The container of that name; none if there is none.
    ///
    /// # Errors
    /// The engine's.
    pub async fn container(&self, name: &str) -> Result<Option<ContainerState>, DockerError> {
        Ok(self.inspect(name).await?.map(ContainerState::from))
    }

    /// All that the engine says of a container; none if there is none of that name.
    pub(crate) async fn inspect(&self, name: &str) -> Result<Option<ContainerInspectResponse>, DockerError> {
        let doing = format!("looking at the container '{name}'");
        let found = self
            .call(&doing, REQUEST_LIMIT, self.docker.inspect_container(name, None))
            .await;
        none_if_missing(found)
    }

    /// The ids of the containers that run.
    pub(crate) async fn running(&self) -> Result<Vec<String>, DockerError> {
        let request = self.docker.list_containers(None::<ListContainersOptions>);
        let found = self
            .call("listing the containers", REQUEST_LIMIT, request)
            .await?;
        Ok(found.into_iter().filter_map(|container| container.id).collect())
    }

    pub(crate) async fn create(&self, new: NewContainer<'_>) -> Result<(), DockerError> {
        let doing = format!("creating the container '{}'", new.name);
        let (inside, outside) = (format!("{}/tcp", new.port.0), new.port.1.to_string());
        let binding = PortBinding {
            host_ip: Some("127.0.0.1".to_owned()),
            host_port: Some(outside),
        };
        let mount = Mount {
            typ: Some(MountType::VOLUME),
            source: Some(new.volume.0.to_owned()),
            target: Some(new.volume.1.to_owned()),
            ..Mount::default()
        };
        let host = HostConfig {
            port_bindings: Some(HashMap::from([(inside.clone(), Some(vec![binding]))])),
            mounts: Some(vec![mount]),
            shm_size: Some(new.shared_memory_bytes),
            ..HostConfig::default()
        };
        let body = ContainerCreateBody {
            image: Some(new.image.to_string()),
            cmd: new.command,
            env: Some(new.environment),
            labels: Some(new.labels),
            exposed_ports: Some(vec![inside]),
            stop_signal: Some(new.stop_signal.to_owned()),
            stop_timeout: i64::try_from(new.stop_limit.as_secs()).ok(),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptions {
            name: Some(new.name.to_owned()),
            ..CreateContainerOptions::default()
        };
        let request = self.docker.create_container(Some(options), body);
        let made = self.call(&doing, REQUEST_LIMIT, request).await?;
        for warning in made.warnings {
            tracing::debug!(warning, container = new.name, "Docker warns");
        }
        Ok(())
    }

    pub(crate) async fn start(&self, name: &str) -> Result<(), DockerError> {
        let doing = format!("starting the container '{name}'");
        self.call(&doing, REQUEST_LIMIT, self.docker.start_container(name, None))
            .await
    }

    /// Sends the stop signal and waits; after `limit` the engine kills it.
    pub(crate) async fn stop(&self, name: &str, limit: Duration) -> Result<(), DockerError> {
        let doing = format!("stopping the container '{name}'");
        let options = StopContainerOptions {
            t: seconds(limit),
            ..StopContainerOptions::default()
        };
        let request = self.docker.stop_container(name, Some(options));
        self.call(&doing, limit + REQUEST_LIMIT, request).await
    }

    pub(crate) async fn restart(&self, name: &str, limit: Duration) -> Result<(), DockerError> {
        let doing = format!("restarting the container '{name}'");
        let options = RestartContainerOptions {
            t: seconds(limit),
            ..RestartContainerOptions::default()
        };
        let request = self.docker.restart_container(name, Some(options));
        self.call(&doing, limit + REQUEST_LIMIT, request).await
    }

    /// Removes a container, running or not, with the volumes that nobody named. One that isn't there is no error.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), DockerError> {
        let doing = format!("removing the container '{name}'");
        let options = RemoveContainerOptions {
            v: true,
            force: true,
            link: false,
        };
        let request = self.docker.remove_container(name, Some(options));
        none_if_missing(self.call(&doing, REQUEST_LIMIT, request).await).map(|_| ())
    }

    /// The end of its log.
    pub(crate) async fn log_tail(&self, name: &str) -> String {
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            tail: LOG_LINES.to_owned(),
            ..LogsOptions::default()
        };
        let mut lines = self.docker.logs(name, Some(options));
        let reading = async {
            let mut text = String::new();
            while let Some(Ok(line)) = lines.next().await {
                text.push_str(&line.to_string());
                if text.len() >= LOG_BYTES_MAX {
                    break;
                }
            }
            text
        };
        let text = tokio::time::timeout(REQUEST_LIMIT, reading)
            .await
            .unwrap_or_default();
        text.trim_end().to_owned()
    }

    /// What a volume is marked with; none if there is no such volume.
    pub(crate) async fn volume(&self, name: &str) -> Result<Option<HashMap<String, String>>, DockerError> {
        let doing = format!("looking at the volume '{name}'");
        let found = self
            .call(&doing, REQUEST_LIMIT, self.docker.inspect_volume(name))
            .await;
        Ok(none_if_missing(found)?.map(|volume| volume.labels))
    }

    pub(crate) async fn create_volume(
        &self,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), DockerError> {
        let doing = format!("creating the volume '{name}'");
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        self.call(&doing, REQUEST_LIMIT, self.docker.create_volume(request))
            .await?;
        Ok(())
    }

    /// Removes a volume; one that isn't there is no error.
    pub(crate) async fn remove_volume(&self, name: &str) -> Result<(), DockerError> {
        let doing = format!("removing the volume '{name}'");
        let request = self.docker.remove_volume(name, None::<RemoveVolumeOptions>);
        none_if_missing(self.call(&doing, REQUEST_LIMIT, request).await).map(|_| ())
    }

    /// Puts a file with a folder of its own below `/`, owned by root.
    pub(crate) async fn put_file(
        &self,
        container: &str,
        folder: &str,
        file: &str,
        mode: u32,
        contents: &[u8],
    ) -> Result<(), DockerError> {
        let doing = format!("writing /{folder}/{file} in the container '{container}'");
        let archive = archive(folder, file, mode, contents);
        let archive = archive.map_err(|error| DockerError::here(&error, &doing))?;
        let archive = futures::stream::iter([Bytes::from(archive)]);
        self.unpack(container, archive, &doing, REQUEST_LIMIT).await
    }

    /// Unpacks a tar archive below `/`. It comes as a stream, because the client would write a body that it has whole into its
    /// own trace.
    pub(crate) async fn unpack(
        &self,
        container: &str,
        archive: impl Stream<Item = Bytes> + Send + 'static,
        doing: &str,
        limit: Duration,
    ) -> Result<(), DockerError> {
        let options = UploadToContainerOptions {
            path: "/".to_owned(),
            ..UploadToContainerOptions::default()
        };
        let body = bollard::body_stream(archive);
        let request = self.docker.upload_to_container(container, Some(options), body);
        self.call(doing, limit, request).await
    }

    /// Reads a small file of a container.
    pub(crate) async fn read_file(&self, container: &str, path: &str) -> Result<Vec<u8>, DockerError> {
        let doing = format!("reading {path} in the container '{container}'");
        let options = DownloadFromContainerOptions {
            path: path.to_owned(),
        };
        let pieces = self.docker.download_from_container(container, Some(options));
        let collect = pieces.try_fold(Vec::new(), |mut all, piece| async move {
            if all.len() < FILE_BYTES_MAX {
                all.extend_from_slice(&piece);
            }
            Ok(all)
        });
        let archive = self.call(&doing, REQUEST_LIMIT, collect).await?;
        first_file(&archive).map_err(|error| DockerError::here(&error, &doing))
    }
}

fn seconds(limit: Duration) -> Option<i32> {
    i32::try_from(limit.as_secs()).ok()
}

fn none_if_missing<T>(found: Result<T, DockerError>) -> Result<Option<T>, DockerError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn pull_error(name: &ImageName, error: DockerError) -> DockerError {
    match error {
        DockerError::Engine { message, .. } => DockerError::Pull {
            image: name.to_string(),
            reason: message,
        },
        other => other,
    }
}

fn archive(folder: &str, file: &str, mode: u32, contents: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    builder.append_data(&mut header, folder, std::io::empty())?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(contents.len() as u64);
    builder.append_data(&mut header, format!("{folder}/{file}"), contents)?;
    builder.into_inner()
}

fn first_file(archive: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let mut contents = Vec::new();
    if let Some(entry) = archive.entries()?.next() {
        entry?.take(FILE_BYTES_MAX as u64).read_to_end(&mut contents)?;
    }
    Ok(contents)
}

/// The layers of an image on their way.
#[derive(Default)]
struct Layers(HashMap<String, Pulled>);

impl Layers {
    /// Whether the step changed the sum.
    fn add(&mut self, step: CreateImageInfo) -> bool {
        let downloading = step.status.as_deref() == Some("Downloading");
        let complete = matches!(
            step.status.as_deref(),
            Some("Download complete" | "Pull complete")
        );
        let Some(id) = step.id.filter(|_| downloading || complete) else {
            return false;
        };
        let detail = step.progress_detail.unwrap_or_default();
        let bytes = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        let layer = self.0.entry(id).or_default();
        if let (true, Some(total)) = (downloading, bytes(detail.total)) {
            layer.total_bytes = total;
            layer.done_bytes = bytes(detail.current).unwrap_or(0).min(total);
        }
        if complete {
            layer.done_bytes = layer.total_bytes;
        }
        true
    }

    fn sum(&self) -> Pulled {
        let add = |sum: Pulled, layer: &Pulled| Pulled {
            done_bytes: sum.done_bytes.saturating_add(layer.done_bytes),
            total_bytes: sum.total_bytes.saturating_add(layer.total_bytes),
        };
        self.0.values().fold(Pulled::default(), add)
    }
}

impl From<ContainerInspectResponse> for ContainerState {
    fn from(found: ContainerInspectResponse) -> Self {
        let (state, config) = (found.state.unwrap_or_default(), found.config.unwrap_or_default());
        let network = found.network_settings.unwrap_or_default();
        let addresses = network.networks.unwrap_or_default().into_values();
        let addresses = addresses
            .filter_map(|endpoint| endpoint.ip_address)
            .filter(|text| !text.is_empty());
        let wanted = found
            .host_config
            .unwrap_or_default()
            .port_bindings
            .unwrap_or_default();
        let port = |(inside, bindings): (String, Option<Vec<PortBinding>>)| {
            let inside = inside.strip_suffix("/tcp")?.parse().ok()?;
            let outside = bindings?
                .into_iter()
                .find_map(|binding| binding.host_port?.parse().ok())?;
            Some((inside, outside))
        };
        Self {
            image: config.image.unwrap_or_default(),
            running: state.running.unwrap_or(false),
            exit_code: state.exit_code.unwrap_or(0),
            labels: config.labels.unwrap_or_default(),
            addresses: addresses.collect(),
            // What Docker chose for a running one stands over what was asked for.
            ports: wanted
                .into_iter()
                .chain(network.ports.unwrap_or_default())
                .filter_map(port)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(id: &str, status: &str, current: i64, total: i64) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: Some(bollard::models::ProgressDetail {
                current: Some(current),
                total: Some(total),
            }),
            ..CreateImageInfo::default()
        }
    }

    #[test]
    fn layers_add_up() {
        let mut layers = Layers::default();
        assert!(!layers.add(step("17", "Pulling from library/postgres", 0, 0)));
        assert!(layers.add(step("a", "Downloading", 10, 100)));
        assert!(layers.add(step("b", "Downloading", 5, 50)));
        assert!(!layers.add(step("b", "Extracting", 1, 50)));
        assert!(layers.add(step("a", "Download complete", 0, 0)));
        let expected = Pulled {
            done_bytes: 105,
            total_bytes: 150,
        };
        assert_eq!(layers.sum(), expected);
    }

    #[test]
    fn a_file_goes_into_an_archive_and_out() {
        let made = archive("etc/pgkeep", "password", 0o400, b"text").unwrap();
        let mut read = tar::Archive::new(&made[..]);
        let entries: Vec<(String, u32)> = read
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                (
                    header.path().unwrap().display().to_string(),
                    header.mode().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            entries,
            [
                ("etc/pgkeep".to_owned(), 0o755),
                ("etc/pgkeep/password".to_owned(), 0o400)
            ]
        );
    }
}
