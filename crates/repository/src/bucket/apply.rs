//! The plan carried out, setting by setting. One that fails stops none of the others.

use std::time::Duration;

use jiff::Timestamp;
use pgkeep_store::bucket::{Bucket, Lifecycle, Reading, Rule, Setting, Written};
use pgkeep_store::{Store, StoreError};

use super::error::BucketError;
use super::plan::{
    self, BUCKET, ENCRYPTION, LIFECYCLE, Need, OBJECT_LOCK, OWNERSHIP, PUBLIC_ACCESS, Plan, Step, VERSIONING,
};
use super::state::{OldVersions, State};
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

/// What to know where the store refuses rules beside some of S3's old form.
const OLD_FORM: &str = "There are rules of S3's old form (<Prefix> in place of <Filter>), which S3 refuses to have beside new ones or \
    overlapping: write those anew with <Filter>, then run this again";

/// Carries out a plan of [`super::examine`].
///
/// # Errors
/// The bucket can't be created. What fails after something was set is told with what was.
pub async fn apply(
    store: &Store,
    wanted: &Wanted,
    planned: Plan,
    now: Timestamp,
) -> Result<SetUp, BucketError> {
    let mut applied = Vec::new();
    let mut planned = planned;
    let Some(bucket) = store.bucket() else {
        return Ok(SetUp {
            applied,
            after: planned,
        });
    };
    if planned.create {
        create(store, bucket, wanted).await?;
        applied.push(Applied {
            setting: BUCKET.to_owned(),
            came: Came::Done("there".to_owned()),
        });
        // A new bucket has some settings by itself.
        match created(store, bucket, wanted, now).await {
            Ok(plan) => planned = plan,
            Err(error) => return Ok(only_created(applied, planned, &error)),
        }
    }
    let asked = Asked {
        store,
        bucket,
        wanted,
        old_versions: planned.old_versions,
        now,
    };
    let mut written = write_all(bucket, &planned).await;
    let mut rules = None;
    if planned.lifecycle.is_some() {
        let (sent, replaced) = asked.write_lifecycle().await;
        written.push((LIFECYCLE, sent));
        rules = replaced;
    }
    let read = asked.read_back(&written).await;
    applied.extend(to_change(&planned).filter_map(|step| {
        let place = places_of(&step.setting);
        let (_, sent) = written.iter().find(|(setting, _)| *setting == place)?;
        let came = match (sent, &read) {
            (Sent::Came(came), _) => came.clone(),
            (Sent::Taken, Ok((_, after))) => seen(step, after),
            (Sent::Taken, Err(error)) => Came::Failed(format!(
                "the store took it, and what it has now can't be read: {error}"
            )),
        };
        let setting = step.setting.clone();
        Some(Applied { setting, came })
    }));
    let Ok((state, after)) = read else {
        return Ok(SetUp {
            applied,
            after: planned,
        });
    };
    let lost = rules.map(|rules| rules.lost(&state.lifecycle));
    if let Some(lost) = lost.filter(|lost| !lost.is_empty()) {
        applied.push(Applied {
            setting: LIFECYCLE.to_owned(),
            came: Came::Lost(lost),
        });
    }
    Ok(SetUp { applied, after })
}

/// The bucket was made, and nothing of it set.
fn only_created(mut applied: Vec<Applied>, planned: Plan, error: &BucketError) -> SetUp {
    let failed = |step: &Step| Applied {
        setting: step.setting.clone(),
        came: Came::Failed(error.to_string()),
    };
    let steps = to_change(&planned).filter(|step| step.setting != BUCKET);
    applied.extend(steps.map(failed));
    SetUp {
        applied,
        after: planned,
    }
}

fn to_change(plan: &Plan) -> impl Iterator<Item = &Step> {
    plan.steps.iter().filter(|step| step.need == Need::Change)
}

/// What came of a step that the store took.
fn seen(step: &Step, after: &Plan) -> Came {
    let find = |setting: &str| after.steps.iter().find(|found| found.setting == setting);
    match find(&step.setting) {
        Some(found) if found.need == Need::Nothing => Came::Done(found.now.clone()),
        Some(_) => Came::Ignored,
        // Some are only told while they differ. Where nothing of the rules is seen, one step stands for all.
        None => match find(LIFECYCLE).map(|step| step.need) {
            Some(Need::Unknown | Need::Unsupported) => Came::Ignored,
            _ => Came::Done(step.wanted.clone()),
        },
    }
}

/// What a request for a setting came to, before it is read back.
enum Sent {
    Taken,
    Came(Came),
}

/// The rules of a bucket, and what was written in their place.
struct Replaced {
    before: Lifecycle,
    written: Lifecycle,
}

impl Replaced {
    /// Which of those that were to stay are gone.
    fn lost(&self, now: &Reading<Lifecycle>) -> Vec<String> {
        let all = |lifecycle: &Lifecycle| -> Vec<Rule> {
            let rules = lifecycle.rules.iter();
            rules.map(|stored| stored.rule.normalized()).collect()
        };
        let there = match now {
            Reading::Set(lifecycle) => all(lifecycle),
            Reading::Unset => Vec::new(),
            Reading::Unsupported(_) | Reading::Forbidden(_) => return Vec::new(),
        };
        let written = all(&self.written);
        let stay = all(&self.before)
            .into_iter()
            .filter(|rule| written.contains(rule));
        stay.filter(|rule| !there.contains(rule))
            .map(|rule| rule.id.unwrap_or_default())
            .collect()
    }
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
        let state = State::read(store, bucket, &wanted.clusters).await;
        let plan = state.map(|mut state| {
            // With Object Lock it keeps them from the start, and there are none yet.
            state.old_versions = OldVersions::None;
            plan::plan(&state, wanted, now)
        });
        match (&plan, pauses.next()) {
            (Ok(plan), _) if !plan.create => return Ok(plan.clone()),
            (_, Some(pause)) => tokio::time::sleep(*pause).await,
            (_, None) => return plan,
        }
    }
}

/// All but the lifecycle rules.
async fn write_all(bucket: Bucket<'_>, plan: &Plan) -> Vec<(&'static str, Sent)> {
    let mut written = Vec::new();
    write(bucket, PUBLIC_ACCESS, plan.public_access.as_ref(), &mut written).await;
    write(bucket, OWNERSHIP, plan.ownership.as_ref(), &mut written).await;
    write(bucket, ENCRYPTION, plan.encryption.as_ref(), &mut written).await;
    write(bucket, VERSIONING, plan.versioning.as_ref(), &mut written).await;
    // Takes versioning.
    write(bucket, OBJECT_LOCK, plan.object_lock.as_ref(), &mut written).await;
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

/// What is asked of a bucket.
struct Asked<'a> {
    store: &'a Store,
    bucket: Bucket<'a>,
    wanted: &'a Wanted,
    /// As it was before anything was set.
    old_versions: OldVersions,
    now: Timestamp,
}

impl Asked<'_> {
    async fn look(&self) -> Result<(State, Plan), BucketError> {
        let mut state = State::read(self.store, self.bucket, &self.wanted.clusters).await?;
        state.old_versions = self.old_versions;
        let plan = plan::plan(&state, self.wanted, self.now);
        Ok((state, plan))
    }

    /// Writes the rules by what they are at this moment: since they were planned, somebody may have read the plan for minutes,
    /// and what others changed meanwhile has to stay.
    async fn write_lifecycle(&self) -> (Sent, Option<Replaced>) {
        let (state, plan) = match self.look().await {
            Ok(looked) => looked,
            Err(error) => return (Sent::Came(Came::Failed(error.to_string())), None),
        };
        let before = match state.lifecycle {
            Reading::Set(lifecycle) => lifecycle,
            Reading::Unset => Lifecycle::default(),
            Reading::Unsupported(said) => return (Sent::Came(Came::Refused(said)), None),
            Reading::Forbidden(permission) => return (Sent::Came(Came::Forbidden(permission)), None),
        };
        // Somebody else set them meanwhile.
        let Some(lifecycle) = plan.lifecycle else {
            return (Sent::Taken, None);
        };
        let sent = match sent(self.bucket.write_lifecycle(&lifecycle).await) {
            Sent::Came(Came::Refused(said)) if before.has_old_form() => {
                Sent::Came(Came::Refused(format!("{said}. {OLD_FORM}")))
            }
            sent => sent,
        };
        let written = lifecycle;
        (sent, Some(Replaced { before, written }))
    }

    /// What is to be done now: nothing, where all that was taken is seen.
    async fn read_back(&self, written: &[(&'static str, Sent)]) -> Result<(State, Plan), BucketError> {
        let mut pauses = SEEN_AFTER.iter();
        loop {
            let (state, plan) = self.look().await?;
            let is_missing = |(place, sent): &(&'static str, Sent)| {
                let mut steps = to_change(&plan).filter(|step| places_of(&step.setting) == *place);
                matches!(sent, Sent::Taken) && steps.next().is_some()
            };
            let pause = pauses.next().filter(|_| written.iter().any(is_missing));
            match pause {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => return Ok((state, plan)),
            }
        }
    }
}
