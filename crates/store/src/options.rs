use std::path::PathBuf;
use std::time::Duration;

use pgkeep_base::Secret;

use crate::fault::FaultPlan;
use crate::retry::RetryOptions;

/// How bucket names appear in an S3 request's URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum S3Addressing {
    /// `bucket.endpoint` on AWS, `endpoint/bucket` where an endpoint is set or the bucket's name has a dot.
    #[default]
    Automatic,
    /// `https://endpoint/bucket/key`
    Path,
    /// `https://bucket.endpoint/key`
    VirtualHosted,
}

/// The checksum sent with each S3 object, which the store verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum S3Checksum {
    /// SHA-256, understood by every S3 store that has checksums; the signature covers the body with the same hash, so
    /// it's computed once.
    #[default]
    Sha256,
    /// CRC-64/NVME over an unsigned body (TLS protects it): next to no CPU, for AWS and the newest compatibles.
    Crc64Nvme,
    /// None: only for stores that refuse both. Buckets with Object Lock refuse such puts.
    None,
}

/// S3 and compatibles. What is not set here is taken from the environment (`AWS_*`), a profile, or the machine's role.
#[derive(Debug, Clone, Default)]
pub struct S3Options {
    /// `https://host[:port]`, without the bucket.
    pub endpoint: Option<String>,
    /// For example `eu-central-1`. Found out from AWS if not set anywhere.
    pub region: Option<String>,
    /// Where the bucket's name goes.
    pub addressing: S3Addressing,
    /// Permit an endpoint without TLS. Loopback addresses are always permitted.
    pub allow_http: bool,
    /// A profile in `~/.aws/config` or `~/.aws/credentials`, SSO included.
    pub profile: Option<String>,
    /// Static credentials; both or neither.
    pub access_key_id: Option<Secret>,
    /// Static credentials; both or neither.
    pub secret_access_key: Option<Secret>,
    /// Goes with temporary static credentials.
    pub session_token: Option<Secret>,
    /// The checksum sent with each object.
    pub checksum: S3Checksum,
    /// Server-side encryption with this KMS key.
    pub kms_key_id: Option<String>,
}

/// Google Cloud Storage. What is not set here is taken from `GOOGLE_*` and the application default credentials.
#[derive(Debug, Clone, Default)]
pub struct GcsOptions {
    /// Path of a service account's JSON key.
    pub service_account_path: Option<PathBuf>,
    /// Another endpoint, for emulators and private access.
    pub endpoint: Option<String>,
}

/// Azure Blob Storage. What is not set here is taken from `AZURE_*` and the machine's identity.
#[derive(Debug, Clone, Default)]
pub struct AzureOptions {
    /// The storage account.
    pub account: Option<String>,
    /// The account's key.
    pub access_key: Option<Secret>,
    /// A shared access signature, as the portal shows it (`sv=...&sig=...`).
    pub sas_token: Option<Secret>,
    /// Another endpoint, for emulators and private access.
    pub endpoint: Option<String>,
}

/// How a store is reached.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// How long the store may take to answer a request, and then between two pieces of a body. Uploads have a deadline
    /// of their own, by size.
    pub request_timeout: Duration,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How often and how long failed requests are sent again.
    pub retry: RetryOptions,
    /// Average bandwidth of all uploads together.
    pub upload_bytes_per_second_max: Option<u64>,
    /// PEM file with certificates to trust besides the system's, for a store with a private authority.
    pub ca_certificates_path: Option<PathBuf>,
    /// S3 and compatibles.
    pub s3: S3Options,
    /// Google Cloud Storage.
    pub gcs: GcsOptions,
    /// Azure Blob Storage.
    pub azure: AzureOptions,
    /// Faults on purpose, below the retries. Tests only.
    pub faults: Option<FaultPlan>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            retry: RetryOptions::default(),
            upload_bytes_per_second_max: None,
            ca_certificates_path: None,
            s3: S3Options::default(),
            gcs: GcsOptions::default(),
            azure: AzureOptions::default(),
            faults: None,
        }
    }
}

impl StoreOptions {
    /// The deadline of one attempt to send `bytes`: a minute, and a second for each 64 KiB. Slower than that is taken
    /// for a stall.
    pub(crate) fn put_deadline(&self, bytes: u64) -> Duration {
        const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;
        self.request_timeout.max(Duration::from_secs(1)) + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
    }
}
