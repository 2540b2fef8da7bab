use std::fmt;
use std::time::Duration;

use pgkeep_base::{Classified, Hint, RetryClass, quote_for_shell};

use crate::counts::Request;
use crate::permission::{self, Permission};
use crate::store_url::StoreUrl;

/// Where S3's static credentials come from; the names are those of pgkeep.toml and of AWS.
const S3_CREDENTIALS: &str = "s3.access_key_id and s3.secret_access_key (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the \
                              profile that s3.profile or AWS_PROFILE names)";

/// What went wrong, in the terms a caller decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// There is no object of that name.
    NotFound,
    /// There is no such bucket, container or directory.
    NoSuchBucket,
    /// The credentials are good, but don't permit this.
    PermissionDenied,
    /// There are no credentials, or they are wrong or expired.
    AuthenticationFailed,
    /// The object exists already, and nothing is ever overwritten.
    AlreadyExists,
    /// The object exists now, but whether this write or another one made it can't be told: an earlier attempt's answer
    /// was lost and reading back isn't permitted (a write-only host).
    Unconfirmed,
    /// No connection, or it was cut.
    Unreachable,
    /// The store didn't answer in time.
    Timeout,
    /// The store asks to be left alone for a while (429, 503, `SlowDown`).
    Throttled,
    /// The store failed by itself (5xx), or answered what can't be understood.
    ServerFault,
    /// Somebody else changed the same object at the same time (409).
    Conflict,
    /// A body ended early, or the object changed while it was read.
    ShortBody,
    /// The URL or an option of the store is wrong.
    InvalidUrl,
    /// The object's name can't be used.
    InvalidKey,
    /// The object, or the number of objects, is above the limit the caller set.
    TooLarge,
    /// The disk or the quota is full.
    NoSpace,
    /// The store can't do this.
    Unsupported,
    /// Anything else.
    Other,
}

impl StoreErrorKind {
    /// Whether the same request may succeed when it's simply sent again.
    pub(crate) fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Unreachable
                | Self::Timeout
                | Self::Throttled
                | Self::ServerFault
                | Self::Conflict
                | Self::ShortBody
        )
    }
}

/// A request to the store failed for good: permanent, or the retry budget is spent.
///
/// It displays what was done to what, and why it failed; never a secret.
pub struct StoreError(Box<Details>);

#[derive(Debug)]
struct Details {
    kind: StoreErrorKind,
    /// Verb and object: `write object 'a/b'`.
    doing: String,
    /// Redacted.
    url: String,
    why: String,
    attempts: u32,
    elapsed: Duration,
    may_have_happened: bool,
    retryable: bool,
    /// What was asked of the store.
    request: Option<Request>,
}

impl StoreError {
    pub(crate) fn new(
        kind: StoreErrorKind,
        doing: impl Into<String>,
        url: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self(Box::new(Details {
            kind,
            doing: doing.into(),
            url: url.into(),
            why: why.into(),
            attempts: 1,
            elapsed: Duration::ZERO,
            may_have_happened: false,
            retryable: kind.is_transient(),
            request: None,
        }))
    }

    pub(crate) fn from_cause(cause: Cause, doing: impl Into<String>, url: &str) -> Self {
        let mut error = Self::new(cause.kind, doing, url, cause.why);
        error.0.retryable = cause.retryable;
        error.0.request = cause.request;
        error
    }

    pub(crate) fn with_attempts(mut self, attempts: u32, elapsed: Duration) -> Self {
        self.0.attempts = attempts;
        self.0.elapsed = elapsed;
        self
    }

    pub(crate) fn with_may_have_happened(mut self, may_have_happened: bool) -> Self {
        self.0.may_have_happened = may_have_happened;
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> StoreErrorKind {
        self.0.kind
    }

    /// The store's URL, without secrets.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// The permission that was refused, where the store has names for permissions and didn't name it itself.
    fn missing_permission(&self) -> Option<Permission> {
        let denied = self.0.kind == StoreErrorKind::PermissionDenied;
        let request = self.0.request.filter(|_| denied)?;
        match permission::named_by_aws(&self.0.why) {
            Some(_) => None,
            None => permission::permission(request, &self.0.url),
        }
    }

    /// Whether the store gave this code.
    fn says(&self, code: &str) -> bool {
        self.0
            .why
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|word| word == code)
    }

    fn how_to_permit(&self) -> String {
        if let Some(action) = permission::named_by_aws(&self.0.why) {
            return format!("allow these credentials {action}");
        }
        match self.missing_permission() {
            // https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html: without the right to list, a missing object
            // is answered like a forbidden one.
            Some(Permission { action, resource }) if action == "s3:GetObject" => {
                let bucket = resource.split('/').next().unwrap_or_default();
                format!("allow these credentials {action} on {resource}, and s3:ListBucket on {bucket}")
            }
            Some(Permission { action, resource }) => {
                format!("allow these credentials {action} on {resource}")
            }
            None => format!(
                "allow these credentials to put, get and list objects under {}",
                self.0.url
            ),
        }
    }

    /// True where a write failed in a way that leaves open whether the store performed it.
    pub fn may_have_happened(&self) -> bool {
        self.0.may_have_happened
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details {
            doing,
            url,
            why,
            attempts,
            elapsed,
            ..
        } = self.0.as_ref();
        write!(f, "cannot {doing} in {url}: {why}")?;
        if *attempts > 1 {
            write!(
                f,
                " (gave up after {attempts} attempts in {:.0} s)",
                elapsed.as_secs_f64()
            )?;
        }
        if let Some(Permission { action, .. }) = self.missing_permission() {
            write!(f, " (it takes the permission {action})")?;
        }
        Ok(())
    }
}

impl std::error::Error for StoreError {}

impl Classified for StoreError {
    fn retry_class(&self) -> RetryClass {
        match self.0.kind {
            StoreErrorKind::InvalidUrl | StoreErrorKind::NoSuchBucket => RetryClass::Usage,
            StoreErrorKind::AlreadyExists => RetryClass::Refused,
            _ if self.0.retryable => RetryClass::Transient,
            _ => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        let url = &self.0.url;
        let cloud = url.starts_with("s3:");
        let text = match self.0.kind {
            StoreErrorKind::NoSuchBucket => format!("create the bucket, or correct the repository URL {url}"),
            StoreErrorKind::PermissionDenied if url.starts_with("file:") => {
                format!("give the user that runs pgkeep read and write access to {url}")
            }
            StoreErrorKind::PermissionDenied => self.how_to_permit(),
            StoreErrorKind::AuthenticationFailed if cloud && self.says("InvalidAccessKeyId") => {
                format!("the store doesn't know this access key: correct {S3_CREDENTIALS}")
            }
            StoreErrorKind::AuthenticationFailed if cloud && self.says("SignatureDoesNotMatch") => {
                format!("the secret isn't the one of this access key: correct {S3_CREDENTIALS}")
            }
            StoreErrorKind::AuthenticationFailed if cloud => {
                format!("set {S3_CREDENTIALS}, or give the machine an instance role")
            }
            StoreErrorKind::AuthenticationFailed => format!("give valid credentials for {url}"),
            StoreErrorKind::Unconfirmed => {
                "list the repository from a host that may read it, and run the command again".to_owned()
            }
            StoreErrorKind::Unreachable | StoreErrorKind::Timeout => {
                format!("check the network, the endpoint and the proxy settings for {url}, then run it again")
            }
            StoreErrorKind::Throttled | StoreErrorKind::ServerFault => {
                "run it again later, or with fewer --jobs".to_owned()
            }
            StoreErrorKind::NoSpace => format!("free space under {url}, or raise its quota"),
            StoreErrorKind::Other if let Ok(StoreUrl::File { path }) = StoreUrl::parse(url) => {
                let path = quote_for_shell(&path.display().to_string());
                format!(
                    "see what is there, and whether its disk is mounted: ls -ld {path}; findmnt -T {path}"
                )
            }
            _ => return None,
        };
        Some(Hint::new(text))
    }
}

/// Why one attempt failed, before it's known what it was part of.
#[derive(Debug, Clone)]
pub(crate) struct Cause {
    pub(crate) kind: StoreErrorKind,
    pub(crate) why: String,
    /// The request may have been performed although it failed.
    pub(crate) maybe_performed: bool,
    pub(crate) retryable: bool,
    /// What was asked of the store, if anything was.
    pub(crate) request: Option<Request>,
}

impl Cause {
    pub(crate) fn new(kind: StoreErrorKind, why: impl Into<String>) -> Self {
        let retryable = kind.is_transient();
        Self {
            kind,
            why: why.into(),
            maybe_performed: retryable,
            retryable,
            request: None,
        }
    }

    /// The request certainly didn't take effect.
    pub(crate) fn not_performed(mut self) -> Self {
        self.maybe_performed = false;
        self
    }

    /// Sending it again is no use.
    pub(crate) fn final_(mut self) -> Self {
        self.retryable = false;
        self
    }
}
