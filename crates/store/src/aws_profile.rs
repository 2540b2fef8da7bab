//! Named profiles and SSO, which `object_store` doesn't know, by `aws-config`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::meta::region::ProvideRegion;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use object_store::CredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};
use tokio::sync::Mutex;

use crate::error::{StoreError, StoreErrorKind};
use crate::store_url::StoreUrl;

/// A refresh may have to ask an SSO server or a metadata service.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Credentials are renewed this long before they end, so that no request outlives them.
const RENEW_BEFORE: Duration = Duration::from_secs(300);

/// Credentials of a profile, and its region.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) region: Option<String>,
    provider: ProfileFileCredentialsProvider,
    current: Mutex<Option<(Arc<AwsCredential>, Option<SystemTime>)>>,
}

/// The profile to use, if any: the configured one, `AWS_PROFILE`'s, or the default one where the files have it and the
/// environment holds no credentials.
pub(crate) async fn load(url: &StoreUrl, configured: Option<&str>) -> Result<Option<Profile>, StoreError> {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let name = configured
        .map(str::to_owned)
        .or_else(|| std::env::var("AWS_PROFILE").ok());
    if configured.is_none() && set("AWS_ACCESS_KEY_ID") {
        return Ok(None);
    }
    let others = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    if name.is_none() && (others.into_iter().any(set) || !files_exist()) {
        return Ok(None);
    }
    let client = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let config = ProviderConfig::without_region().with_http_client(client);
    let mut provider = ProfileFileCredentialsProvider::builder().configure(&config);
    let mut region = ProfileFileRegionProvider::builder();
    if let Some(name) = &name {
        provider = provider.profile_name(name);
        region = region.profile_name(name);
    }
    let region = region.build().region().await.map(|region| region.to_string());
    let profile = Profile {
        region,
        provider: provider.build(),
        current: Mutex::default(),
    };
    match (profile.renew().await, name) {
        (Ok(_), _) => Ok(Some(profile)),
        // The files exist, but hold no default profile, or none with credentials: the machine's role may do.
        (Err(Unusable { is_none: true, .. }), None) => Ok(None),
        (Err(Unusable { why, .. }), name) => {
            let name = name.as_deref().unwrap_or("default");
            Err(StoreError::new(
                StoreErrorKind::AuthenticationFailed,
                format!("use the AWS profile '{name}'"),
                url.to_string(),
                format!("{why}; check ~/.aws/config, and for SSO run: aws sso login --profile {name}"),
            ))
        }
    }
}

fn files_exist() -> bool {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let file = |variable: &str, name: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .unwrap_or_else(|| home.join(".aws").join(name))
            .is_file()
    };
    file("AWS_CONFIG_FILE", "config") || file("AWS_SHARED_CREDENTIALS_FILE", "credentials")
}

impl Profile {
    pub(crate) fn into_provider(self) -> AwsCredentialProvider {
        Arc::new(self)
    }

    async fn renew(&self) -> Result<Arc<AwsCredential>, Unusable> {
        let mut current = self.current.lock().await;
        if let Some((credential, expires_at)) = current.as_ref()
            && expires_at.is_none_or(|at| SystemTime::now() + RENEW_BEFORE < at)
        {
            return Ok(Arc::clone(credential));
        }
        let asked = tokio::time::timeout(TIMEOUT, self.provider.provide_credentials()).await;
        let credentials: Credentials = match asked {
            Ok(Ok(credentials)) => credentials,
            Ok(Err(error)) => return Err(Unusable::of(&error)),
            Err(_) => {
                return Err(Unusable {
                    why: format!("no credentials within {} s", TIMEOUT.as_secs()),
                    is_none: false,
                });
            }
        };
        let credential = Arc::new(AwsCredential {
            key_id: credentials.access_key_id().to_owned(),
            secret_key: credentials.secret_access_key().to_owned(),
            token: credentials.session_token().map(str::to_owned),
        });
        *current = Some((Arc::clone(&credential), credentials.expiry()));
        Ok(credential)
    }
}

/// Why a profile gives no credentials.
#[derive(Debug)]
struct Unusable {
    why: String,
    /// There is no such profile, or it says nothing of credentials: no reason not to look elsewhere.
    is_none: bool,
}

impl Unusable {
    fn of(error: &CredentialsError) -> Self {
        Self {
            why: innermost(error),
            is_none: matches!(error, CredentialsError::CredentialsNotLoaded(_)),
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[async_trait]
impl CredentialProvider for Profile {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.renew()
            .await
            .map_err(|unusable| object_store::Error::Unauthenticated {
                path: String::new(),
                source: unusable.why.into(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An SSO session that ran out must not make way for the machine's role.
    #[test]
    fn only_a_profile_that_is_not_there_lets_others_be_looked_for() {
        assert!(Unusable::of(&CredentialsError::not_loaded("profile `default` was not defined")).is_none);
        for broken in [
            CredentialsError::invalid_configuration("the file is no profile file"),
            CredentialsError::provider_error("the SSO session has expired"),
        ] {
            let unusable = Unusable::of(&broken);
            assert!(!unusable.is_none && !unusable.why.is_empty(), "{unusable:?}");
        }
    }
}
