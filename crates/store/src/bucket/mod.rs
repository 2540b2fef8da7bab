//! The settings of an S3 bucket, read and written one by one. What they should be is for others to know.
//!
//! Stores that speak S3 know few of them. Some say so, some answer with something else, some take a setting and forget it:
//! whoever writes one reads it back.

mod lifecycle;
mod settings;
mod xml;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use md5::{Digest, Md5};

pub use lifecycle::{
    Expiration, Filter, FilterAnd, Lifecycle, NoncurrentVersionExpiration, Rule, StoredRule, Tag, Transition,
    UploadExpiration,
};
pub use settings::{
    BlockedEncryptionTypes, DefaultRetention, Encryption, EncryptionByDefault, EncryptionRule, ObjectLock,
    ObjectLockRule, OwnershipControls, OwnershipRule, PublicAccessBlock, Setting, Versioning,
};

use crate::counts::Request;
use crate::error::{Cause, StoreError, StoreErrorKind};
use crate::s3::{BucketAnswer, BucketRequest, S3Settings};
use crate::store::Store;

const CREATE: &str = "create the bucket";
const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
const OBJECT_LOCK_ENABLED: HeaderName = HeaderName::from_static("x-amz-bucket-object-lock-enabled");
/// Of a lifecycle configuration, beside its XML.
const TRANSITION_MINIMUM: HeaderName =
    HeaderName::from_static("x-amz-transition-default-minimum-object-size");
/// Regions that a new bucket isn't told of: the first is where it comes to be without, the other is R2's word for any.
const REGIONS_UNTOLD: [&str; 2] = ["us-east-1", "auto"];

/// What a fuzz target does with a store's answer: it is read or refused, and lifecycle rules are written as they were.
#[cfg(any(test, fuzzing))]
pub(crate) fn read_or_refuse(text: &str) {
    drop(xml::error_of(text));
    drop(xml::read::<Encryption>(text, &[Encryption::ROOT]));
    drop(xml::read::<ObjectLock>(text, &[ObjectLock::ROOT]));
    if let Ok(lifecycle) = Lifecycle::read(text, None) {
        for rule in &lifecycle.rules {
            drop(rule.rule.normalized());
        }
        assert_eq!(Lifecycle::read(&lifecycle.write(), None), Ok(lifecycle));
    }
}

/// What reading a setting came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<T> {
    /// It is there.
    Set(T),
    /// The bucket has no such setting.
    Unset,
    /// The store doesn't know it; how it says so.
    Unsupported(String),
    /// These credentials lack a permission.
    Forbidden(&'static str),
}

/// What writing a setting came to. That the store took it doesn't say that it has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The store took it.
    Taken,
    /// The store didn't; its words.
    Refused(String),
    /// These credentials lack a permission.
    Forbidden(&'static str),
}

/// Whether there is a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is there.
    There,
    /// It is there, and these credentials may not look at it: it may be somebody else's, the names are the world's.
    Hidden,
    /// There is none.
    Missing,
}

/// The bucket that a store lies in.
#[derive(Clone, Copy)]
pub struct Bucket<'a> {
    store: &'a Store,
    s3: &'a S3Settings,
}

impl Store {
    /// The store's bucket, if it lies in S3.
    pub fn bucket(&self) -> Option<Bucket<'_>> {
        let s3 = self.inner.opened.s3.as_ref()?;
        Some(Bucket { store: self, s3 })
    }
}

impl Bucket<'_> {
    /// Where the store lies in the bucket: empty, or with a slash at its end.
    pub fn prefix(&self) -> String {
        match self.store.inner.opened.prefix.as_ref() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        }
    }

    /// Whether there is such a bucket. <https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadBucket.html>
    ///
    /// # Errors
    /// The store can't be reached, or doesn't accept the credentials.
    pub async fn presence(&self) -> Result<Presence, StoreError> {
        let answer = self
            .send("look for the bucket", Method::HEAD, None, HeaderMap::new(), "")
            .await?;
        Ok(match answer.status {
            404 => Presence::Missing,
            403 => Presence::Hidden,
            _ => Presence::There,
        })
    }

    /// Whether a bucket could be made with these options, as far as that is known without the store.
    ///
    /// # Errors
    /// The store is Amazon's, and no region was told.
    pub fn check_region(&self) -> Result<(), StoreError> {
        if self.s3.region.is_some() || self.s3.has_endpoint {
            return Ok(());
        }
        let why = "no region is told: where shall it be? (--s3-region eu-central-1, s3.region, AWS_REGION)";
        let kind = StoreErrorKind::InvalidUrl;
        Err(StoreError::new(kind, CREATE, self.store.url(), why))
    }

    /// Makes the bucket, in the region of the options. With Object Lock where it is asked for: some stores don't enable it
    /// later. <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateBucket.html>
    ///
    /// # Errors
    /// The store can't be reached, doesn't accept the credentials, or is Amazon's and no region was told.
    pub async fn create(&self, with_object_lock: bool) -> Result<Written, StoreError> {
        #[derive(serde::Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Place<'a> {
            location_constraint: &'a str,
        }
        self.check_region()?;
        let region = self.s3.region.as_deref();
        let body = match region.filter(|region| !REGIONS_UNTOLD.contains(region)) {
            Some(location_constraint) => {
                xml::write(&Place { location_constraint }, "CreateBucketConfiguration")
                    .map_err(|why| self.internal(CREATE, why))?
            }
            None => String::new(),
        };
        let mut headers = HeaderMap::new();
        if with_object_lock {
            headers.insert(OBJECT_LOCK_ENABLED, HeaderValue::from_static("true"));
        }
        let answer = self.send(CREATE, Method::PUT, None, headers, &body).await?;
        Ok(match (answer.status, xml::error_of(&answer.body).0.as_str()) {
            // Made by an attempt whose answer was lost, or by somebody else of the same account.
            (_, "BucketAlreadyOwnedByYou") => Written::Taken,
            _ => written(&answer, "s3:CreateBucket"),
        })
    }

    /// Reads a setting.
    ///
    /// # Errors
    /// The store can't be reached, doesn't accept the credentials, or has no such bucket.
    pub async fn read<S: Setting>(&self) -> Result<Reading<S>, StoreError> {
        let read = self.ask(S::QUERY, S::READ_PERMISSION).await?;
        let by_action = format!("{}Response", S::READ_ACTION);
        Ok(read.parse(|answer| xml::read(&answer.body, &[S::ROOT, by_action.as_str()])))
    }

    /// Writes a setting.
    ///
    /// # Errors
    /// The store can't be reached, or doesn't accept the credentials.
    pub async fn write<S: Setting>(&self, setting: &S) -> Result<Written, StoreError> {
        let doing = format!("write the bucket's {}", S::QUERY);
        let body = xml::write(setting, S::ROOT).map_err(|why| self.internal(&doing, why))?;
        self.put(&doing, S::QUERY, S::WRITE_PERMISSION, HeaderMap::new(), &body)
            .await
    }

    /// Reads the lifecycle rules: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLifecycleConfiguration.html>
    ///
    /// # Errors
    /// As [`Bucket::read`].
    pub async fn lifecycle(&self) -> Result<Reading<Lifecycle>, StoreError> {
        let read = self.ask(lifecycle::QUERY, lifecycle::READ_PERMISSION).await?;
        Ok(read.parse(|answer| {
            let minimum = answer.headers.get(TRANSITION_MINIMUM);
            let minimum = minimum.and_then(|value| value.to_str().ok()).map(str::to_owned);
            Lifecycle::read(&answer.body, minimum)
        }))
    }

    /// Writes the lifecycle rules, in place of all that are there:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketLifecycleConfiguration.html>
    ///
    /// # Errors
    /// As [`Bucket::write`].
    pub async fn write_lifecycle(&self, lifecycle: &Lifecycle) -> Result<Written, StoreError> {
        let doing = "write the bucket's lifecycle rules";
        let mut headers = HeaderMap::new();
        let minimum = lifecycle.transition_minimum.as_ref();
        if let Some(value) = minimum.and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(TRANSITION_MINIMUM, value);
        }
        let body = lifecycle.write();
        self.put(
            doing,
            lifecycle::QUERY,
            lifecycle::WRITE_PERMISSION,
            headers,
            &body,
        )
        .await
    }

    async fn ask(
        &self,
        setting: &'static str,
        permission: &'static str,
    ) -> Result<Reading<BucketAnswer>, StoreError> {
        let doing = format!("read the bucket's {setting}");
        let answer = self
            .send(&doing, Method::GET, Some(setting), HeaderMap::new(), "")
            .await?;
        let (code, message) = xml::error_of(&answer.body);
        Ok(match (answer.status, code.as_str()) {
            (200..=299, _) => Reading::Set(answer),
            (404, "NoSuchBucket") => {
                let kind = StoreErrorKind::NoSuchBucket;
                return Err(StoreError::new(kind, doing, self.store.url(), message));
            }
            // NoSuchLifecycleConfiguration, ObjectLockConfigurationNotFoundError, ...
            (404, _) => Reading::Unset,
            (403, _) => Reading::Forbidden(permission),
            _ => Reading::Unsupported(told(&answer)),
        })
    }

    /// Every one of these takes a checksum of the body. MD5 is the one that all stores know.
    async fn put(
        &self,
        doing: &str,
        setting: &'static str,
        permission: &'static str,
        mut headers: HeaderMap,
        body: &str,
    ) -> Result<Written, StoreError> {
        let sum = STANDARD.encode(Md5::digest(body.as_bytes()));
        let sum = HeaderValue::from_str(&sum).map_err(|error| self.internal(doing, error.to_string()))?;
        headers.insert(CONTENT_MD5, sum);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        let answer = self
            .send(doing, Method::PUT, Some(setting), headers, body)
            .await?;
        Ok(written(&answer, permission))
    }

    /// Sends it until there is an answer that another attempt wouldn't change.
    async fn send(
        &self,
        doing: &str,
        method: Method,
        setting: Option<&'static str>,
        headers: HeaderMap,
        body: &str,
    ) -> Result<BucketAnswer, StoreError> {
        let kind = match method {
            Method::GET => Request::Get,
            Method::HEAD => Request::Head,
            _ => Request::Put,
        };
        let body = Bytes::copy_from_slice(body.as_bytes());
        let request = BucketRequest {
            method,
            setting,
            headers,
            body,
        };
        let attempt = || async {
            self.store.inner.counters.request(kind);
            let deadline = self.store.inner.options.request_timeout;
            let answer = async { final_answer(self.s3.send(&request).await?) };
            let answered = self.store.attempt(kind, deadline, answer).await;
            // Not what a policy calls it: those are told with the setting.
            answered.map_err(|cause| Cause {
                request: None,
                ..cause
            })
        };
        self.store.retry(doing, attempt).await
    }

    fn internal(&self, doing: &str, why: String) -> StoreError {
        StoreError::new(StoreErrorKind::Other, doing, self.store.url(), why)
    }
}

impl Reading<BucketAnswer> {
    fn parse<T>(self, parse: impl FnOnce(&BucketAnswer) -> Result<T, String>) -> Reading<T> {
        match self {
            Self::Set(answer) => match parse(&answer) {
                Ok(value) => Reading::Set(value),
                Err(why) => Reading::Unsupported(why),
            },
            Self::Unset => Reading::Unset,
            Self::Unsupported(why) => Reading::Unsupported(why),
            Self::Forbidden(permission) => Reading::Forbidden(permission),
        }
    }
}

/// What a later attempt may change, and what is wrong with the credentials or the region, is an error like any other.
fn final_answer(answer: BucketAnswer) -> object_store::Result<BucketAnswer> {
    let code = xml::error_of(&answer.body).0;
    let passing = match answer.status {
        // Not implemented.
        501 => false,
        301 | 307 | 308 | 401 | 429 | 500.. => true,
        403 => !matches!(code.as_str(), "" | "AccessDenied" | "AllAccessDisabled"),
        // Another change of the bucket is under way.
        409 => code == "OperationAborted",
        _ => matches!(
            code.as_str(),
            "RequestTimeout" | "BadDigest" | "ExpiredToken" | "InvalidToken" | "AuthorizationHeaderMalformed"
        ),
    };
    match passing {
        false => Ok(answer),
        true => Err(object_store::Error::Generic {
            store: "S3",
            source: answer.body.into(),
        }),
    }
}

fn written(answer: &BucketAnswer, permission: &'static str) -> Written {
    match answer.status {
        200..=299 => Written::Taken,
        403 => Written::Forbidden(permission),
        _ => Written::Refused(told(answer)),
    }
}

/// The store's words for what it didn't do.
fn told(answer: &BucketAnswer) -> String {
    const LENGTH_MAX: usize = 200;
    let (code, message) = xml::error_of(&answer.body);
    let words = [code, message].map(|text| text.chars().take(LENGTH_MAX).collect::<String>());
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|text| !text.is_empty())
        .collect();
    match words.is_empty() {
        true => format!("it answers {}", answer.status),
        false => format!("it answers {} {}", answer.status, words.join(": ")),
    }
}
