//! What a bucket is, what it should be, and what to do about it. Pure.

use jiff::Timestamp;
use pgkeep_base::Severity;
use pgkeep_store::bucket::{
    DefaultRetention, Encryption, EncryptionByDefault, EncryptionRule, Lifecycle, ObjectLock, ObjectLockRule,
    OwnershipControls, OwnershipRule, PublicAccessBlock, Reading, Setting, Versioning,
};

use super::judge::{Place, judge};
use super::rule::days_text;
use super::rules::{self, Own, Present};
use super::state::{OldVersions, State};
use super::wanted::{ClusterKept, Lock, LockMode, NONCURRENT_DAYS_DEFAULT, Wanted};

const ENABLED: &str = "Enabled";
const OWNER_ENFORCED: &str = "BucketOwnerEnforced";
const AES256: &str = "AES256";
const KMS: &str = "aws:kms";
const KMS_TWICE: &str = "aws:kms:dsse";
const YEAR_DAYS: u32 = 365;

/// What is to be done about one setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it is right.
    Nothing,
    /// It is to be set.
    Change,
    /// Somebody has to look after it by hand.
    ByHand,
    /// The store hasn't got it.
    Unsupported,
    /// It can't be seen with these credentials, so it isn't touched.
    Unknown,
}

/// One setting: what is, what should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is called.
    pub setting: String,
    /// What it is.
    pub now: String,
    /// What it should be.
    pub wanted: String,
    /// What is to be done.
    pub need: Need,
    /// How much it matters that it isn't as it should be.
    pub severity: Severity,
    /// Why it matters, or what is good to know.
    pub why: String,
    /// What to do about it, where the setup doesn't do it.
    pub mend: Option<String>,
}

/// All settings, and what is to be written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// In the order in which they are set.
    pub steps: Vec<Step>,
    pub(super) create: bool,
    pub(super) old_versions: OldVersions,
    pub(super) public_access: Option<PublicAccessBlock>,
    pub(super) ownership: Option<OwnershipControls>,
    pub(super) encryption: Option<Encryption>,
    pub(super) versioning: Option<Versioning>,
    pub(super) object_lock: Option<ObjectLock>,
    pub(super) lifecycle: Option<Lifecycle>,
}

/// What the steps are called.
pub(super) const BUCKET: &str = "bucket";
pub(super) const PUBLIC_ACCESS: &str = "public access";
pub(super) const OWNERSHIP: &str = "ownership";
pub(super) const ENCRYPTION: &str = "encryption";
pub(super) const VERSIONING: &str = "versioning";
pub(super) const OBJECT_LOCK: &str = "Object Lock";
pub(super) const LIFECYCLE: &str = "lifecycle rules";

impl Plan {
    /// Whether there is anything to set.
    pub fn has_changes(&self) -> bool {
        self.steps.iter().any(|step| step.need == Need::Change)
    }

    /// Steps that need something: to be set, or somebody's attention.
    pub fn needing(&self) -> impl Iterator<Item = &Step> {
        self.steps
            .iter()
            .filter(|step| step.need == Need::Change || step.severity.needs_something())
    }
}

/// What to do.
pub(super) fn plan(state: &State, wanted: &Wanted, now: Timestamp) -> Plan {
    let mut plan = Plan {
        create: !state.exists,
        old_versions: state.old_versions,
        ..Plan::default()
    };
    if !state.exists {
        plan.steps.push(Step {
            setting: BUCKET.to_owned(),
            now: "none".to_owned(),
            wanted: "there".to_owned(),
            need: Need::Change,
            severity: Severity::Warning,
            why: String::new(),
            mend: None,
        });
    }
    plan_public_access(state, &mut plan);
    plan_ownership(state, &mut plan);
    plan_encryption(state, wanted, &mut plan);
    plan_versioning(state, &mut plan);
    plan_object_lock(state, wanted, &mut plan);
    plan_lifecycle(state, wanted, now, &mut plan);
    plan
}

/// How one setting is looked at.
struct Look<'a, S> {
    setting: &'static str,
    reading: &'a Reading<S>,
    /// In words; of none, too.
    shown: fn(Option<&S>) -> String,
    /// What to set; none where what is there is right.
    change: Option<S>,
    /// In words.
    wanted: String,
    /// What it is for.
    why: &'static str,
    /// How much it matters that the store hasn't got it.
    without: Severity,
}

impl<S: Setting> Look<'_, S> {
    fn step(self, plan: &mut Plan) -> Option<S> {
        let present = match self.reading {
            Reading::Set(present) => Some(present),
            _ => None,
        };
        let (need, severity, now, why, change) = match self.reading {
            Reading::Set(_) | Reading::Unset => match self.change {
                None => (
                    Need::Nothing,
                    Severity::Ok,
                    (self.shown)(present),
                    String::new(),
                    None,
                ),
                change => (
                    Need::Change,
                    Severity::Warning,
                    (self.shown)(present),
                    self.why.to_owned(),
                    change,
                ),
            },
            Reading::Unsupported(said) => {
                let why = format!("{} This store hasn't got it: {said}.", self.why);
                (
                    Need::Unsupported,
                    self.without,
                    "not supported".to_owned(),
                    why,
                    None,
                )
            }
            Reading::Forbidden(permission) => {
                let why = format!(
                    "These credentials lack {permission}, so it isn't touched. {}",
                    self.why
                );
                (Need::Unknown, Severity::Warning, "unknown".to_owned(), why, None)
            }
        };
        let mend = match self.reading {
            Reading::Forbidden(permission) => Some(format!(
                "allow these credentials {permission} and {}",
                S::WRITE_PERMISSION
            )),
            _ => None,
        };
        plan.steps.push(Step {
            setting: self.setting.to_owned(),
            now,
            wanted: self.wanted,
            need,
            severity,
            why,
            mend,
        });
        change
    }
}

fn set<S>(reading: &Reading<S>) -> Option<&S> {
    match reading {
        Reading::Set(setting) => Some(setting),
        _ => None,
    }
}

fn plan_public_access(state: &State, plan: &mut Plan) {
    let all = PublicAccessBlock {
        block_public_acls: true,
        ignore_public_acls: true,
        block_public_policy: true,
        restrict_public_buckets: true,
    };
    fn shown(block: Option<&PublicAccessBlock>) -> String {
        let block = block.cloned().unwrap_or_default();
        let on = [
            block.block_public_acls,
            block.ignore_public_acls,
            block.block_public_policy,
            block.restrict_public_buckets,
        ];
        match on.iter().filter(|on| **on).count() {
            4 => "blocked".to_owned(),
            0 => "not blocked".to_owned(),
            number => format!("blocked in {number} of 4 ways"),
        }
    }
    let look = Look {
        setting: PUBLIC_ACCESS,
        reading: &state.public_access,
        shown,
        change: (set(&state.public_access) != Some(&all)).then_some(all),
        wanted: "blocked".to_owned(),
        why: "An ACL or a policy by mistake would open the bucket to everybody.",
        without: Severity::Info,
    };
    plan.public_access = look.step(plan);
}

fn plan_ownership(state: &State, plan: &mut Plan) {
    fn owner(controls: &OwnershipControls) -> Option<&str> {
        controls.rules.first().map(|rule| rule.object_ownership.as_str())
    }
    let is_right = set(&state.ownership).and_then(owner) == Some(OWNER_ENFORCED);
    let look = Look {
        setting: OWNERSHIP,
        reading: &state.ownership,
        shown: |controls| controls.and_then(owner).unwrap_or("not set").to_owned(),
        change: (!is_right).then(|| OwnershipControls {
            rules: vec![OwnershipRule {
                object_ownership: OWNER_ENFORCED.to_owned(),
            }],
        }),
        wanted: OWNER_ENFORCED.to_owned(),
        why: "With ACLs, objects can belong to somebody else than the bucket.",
        without: Severity::Info,
    };
    plan.ownership = look.step(plan);
}

fn plan_encryption(state: &State, wanted: &Wanted, plan: &mut Plan) {
    fn shown(encryption: Option<&Encryption>) -> String {
        let Some(default) = encryption.and_then(Encryption::by_default) else {
            return "none".to_owned();
        };
        match &default.kms_key_id {
            Some(key) => format!("{} {key}", default.algorithm),
            None => default.algorithm.clone(),
        }
    }
    let present = set(&state.encryption).and_then(Encryption::by_default);
    let is_right = match (&wanted.kms_key_id, present) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(key), Some(present)) => {
            let by_kms = [KMS, KMS_TWICE].contains(&present.algorithm.as_str());
            by_kms && present.kms_key_id.as_deref() == Some(key)
        }
    };
    let by_default = EncryptionByDefault {
        // Twice is stronger, and stays.
        algorithm: match (
            &wanted.kms_key_id,
            present.map(|present| present.algorithm.as_str()),
        ) {
            (None, _) => AES256,
            (Some(_), Some(KMS_TWICE)) => KMS_TWICE,
            (Some(_), _) => KMS,
        }
        .to_owned(),
        kms_key_id: wanted.kms_key_id.clone(),
    };
    let first = set(&state.encryption).and_then(|encryption| encryption.rules.first());
    let change = Encryption {
        rules: vec![EncryptionRule {
            bucket_key_enabled: (by_default.algorithm == KMS).then_some(true),
            blocked_encryption_types: first.and_then(|rule| rule.blocked_encryption_types.clone()),
            apply_server_side_encryption_by_default: Some(by_default),
        }],
    };
    let look = Look {
        setting: ENCRYPTION,
        reading: &state.encryption,
        shown,
        wanted: match is_right {
            true => shown(set(&state.encryption)),
            false => shown(Some(&change)),
        },
        change: (!is_right).then_some(change),
        why: "pgkeep encrypts dumps itself; this covers names of clusters, leases, and dumps without encryption.",
        without: match &wanted.kms_key_id {
            Some(_) => Severity::Warning,
            None => Severity::Info,
        },
    };
    plan.encryption = look.step(plan);
}

fn plan_versioning(state: &State, plan: &mut Plan) {
    let is_right = set(&state.versioning).is_some_and(Versioning::is_enabled);
    let look = Look {
        setting: VERSIONING,
        reading: &state.versioning,
        shown: |versioning| {
            let status = versioning.and_then(|versioning| versioning.status.as_deref());
            status.map_or("off".to_owned(), str::to_lowercase)
        },
        change: (!is_right).then(|| Versioning {
            status: Some(ENABLED.to_owned()),
        }),
        wanted: ENABLED.to_lowercase(),
        why: "Without old versions, what is deleted by mistake or malice is gone.",
        without: Severity::Warning,
    };
    plan.versioning = look.step(plan);
}

/// The default retention that is there, in days.
fn lock(object_lock: &ObjectLock) -> Option<Lock> {
    let retention = object_lock.retention()?;
    let mode = match retention.mode.as_str() {
        "COMPLIANCE" => LockMode::Compliance,
        _ => LockMode::Governance,
    };
    let by_years = retention.years.map(|years| years.saturating_mul(YEAR_DAYS));
    let days = retention.days.or(by_years)?;
    Some(Lock { mode, days })
}

fn lock_text(lock: Lock) -> String {
    format!("{} for {}", lock.mode.word().to_lowercase(), days_text(lock.days))
}

fn plan_object_lock(state: &State, wanted: &Wanted, plan: &mut Plan) {
    fn shown(object_lock: Option<&ObjectLock>) -> String {
        match object_lock.filter(|object_lock| object_lock.is_enabled()) {
            None => "off".to_owned(),
            Some(object_lock) => lock(object_lock).map_or("on, without default".to_owned(), lock_text),
        }
    }
    let present = set(&state.object_lock)
        .filter(|present| present.is_enabled())
        .and_then(lock);
    // Nothing that is locked longer, or more strictly, is let go.
    let target = wanted.object_lock.map(|asked| match present {
        Some(present) => Lock {
            mode: asked.mode.max(present.mode),
            days: asked.days.max(present.days),
        },
        None => asked,
    });
    let change = target
        .filter(|target| present != Some(*target))
        .map(|target| ObjectLock {
            object_lock_enabled: Some(ENABLED.to_owned()),
            rule: Some(ObjectLockRule {
                default_retention: Some(DefaultRetention {
                    mode: target.mode.word().to_owned(),
                    days: Some(target.days),
                    years: None,
                }),
            }),
        });
    if wanted.object_lock.is_none() && !matches!(state.object_lock, Reading::Set(_) | Reading::Unset) {
        return;
    }
    let look = Look {
        setting: OBJECT_LOCK,
        reading: &state.object_lock,
        shown,
        wanted: target.map_or_else(|| shown(set(&state.object_lock)), lock_text),
        change,
        why: "Without it, whoever may delete old versions can delete backups for good.",
        without: Severity::Warning,
    };
    plan.object_lock = look.step(plan);
}

/// What own lifecycle rules say of a cluster's dumps.
pub(super) fn own_of(state: &State, cluster: &ClusterKept) -> Own {
    let Some(lifecycle) = set(&state.lifecycle) else {
        return Own::default();
    };
    let present = Present {
        lifecycle,
        prefix: &state.prefix,
        old_versions: state.old_versions,
        older_dumps: &|_, _| None,
    };
    present.own_of(cluster)
}

fn plan_lifecycle(state: &State, wanted: &Wanted, now: Timestamp, plan: &mut Plan) {
    let why = "Old versions, leases and parts of broken uploads stay, and cost.";
    let none = Lifecycle::default();
    let present = match &state.lifecycle {
        Reading::Set(lifecycle) => lifecycle,
        Reading::Unset => &none,
        Reading::Unsupported(_) | Reading::Forbidden(_) => {
            return plan.steps.push(without_lifecycle(&state.lifecycle, wanted, why));
        }
    };
    let older = |cluster: &str, days: u32| state.older_dumps(cluster, days, now);
    let present = Present {
        lifecycle: present,
        prefix: &state.prefix,
        old_versions: state.old_versions,
        older_dumps: &older,
    };
    let rules = rules::plan(&present, wanted);
    let step = |aspect: &rules::Aspect| Step {
        setting: aspect.setting.clone(),
        now: aspect.now.clone(),
        wanted: aspect.wanted.clone(),
        need: if aspect.differs {
            Need::Change
        } else {
            Need::Nothing
        },
        severity: match (aspect.differs, aspect.note.is_empty()) {
            (true, _) => Severity::Warning,
            (false, false) => Severity::Info,
            (false, true) => Severity::Ok,
        },
        why: aspect.note.clone(),
        mend: None,
    };
    plan.steps.extend(rules.aspects.iter().map(step));
    // What is wrong with own rules is mended by what is written.
    let place = Place {
        expiry: wanted.expiry,
        noncurrent_days: wanted.noncurrent_days.unwrap_or(NONCURRENT_DAYS_DEFAULT),
        ..Place::new(&state.prefix, &wanted.clusters, "pgkeep bucket setup")
    };
    for finding in judge(&rules.after, &place) {
        if finding.severity.needs_something() {
            plan.steps.push(Step {
                setting: LIFECYCLE.to_owned(),
                now: finding.what,
                wanted: "none like it".to_owned(),
                need: Need::ByHand,
                severity: finding.severity,
                why: finding.why,
                mend: finding.mend,
            });
        }
    }
    plan.lifecycle = rules.differ().then_some(rules.after);
}

fn without_lifecycle(reading: &Reading<Lifecycle>, wanted: &Wanted, why: &str) -> Step {
    let step = |now: &str, need, severity, why, mend| Step {
        setting: LIFECYCLE.to_owned(),
        now: now.to_owned(),
        wanted: "old versions, leases, unfinished uploads go".to_owned(),
        need,
        severity,
        why,
        mend,
    };
    match reading {
        Reading::Forbidden(permission) => step(
            "unknown",
            Need::Unknown,
            Severity::Warning,
            format!(
                "These credentials lack {permission}: rules of others, which have to stay, aren't seen. {why}"
            ),
            Some(format!(
                "allow these credentials {permission} and s3:PutLifecycleConfiguration"
            )),
        ),
        Reading::Unsupported(said) => {
            let asked = wanted.expiry != Default::default() || wanted.transition != Default::default();
            let severity = if asked { Severity::Warning } else { Severity::Info };
            let why = format!("{why} This store hasn't got them: {said}.");
            step("not supported", Need::Unsupported, severity, why, None)
        }
        Reading::Set(_) | Reading::Unset => step("", Need::Nothing, Severity::Ok, String::new(), None),
    }
}
