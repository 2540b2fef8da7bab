//! The plan carried out, setting by setting. One that fails stops none of the others.

use std::time::Duration;

use jiff::Timestamp;
use pgkeep_store::bucket::{Bucket, Lifecycle, Reading, Rule, Setting, Written};
use pgkeep_store::{Store, StoreError};

use super::error::BucketError;
use super::plan::{
    self, BUCKET, ENCRYPTION, LIFECYCLE, Need, OBJECT_LOCK, OWNERSHIP, PUBLIC_ACCESS, Plan, VERSIONING,
};
use super::state::State;
use super::wanted::Wanted;

/// What the setup came to.
#[derive(Debug, Clone, PartialEq)]
pub struct SetUp {
    /// One for each setting that was to be changed.
    pub applied: Vec<Applied>,
    /// What is still to be done.
    pub after: Plan,
}

/// What a setting came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What it is called.
    pub setting: String,
    /// What came of it.
    pub came: Came,
}

/// What came of writing a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Came {
    /// It is as it should be; what it is now.
    Done(String),
    /// The store took it, and hasn't got it.
    Ignored,
    /// The store refused it; its words.
    Refused(String),
    /// A permission is missing.
    Forbidden(&'static str),
    /// The request failed.
    Failed(String),
    /// Rules of others are gone that were there before.
    Lost(Vec<String>),
}

/// How long what was written may take to be seen: tried at once, and after each of these.
const SEEN_AFTER: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Carries out a plan of [`super::examine`].
///
/// # Errors
/// The bucket can't be created, or what was written can't be read back.
pub async fn apply(
    store: &Store,
    wanted: &Wanted,
    planned: Plan,
    now: Timestamp,
) -> Result<SetUp, BucketError> {
    let mut applied = Vec::new();
    let Some(bucket) = store.bucket() else {
        return Ok(SetUp {
            applied,
            after: planned,
        });
    };
    let mut planned = planned;
    if planned.create {
        create(store, bucket, wanted).await?;
        applied.push(Applied {
            setting: BUCKET.to_owned(),
            came: Came::Done("there".to_owned()),
        });
        // A new bucket has some settings by itself.
        planned = created(store, bucket, wanted, now).await?;
    }
    let before = foreign_rules(bucket).await?;
    let written = write_all(bucket, &planned).await;
    let after = read_back(store, bucket, wanted, &written, now).await?;
    for step in planned.steps.iter().filter(|step| step.need == Need::Change) {
        let place = places_of(&step.setting);
        let came = match written.iter().find(|(setting, _)| *setting == place) {
            None => continue,
            Some((_, Sent::Taken)) => match after.steps.iter().find(|found| found.setting == step.setting) {
                Some(found) if found.need == Need::Nothing => Came::Done(found.now.clone()),
                _ => Came::Ignored,
            },
            Some((_, Sent::Came(came))) => came.clone(),
        };
        applied.push(Applied {
            setting: step.setting.clone(),
            came,
        });
    }
    if planned.lifecycle.is_some() {
        let there = foreign_rules(bucket).await?;
        let lost: Vec<String> = before
            .iter()
            .filter(|rule| !there.contains(rule))
            .map(|rule| rule.id.clone().unwrap_or_default())
            .collect();
        if !lost.is_empty() {
            applied.push(Applied {
                setting: LIFECYCLE.to_owned(),
                came: Came::Lost(lost),
            });
        }
    }
    Ok(SetUp { applied, after })
}

/// What a request for a setting came to, before it is read back.
enum Sent {
    Taken,
    Came(Came),
}

async fn create(store: &Store, bucket: Bucket<'_>, wanted: &Wanted) -> Result<(), BucketError> {
    let not_created = |why: String, mend: &str| BucketError::NotCreated {
        url: store.url().to_owned(),
        why,
        mend: mend.to_owned(),
    };
    match bucket.create(wanted.object_lock.is_some()).await? {
        Written::Taken => Ok(()),
        Written::Refused(why) => Err(not_created(
            why,
            "bucket names are the world's: choose another one if this is somebody else's",
        )),
        Written::Forbidden(permission) => Err(not_created(
            format!("these credentials lack {permission}"),
            &format!("allow these credentials {permission}, or let somebody else create it"),
        )),
    }
}

/// The plan for a bucket that was just created.
async fn created(
    store: &Store,
    bucket: Bucket<'_>,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<Plan, BucketError> {
    let mut pauses = SEEN_AFTER.iter();
    loop {
        let plan = match State::read(store, bucket, &wanted.clusters).await {
            Ok(state) if state.exists => return Ok(plan::plan(&state, wanted, now)),
            Ok(state) => Ok(plan::plan(&state, wanted, now)),
            Err(error) => Err(error),
        };
        match pauses.next() {
            Some(pause) => tokio::time::sleep(*pause).await,
            None => return Ok(plan?),
        }
    }
}

async fn write_all(bucket: Bucket<'_>, plan: &Plan) -> Vec<(&'static str, Sent)> {
    let mut written = Vec::new();
    write(bucket, PUBLIC_ACCESS, plan.public_access.as_ref(), &mut written).await;
    write(bucket, OWNERSHIP, plan.ownership.as_ref(), &mut written).await;
    write(bucket, ENCRYPTION, plan.encryption.as_ref(), &mut written).await;
    write(bucket, VERSIONING, plan.versioning.as_ref(), &mut written).await;
    // Takes versioning.
    write(bucket, OBJECT_LOCK, plan.object_lock.as_ref(), &mut written).await;
    if let Some(lifecycle) = &plan.lifecycle {
        written.push((LIFECYCLE, sent(bucket.write_lifecycle(lifecycle).await)));
    }
    written
}

async fn write<S: Setting>(
    bucket: Bucket<'_>,
    name: &'static str,
    setting: Option<&S>,
    written: &mut Vec<(&'static str, Sent)>,
) {
    if let Some(setting) = setting {
        written.push((name, sent(bucket.write(setting).await)));
    }
}

fn sent(written: Result<Written, StoreError>) -> Sent {
    match written {
        Ok(Written::Taken) => Sent::Taken,
        Ok(Written::Refused(why)) => Sent::Came(Came::Refused(why)),
        Ok(Written::Forbidden(permission)) => Sent::Came(Came::Forbidden(permission)),
        Err(error) => Sent::Came(Came::Failed(error.to_string())),
    }
}

/// Which request a step belongs to: all that lifecycle rules do is written at once.
fn places_of(setting: &str) -> &'static str {
    [PUBLIC_ACCESS, OWNERSHIP, ENCRYPTION, VERSIONING, OBJECT_LOCK]
        .into_iter()
        .find(|place| *place == setting)
        .unwrap_or(LIFECYCLE)
}

/// What is to be done now: nothing, where all that was taken is seen.
async fn read_back(
    store: &Store,
    bucket: Bucket<'_>,
    wanted: &Wanted,
    written: &[(&'static str, Sent)],
    now: Timestamp,
) -> Result<Plan, BucketError> {
    let mut pauses = SEEN_AFTER.iter();
    loop {
        let state = State::read(store, bucket, &wanted.clusters).await?;
        let plan = plan::plan(&state, wanted, now);
        let is_missing = |(place, sent): &(&'static str, Sent)| {
            let mut steps = plan
                .steps
                .iter()
                .filter(|step| places_of(&step.setting) == *place);
            matches!(sent, Sent::Taken) && steps.any(|step| step.need == Need::Change)
        };
        let pause = pauses.next().filter(|_| written.iter().any(is_missing));
        match pause {
            Some(pause) => tokio::time::sleep(*pause).await,
            None => return Ok(plan),
        }
    }
}

/// Rules of others, in one form.
async fn foreign_rules(bucket: Bucket<'_>) -> Result<Vec<Rule>, BucketError> {
    let lifecycle = match bucket.lifecycle().await? {
        Reading::Set(lifecycle) => lifecycle,
        _ => Lifecycle::default(),
    };
    let rules = lifecycle.rules.into_iter().map(|stored| stored.rule.normalized());
    Ok(rules
        .filter(|rule| !rule.id.as_deref().is_some_and(super::rules::is_own))
        .collect())
}
