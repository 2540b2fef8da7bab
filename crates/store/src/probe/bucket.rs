//! The settings of an S3 bucket. Not every credential may see them: that's fine, and said. Lifecycle rules are for whoever
//! knows what lies below which prefix.

use pgkeep_base::Severity;

use super::ProbeReport;
use crate::bucket::{ObjectLock, Reading, Setting, Versioning};
use crate::store::Store;

/// What sets the bucket up.
const SETUP: &str = "pgkeep bucket setup --dry-run   # says what it would change; without --dry-run it does";

pub(super) async fn probe(store: &Store, report: &mut ProbeReport) {
    if store.bucket().is_none() {
        return;
    }
    let versioning = ask::<Versioning>(store).await;
    probe_versioning(versioning, report);
    let object_lock = ask::<ObjectLock>(store).await;
    probe_object_lock(object_lock, report);
}

/// The setting, none where there is none, or why it isn't known.
async fn ask<S: Setting>(store: &Store) -> Result<Option<S>, String> {
    let Some(bucket) = store.bucket() else {
        return Ok(None);
    };
    match bucket.read::<S>().await {
        Ok(Reading::Set(setting)) => Ok(Some(setting)),
        Ok(Reading::Unset) => Ok(None),
        Ok(Reading::Forbidden(permission)) => Err(format!("these credentials lack {permission}")),
        Ok(Reading::Unsupported(why)) => Err(format!("the store doesn't know it: {why}")),
        Err(error) => Err(error.to_string()),
    }
}

fn probe_versioning(answer: Result<Option<Versioning>, String>, report: &mut ProbeReport) {
    const CHECK: &str = "versioning";
    let why = "With versioning, what is deleted by mistake or malice can be brought back.";
    match answer {
        Ok(Some(versioning)) if versioning.is_enabled() => {
            report.capabilities.versioning = Some(true);
            report.add(CHECK, Severity::Ok, "the bucket keeps old versions", why);
        }
        Ok(_) => {
            report.capabilities.versioning = Some(false);
            report
                .add(CHECK, Severity::Info, "the bucket keeps no old versions", why)
                .mend(SETUP);
        }
        Err(reason) => {
            let what = format!("versioning: unknown ({reason})");
            report.add(CHECK, Severity::Info, what, why);
        }
    }
}

fn probe_object_lock(answer: Result<Option<ObjectLock>, String>, report: &mut ProbeReport) {
    const CHECK: &str = "object-lock";
    let why = "Under Object Lock nobody can delete a backup before its time, pgkeep's retention included.";
    match answer {
        Ok(Some(object_lock)) if object_lock.is_enabled() => {
            report.capabilities.object_lock = Some(true);
            let retention = match object_lock.retention() {
                None => "no default retention".to_owned(),
                Some(retention) => {
                    let days = retention.days.map(|days| format!(" for {days} days"));
                    let years = retention.years.map(|years| format!(" for {years} years"));
                    let time = days.or(years).unwrap_or_default();
                    format!("{} retention{time}", retention.mode.to_lowercase())
                }
            };
            let what = format!("Object Lock is on, with {retention}");
            report.add(CHECK, Severity::Ok, what, why);
        }
        Ok(_) => {
            report.capabilities.object_lock = Some(false);
            report.add(CHECK, Severity::Info, "Object Lock is off", why);
        }
        Err(reason) => {
            let what = format!("Object Lock: unknown ({reason})");
            report.add(CHECK, Severity::Info, what, why);
        }
    }
}
