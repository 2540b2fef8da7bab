use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method};
use object_store::StaticCredentialProvider;
use object_store::aws::{
    AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential, Checksum, resolve_bucket_region,
};
use object_store::client::{HttpConnector, HttpRequestBody};
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use url::Url;

use crate::error::StoreError;
use crate::http::NotingConnector;
use crate::open::{client_options, invalid, no_retries};
use crate::options::{S3Addressing, S3Checksum, S3Options, StoreOptions};
use crate::store_url::StoreUrl;

/// What requests about the bucket itself need, besides the objects' store.
pub(crate) struct S3Settings {
    pub(crate) store: AmazonS3,
    /// Sends those requests.
    pub(crate) connector: NotingConnector,
    pub(crate) client_options: object_store::ClientOptions,
    /// Where it was told, or AWS said it.
    pub(crate) region: Option<String>,
    /// Whether it is somebody else's S3 than Amazon's.
    pub(crate) has_endpoint: bool,
}

/// A request about the bucket, not about an object in it.
pub(crate) struct BucketRequest {
    pub(crate) method: Method,
    /// Which of its settings: `versioning`, `lifecycle`. None: the bucket.
    pub(crate) setting: Option<&'static str>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// What the store answered, whatever the status.
pub(crate) struct BucketAnswer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// The region that signatures are made for where none is told, as `object_store` has it.
const REGION_DEFAULT: &str = "us-east-1";

impl S3Settings {
    /// Sends a request about the bucket, signed in its headers, body included:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>
    pub(crate) async fn send(&self, request: &BucketRequest) -> object_store::Result<BucketAnswer> {
        const ANSWER_BYTES_MAX: usize = 1024 * 1024;
        // The URL alone is wanted; its signature is cut off again.
        const VALID_FOR: Duration = Duration::from_secs(1);
        let wrong = |error: String| object_store::Error::Generic {
            store: "S3",
            source: error.into(),
        };
        let plain = SignedUrlOptions::new();
        let mut url = self
            .store
            .signed_url_opts(Method::GET, &Path::default(), VALID_FOR, &plain)
            .await?;
        url.set_query(request.setting.map(|name| format!("{name}=")).as_deref());
        let mut http = http::Request::builder()
            .method(request.method.clone())
            .uri(url.as_str())
            .body(HttpRequestBody::from(request.body.clone()))
            .map_err(|error| wrong(error.to_string()))?;
        http.headers_mut().extend(request.headers.clone());
        let credential = self.store.credentials().get_credential().await?;
        let region = self.region.as_deref().unwrap_or(REGION_DEFAULT);
        AwsAuthorizer::new(&credential, "s3", region).try_authorize(&mut http, None)?;
        let client = self.connector.connect(&self.client_options)?;
        let wrap = |error| object_store::Error::Generic {
            store: "S3",
            source: Box::new(error),
        };
        let (head, body) = client.execute(http).await.map_err(wrap)?.into_parts();
        let mut body = body.bytes_stream();
        let mut text = Vec::new();
        while let Some(bytes) = body.next().await {
            text.extend_from_slice(&bytes.map_err(wrap)?);
            if text.len() > ANSWER_BYTES_MAX {
                return Err(wrong(format!(
                    "the answer is longer than {ANSWER_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(BucketAnswer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8_lossy(&text).into_owned(),
        })
    }
}

pub(crate) async fn open(
    url: &StoreUrl,
    bucket: &str,
    options: &StoreOptions,
    connector: NotingConnector,
) -> Result<S3Settings, StoreError> {
    let s3 = &options.s3;
    let environment = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    };
    let endpoint = s3
        .endpoint
        .clone()
        .or_else(|| environment(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]));
    let endpoint = endpoint
        .map(|text| parse_endpoint(url, &text, s3.allow_http))
        .transpose()?;
    let allow_http = endpoint
        .as_ref()
        .is_some_and(|endpoint| endpoint.scheme() == "http");
    let client_options = client_options(url, options, allow_http)?;

    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options.clone())
        .with_retry(no_retries())
        .with_http_connector(connector.clone());
    builder = static_credentials(url, builder, s3)?;
    let mut region = s3
        .region
        .clone()
        .or_else(|| environment(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
    if s3.access_key_id.is_none()
        && let Some(profile) = crate::aws_profile::load(url, s3.profile.as_deref()).await?
    {
        region = region.or(profile.region.clone());
        builder = builder.with_credentials(profile.into_provider());
    }
    if region.is_none() && endpoint.is_none() {
        region = find_region(bucket, &client_options).await;
    }
    if let Some(region) = &region {
        builder = builder.with_region(region);
    }
    builder = protect(builder, s3, allow_http);
    builder = address(builder, bucket, endpoint.as_ref(), s3.addressing);
    let store = builder
        .build()
        .map_err(|error| invalid(url, &error.to_string()))?;
    Ok(S3Settings {
        store,
        connector,
        client_options,
        region,
        has_endpoint: endpoint.is_some(),
    })
}

fn static_credentials(
    url: &StoreUrl,
    builder: AmazonS3Builder,
    s3: &S3Options,
) -> Result<AmazonS3Builder, StoreError> {
    match (&s3.access_key_id, &s3.secret_access_key) {
        (Some(id), Some(secret)) => {
            // A provider, so that a session token in the environment doesn't get mixed in.
            let credential = AwsCredential {
                key_id: id.expose().to_owned(),
                secret_key: secret.expose().to_owned(),
                token: s3.session_token.as_ref().map(|token| token.expose().to_owned()),
            };
            Ok(builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential))))
        }
        (None, None) => Ok(builder),
        _ => Err(invalid(
            url,
            "an access key's id and its secret go together: set both, or neither",
        )),
    }
}

/// Checksums and the store's own encryption.
fn protect(builder: AmazonS3Builder, s3: &S3Options, without_tls: bool) -> AmazonS3Builder {
    let builder = match s3.checksum {
        S3Checksum::Sha256 => builder.with_checksum_algorithm(Checksum::SHA256),
        // Without TLS the signature has to protect the body.
        S3Checksum::Crc64Nvme => builder
            .with_checksum_algorithm(Checksum::CRC64NVME)
            .with_unsigned_payload(!without_tls),
        S3Checksum::None => builder,
    };
    match &s3.kms_key_id {
        Some(key) => builder.with_sse_kms_encryption(key),
        None => builder,
    }
}

fn parse_endpoint(url: &StoreUrl, text: &str, allow_http: bool) -> Result<Url, StoreError> {
    let refuse = |problem: &str| Err(invalid(url, &format!("the S3 endpoint {problem}")));
    let Ok(endpoint) = Url::parse(text) else {
        return refuse("is not a URL: write https://host or https://host:port");
    };
    if !endpoint.username().is_empty() || endpoint.password().is_some() {
        return refuse("must not hold credentials");
    }
    if endpoint.query().is_some() || endpoint.fragment().is_some() || endpoint.host_str().is_none() {
        return refuse("must be https://host or https://host:port");
    }
    let host = endpoint.host_str().unwrap_or_default();
    let loopback = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    match endpoint.scheme() {
        "https" => Ok(endpoint),
        "http" if allow_http || loopback => Ok(endpoint),
        "http" => {
            refuse("has no TLS: write https://, or set allow_http = true if the network is yours alone")
        }
        _ => refuse("must begin with https://"),
    }
}

fn address(
    builder: AmazonS3Builder,
    bucket: &str,
    endpoint: Option<&Url>,
    addressing: S3Addressing,
) -> AmazonS3Builder {
    // A dot in the bucket's name makes a host name that the wildcard certificate doesn't cover.
    let virtual_hosted = match addressing {
        S3Addressing::Automatic => endpoint.is_none() && !bucket.contains('.'),
        S3Addressing::Path => false,
        S3Addressing::VirtualHosted => true,
    };
    let builder = builder.with_virtual_hosted_style_request(virtual_hosted);
    let Some(endpoint) = endpoint else { return builder };
    let text = endpoint.as_str().trim_end_matches('/');
    let host = endpoint.host_str().unwrap_or_default();
    // object_store expects the bucket in a virtual-hosted endpoint.
    match virtual_hosted && !host.starts_with(&format!("{bucket}.")) {
        true => builder.with_endpoint(text.replacen("://", &format!("://{bucket}."), 1)),
        false => builder.with_endpoint(text),
    }
}

/// Asks AWS where the bucket lives. None: it doesn't say, and object_store's default must do.
async fn find_region(bucket: &str, client_options: &object_store::ClientOptions) -> Option<String> {
    const TIMEOUT: Duration = Duration::from_secs(5);
    match tokio::time::timeout(TIMEOUT, resolve_bucket_region(bucket, client_options)).await {
        Ok(Ok(region)) => Some(region),
        _ => {
            tracing::debug!(bucket, "the bucket's region isn't known; taking the default");
            None
        }
    }
}
