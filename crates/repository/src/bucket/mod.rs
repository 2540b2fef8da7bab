//! The bucket that repositories lie in: what it should be, what it is, and how it becomes so.
//!
//! The settings are those of `infra/terraform/s3-backups`. Each is read first and written only where it differs; what is
//! stronger already stays, and so do lifecycle rules of others. What was written is read back, because some stores take
//! settings and forget them.

mod age;
mod apply;
mod error;
mod judge;
mod plan;
mod rule;
mod rules;
mod state;
mod wanted;

use jiff::Timestamp;
use pgkeep_store::Store;

pub use age::{ExpiryBound, Kept, Rhythm};
pub use apply::{Applied, Came, SetUp, apply};
pub use error::BucketError;
pub use judge::lifecycle_findings;
pub use plan::{Need, Plan, Step};
pub use wanted::{
    ClusterKept, Expiry, Lock, LockMode, Move, NONCURRENT_DAYS_DEFAULT, STORAGE_CLASSES, Wanted,
};

use state::State;

/// What the bucket is, what it should be, and what is to be done. Nothing is changed.
///
/// # Errors
/// What is wanted contradicts itself, what is kept, or what own rules say already; the store lies in no bucket of S3; it can't be
/// asked, or shows nothing. That there is no bucket is an error unless it may be created, and can be as far as is known.
pub async fn examine(
    store: &Store,
    wanted: &Wanted,
    may_create: bool,
    now: Timestamp,
) -> Result<Plan, BucketError> {
    wanted.check()?;
    let Some(bucket) = store.bucket() else {
        return Err(BucketError::NotS3 {
            url: store.url().to_owned(),
            mend: by_hand(store.url()).to_owned(),
        });
    };
    let state = State::read(store, bucket, &wanted.clusters).await?;
    if !state.exists && !may_create {
        return Err(BucketError::NoBucket {
            url: store.url().to_owned(),
            mend:
                "pgkeep bucket setup --create   # with --s3-region REGION at Amazon's; else correct the URL"
                    .to_owned(),
        });
    }
    if !state.exists {
        bucket.check_region()?;
    }
    for cluster in &wanted.clusters {
        wanted.check_beside(&plan::own_of(&state, cluster))?;
    }
    Ok(plan::plan(&state, wanted, now))
}

/// What there is to do where pgkeep doesn't do it.
fn by_hand(url: &str) -> &'static str {
    match url.split(':').next() {
        Some("gs") => {
            "by hand: gcloud storage buckets update gs://BUCKET --public-access-prevention --uniform-bucket-level-access \
             --soft-delete-duration=30d"
        }
        Some("az") => {
            "by hand: az storage account blob-service-properties update --account-name ACCOUNT --enable-delete-retention true \
             --delete-retention-days 30, and az storage account update --name ACCOUNT --allow-blob-public-access false"
        }
        _ => {
            "a directory has no such settings: see that only pgkeep's user may enter it (chmod 700), and copy backups elsewhere (pgkeep copy)"
        }
    }
}
