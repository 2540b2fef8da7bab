use std::collections::HashMap;
use std::path::Path as FilePath;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, ObjectStore, RetryConfig};

use crate::error::{StoreError, StoreErrorKind};
use crate::fault::FaultyStore;
use crate::http::{NotingConnector, ServerClock};
use crate::local::LocalDisk;
use crate::options::StoreOptions;
use crate::s3::S3Settings;
use crate::store_url::StoreUrl;

/// Which kind of store it is, where the kinds differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    File,
    Memory,
    S3,
    Gcs,
    Azure,
}

/// A store that was opened, before retries and counting.
pub(crate) struct Opened {
    pub(crate) backend: Backend,
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// Not on `file://`, where a growing file does better.
    pub(crate) multipart: Option<Arc<dyn MultipartStore>>,
    pub(crate) local: Option<LocalDisk>,
    pub(crate) s3: Option<S3Settings>,
    /// The repository's place in it.
    pub(crate) prefix: Path,
    pub(crate) clock: Arc<ServerClock>,
}

pub(crate) async fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Opened, StoreError> {
    // reqwest takes the process' TLS library and panics without one. Somebody else's choice is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let connector = NotingConnector::default();
    let clock = Arc::clone(&connector.clock);
    let mut opened = match url {
        StoreUrl::File { path } => open_file(url, path, clock)?,
        StoreUrl::Memory { name } => {
            let store = Arc::new(memory(name));
            Opened {
                multipart: Some(store.clone()),
                ..plain(Backend::Memory, store, Path::default(), clock)
            }
        }
        StoreUrl::S3 { bucket, prefix } => {
            let s3 = crate::s3::open(url, bucket, options, connector).await?;
            let store = Arc::new(s3.store.clone());
            let multipart: Arc<dyn MultipartStore> = store.clone();
            let prefix = parse_prefix(url, prefix)?;
            Opened {
                multipart: Some(multipart),
                s3: Some(s3),
                ..plain(Backend::S3, store, prefix, clock)
            }
        }
        StoreUrl::Gcs { bucket, prefix } => {
            let store = Arc::new(open_gcs(url, bucket, options, connector)?);
            let prefix = parse_prefix(url, prefix)?;
            Opened {
                multipart: Some(store.clone()),
                ..plain(Backend::Gcs, store, prefix, clock)
            }
        }
        StoreUrl::Azure {
            account,
            container,
            prefix,
        } => {
            let store = Arc::new(open_azure(
                url,
                account.as_deref(),
                container,
                options,
                connector,
            )?);
            let prefix = parse_prefix(url, prefix)?;
            Opened {
                multipart: Some(store.clone()),
                ..plain(Backend::Azure, store, prefix, clock)
            }
        }
    };
    if let Some(plan) = crate::fault::plan_for(options).map_err(|error| invalid(url, &error.to_string()))? {
        let faulty = Arc::new(FaultyStore::new(plan, opened.objects, opened.multipart.clone()));
        opened.multipart = opened
            .multipart
            .map(|_| faulty.clone() as Arc<dyn MultipartStore>);
        opened.objects = faulty;
    }
    Ok(opened)
}

fn plain(backend: Backend, objects: Arc<dyn ObjectStore>, prefix: Path, clock: Arc<ServerClock>) -> Opened {
    Opened {
        backend,
        objects,
        multipart: None,
        local: None,
        s3: None,
        prefix,
        clock,
    }
}

fn open_file(url: &StoreUrl, path: &FilePath, clock: Arc<ServerClock>) -> Result<Opened, StoreError> {
    let location = Path::from_absolute_path(path).map_err(|error| invalid(url, &error.to_string()))?;
    let disk = LocalDisk::new(path.to_owned());
    Ok(Opened {
        local: Some(disk.clone()),
        ..plain(Backend::File, Arc::new(disk), location, clock)
    })
}

/// Stores in memory by name, so that a test can open one twice.
fn memory(name: &str) -> InMemory {
    static NAMED: LazyLock<Mutex<HashMap<String, InMemory>>> = LazyLock::new(Mutex::default);
    if name.is_empty() {
        return InMemory::new();
    }
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    named.entry(name.to_owned()).or_default().clone()
}

fn open_gcs(
    url: &StoreUrl,
    bucket: &str,
    options: &StoreOptions,
    connector: NotingConnector,
) -> Result<impl ObjectStore + MultipartStore + use<>, StoreError> {
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options(url, options, false)?)
        .with_retry(no_retries())
        .with_http_connector(connector);
    if let Some(path) = options
        .gcs
        .service_account_path
        .as_ref()
        .and_then(|path| path.to_str())
    {
        builder = builder.with_service_account_path(path);
    }
    if let Some(endpoint) = &options.gcs.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    builder.build().map_err(|error| invalid(url, &error.to_string()))
}

fn open_azure(
    url: &StoreUrl,
    account: Option<&str>,
    container: &str,
    options: &StoreOptions,
    connector: NotingConnector,
) -> Result<impl ObjectStore + MultipartStore + use<>, StoreError> {
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_client_options(client_options(url, options, false)?)
        .with_retry(no_retries())
        .with_http_connector(connector);
    if let Some(account) = account.or(options.azure.account.as_deref()) {
        builder = builder.with_account(account);
    }
    if let Some(key) = &options.azure.access_key {
        builder = builder.with_access_key(key.expose());
    }
    if let Some(token) = &options.azure.sas_token {
        builder = builder.with_config(object_store::azure::AzureConfigKey::SasKey, token.expose());
    }
    if let Some(endpoint) = &options.azure.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let named = std::env::var_os("AZURE_STORAGE_ACCOUNT_NAME").is_some();
    if account.or(options.azure.account.as_deref()).is_none() && !named {
        return Err(invalid(
            url,
            "the storage account isn't named: write az://container@account/prefix",
        ));
    }
    builder.build().map_err(|error| invalid(url, &error.to_string()))
}

/// HTTP/1 on many connections: over HTTP/2 they would share one. No time-outs but the connection's: reqwest's read
/// time-out also runs while a body is sent, and a total one fits no body size. The deadlines are set per attempt.
pub(crate) fn client_options(
    url: &StoreUrl,
    options: &StoreOptions,
    allow_http: bool,
) -> Result<ClientOptions, StoreError> {
    let mut client_options = ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(options.connect_timeout)
        .with_pool_idle_timeout(Duration::from_secs(30))
        .with_http1_only()
        .with_allow_http(allow_http);
    if let Some(path) = &options.ca_certificates_path {
        let refuse = |why: String| invalid(url, &format!("the CA certificates in {}: {why}", path.display()));
        let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| refuse(error.to_string()))?;
        if certificates.is_empty() {
            return Err(refuse("there is none in it; it must be a PEM file".to_owned()));
        }
        for certificate in certificates {
            client_options = client_options.with_root_certificate(certificate);
        }
    }
    Ok(client_options)
}

/// `object_store` must not retry: whether an attempt may have been performed would be lost.
pub(crate) fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

fn parse_prefix(url: &StoreUrl, prefix: &str) -> Result<Path, StoreError> {
    Path::parse(prefix).map_err(|error| invalid(url, &error.to_string()))
}

pub(crate) fn invalid(url: &StoreUrl, why: &str) -> StoreError {
    StoreError::new(
        StoreErrorKind::InvalidUrl,
        "open the repository",
        url.to_string(),
        why,
    )
}
