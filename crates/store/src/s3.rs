use std::net::IpAddr;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum, resolve_bucket_region};
use url::Url;

use crate::error::StoreError;
use crate::http::NotingConnector;
use crate::open::{client_options, invalid, no_retries};
use crate::options::{S3Addressing, S3Checksum, StoreOptions};
use crate::store_url::StoreUrl;

/// What the probe needs besides the objects.
pub(crate) struct S3Settings {
    pub(crate) store: AmazonS3,
    /// Sends the probe's own signed requests.
    pub(crate) connector: NotingConnector,
    pub(crate) client_options: object_store::ClientOptions,
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
    let client_options = client_options(options, allow_http);

    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options.clone())
        .with_retry(no_retries())
        .with_http_connector(connector.clone());
    builder = match (&s3.access_key_id, &s3.secret_access_key) {
        (Some(id), Some(secret)) => {
            let builder = builder
                .with_access_key_id(id.expose())
                .with_secret_access_key(secret.expose());
            match &s3.session_token {
                Some(token) => builder.with_token(token.expose()),
                None => builder,
            }
        }
        (None, None) => builder,
        _ => {
            return Err(invalid(
                url,
                "an access key's id and its secret go together: set both, or neither",
            ));
        }
    };
    let mut region = s3
        .region
        .clone()
        .or_else(|| environment(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
    if s3.access_key_id.is_none() {
        if let Some(profile) = crate::aws_profile::load(url, s3.profile.as_deref()).await? {
            region = region.or(profile.region.clone());
            builder = builder.with_credentials(profile.into_provider());
        }
    }
    if region.is_none() && endpoint.is_none() {
        region = find_region(bucket, &client_options).await;
    }
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    builder = match s3.checksum {
        S3Checksum::Sha256 => builder.with_checksum_algorithm(Checksum::SHA256),
        // Without TLS the signature has to protect the body.
        S3Checksum::Crc64Nvme => builder
            .with_checksum_algorithm(Checksum::CRC64NVME)
            .with_unsigned_payload(!allow_http),
        S3Checksum::None => builder,
    };
    if let Some(key) = &s3.kms_key_id {
        builder = builder.with_sse_kms_encryption(key);
    }
    builder = address(builder, bucket, endpoint.as_ref(), s3.addressing);
    let store = builder
        .build()
        .map_err(|error| invalid(url, &error.to_string()))?;
    Ok(S3Settings {
        store,
        connector,
        client_options,
    })
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
