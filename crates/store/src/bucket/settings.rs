//! The settings of a bucket as XML has them, for reading and for writing. The names are Amazon's.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// One of a bucket's settings.
pub trait Setting: Serialize + DeserializeOwned + Clone + PartialEq + std::fmt::Debug {
    /// The query that names it.
    const QUERY: &'static str;
    /// The root element.
    const ROOT: &'static str;
    /// What S3 calls reading it: some stores name the root by that, `GetBucketVersioningResponse`.
    const READ_ACTION: &'static str;
    /// What reading it takes.
    const READ_PERMISSION: &'static str;
    /// What writing it takes.
    const WRITE_PERMISSION: &'static str;
}

macro_rules! setting {
    ($type:ty, $query:literal, $root:literal, $action:literal, $read:literal, $write:literal) => {
        impl Setting for $type {
            const QUERY: &'static str = $query;
            const ROOT: &'static str = $root;
            const READ_ACTION: &'static str = $action;
            const READ_PERMISSION: &'static str = $read;
            const WRITE_PERMISSION: &'static str = $write;
        }
    };
}

/// Whether old versions are kept: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketVersioning.html>
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Versioning {
    /// `Enabled` or `Suspended`; none where it was never enabled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}
setting!(
    Versioning,
    "versioning",
    "VersioningConfiguration",
    "GetBucketVersioning",
    "s3:GetBucketVersioning",
    "s3:PutBucketVersioning"
);

/// What public access is refused: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutPublicAccessBlock.html>
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PublicAccessBlock {
    /// Public ACLs can't be set.
    pub block_public_acls: bool,
    /// Those that are set count for nothing.
    pub ignore_public_acls: bool,
    /// Public bucket policies can't be set.
    pub block_public_policy: bool,
    /// Those that are set count for nothing.
    pub restrict_public_buckets: bool,
}
setting!(
    PublicAccessBlock,
    "publicAccessBlock",
    "PublicAccessBlockConfiguration",
    "GetPublicAccessBlock",
    "s3:GetBucketPublicAccessBlock",
    "s3:PutBucketPublicAccessBlock"
);

/// Whose objects are: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketOwnershipControls.html>
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnershipControls {
    /// One.
    #[serde(rename = "Rule", default)]
    pub rules: Vec<OwnershipRule>,
}
setting!(
    OwnershipControls,
    "ownershipControls",
    "OwnershipControls",
    "GetBucketOwnershipControls",
    "s3:GetBucketOwnershipControls",
    "s3:PutBucketOwnershipControls"
);

/// A rule of [`OwnershipControls`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OwnershipRule {
    /// `BucketOwnerEnforced`: ACLs are off.
    pub object_ownership: String,
}

/// The default encryption: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketEncryption.html>
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// One.
    #[serde(rename = "Rule", default)]
    pub rules: Vec<EncryptionRule>,
}
setting!(
    Encryption,
    "encryption",
    "ServerSideEncryptionConfiguration",
    "GetBucketEncryption",
    "s3:GetEncryptionConfiguration",
    "s3:PutEncryptionConfiguration"
);

/// A rule of [`Encryption`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EncryptionRule {
    /// By what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_server_side_encryption_by_default: Option<EncryptionByDefault>,
    /// Whether S3 asks KMS once for many objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket_key_enabled: Option<bool>,
    /// What S3 refuses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_encryption_types: Option<BlockedEncryptionTypes>,
}

/// Algorithm and key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionByDefault {
    /// `AES256`, `aws:kms`, `aws:kms:dsse`.
    #[serde(rename = "SSEAlgorithm")]
    pub algorithm: String,
    /// KMS' key; none: the account's own for S3.
    #[serde(rename = "KMSMasterKeyID", default, skip_serializing_if = "Option::is_none")]
    pub kms_key_id: Option<String>,
}

/// Encryption that requests may not ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedEncryptionTypes {
    /// `SSE-C`, `NONE`.
    #[serde(rename = "EncryptionType", default)]
    pub types: Vec<String>,
}

/// Object Lock: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObjectLockConfiguration.html>
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ObjectLock {
    /// `Enabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_lock_enabled: Option<String>,
    /// How new objects are locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<ObjectLockRule>,
}
setting!(
    ObjectLock,
    "object-lock",
    "ObjectLockConfiguration",
    "GetObjectLockConfiguration",
    "s3:GetBucketObjectLockConfiguration",
    "s3:PutBucketObjectLockConfiguration"
);

/// The rule of [`ObjectLock`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ObjectLockRule {
    /// Of objects that say nothing themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_retention: Option<DefaultRetention>,
}

/// How long new objects are locked: in days or in years.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DefaultRetention {
    /// `GOVERNANCE` or `COMPLIANCE`.
    pub mode: String,
    /// Days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// Years.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub years: Option<u32>,
}

impl Versioning {
    /// Whether old versions are kept.
    pub fn is_enabled(&self) -> bool {
        self.status.as_deref() == Some("Enabled")
    }
}

impl ObjectLock {
    /// Whether it is on.
    pub fn is_enabled(&self) -> bool {
        self.object_lock_enabled.as_deref() == Some("Enabled")
    }

    /// How new objects are locked, if they are.
    pub fn retention(&self) -> Option<&DefaultRetention> {
        self.rule.as_ref()?.default_retention.as_ref()
    }
}

impl Encryption {
    /// Algorithm and key, if there are any.
    pub fn by_default(&self) -> Option<&EncryptionByDefault> {
        self.rules
            .iter()
            .find_map(|rule| rule.apply_server_side_encryption_by_default.as_ref())
    }
}
