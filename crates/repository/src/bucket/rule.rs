//! One lifecycle rule: how it is named, what it does, and that in words.

use pgkeep_store::bucket::{Expiration, Rule, Transition};

/// S3 takes no longer name of a rule.
pub(super) const ID_LENGTH_MAX: usize = 255;

/// Whether an id is one of those that are given here.
pub(super) fn is_own(id: &str) -> bool {
    ["housekeeping", "probes", "leases", "dumps"]
        .iter()
        .any(|purpose| id.starts_with(&format!("pgkeep-{purpose}:")))
}

/// The id of the rule for a purpose at a place.
pub(super) fn own_id(purpose: &str, place: &str) -> String {
    let id = format!("pgkeep-{purpose}:{}", place.trim_end_matches('/'));
    if id.len() <= ID_LENGTH_MAX {
        return id;
    }
    format!("pgkeep-{purpose}:{}", blake3::hash(place.as_bytes()).to_hex())
}

/// At this age.
pub(super) fn after_days(days: u32) -> Expiration {
    Expiration {
        days: Some(days),
        ..Expiration::default()
    }
}

/// When it deletes objects.
pub(super) fn expiry_days(rule: &Rule) -> Option<u32> {
    rule.expiration.as_ref()?.days
}

/// When it ends old versions; none where some of them stay all the same. Nothing of pgkeep's has more than one.
pub(super) fn noncurrent_days(rule: &Rule) -> Option<u32> {
    let expiration = rule.noncurrent_version_expiration.as_ref()?;
    match expiration.newer_noncurrent_versions {
        None | Some(0) => expiration.noncurrent_days,
        Some(_) => None,
    }
}

/// When it ends uploads that were never completed.
pub(super) fn upload_days(rule: &Rule) -> Option<u32> {
    rule.upload_expiration.as_ref()?.days_after_initiation
}

/// `stay`, `go after 30 days`
pub(super) fn expire_text(days: Option<u32>) -> String {
    days.map_or("stay".to_owned(), |days| format!("go after {}", days_text(days)))
}

/// `1 day`, `30 days`
pub(super) fn days_text(days: u32) -> String {
    match days {
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

/// `stay`, `to GLACIER_IR after 30 days`
pub(super) fn move_text(transitions: &[Transition]) -> String {
    if transitions.is_empty() {
        return "stay".to_owned();
    }
    let one = |transition: &Transition| {
        let when = transition.days.map(|days| format!(" after {}", days_text(days)));
        format!("to {}{}", transition.storage_class, when.unwrap_or_default())
    };
    transitions.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Whether it removes marks of deletion whose versions are gone.
pub(super) fn removes_marks(rule: &Rule) -> bool {
    let expiration = rule.expiration.as_ref();
    expiration.is_some_and(|expiration| expiration.expired_object_delete_marker == Some(true))
}

/// For which objects it is, in words.
pub(super) fn reach_text(rule: &Rule) -> String {
    let which = match (rule.is_for_tagged(), rule.is_for_some_sizes()) {
        (false, false) => "",
        (true, false) => "tagged ",
        (false, true) => "some sizes of ",
        (true, true) => "some sizes of tagged ",
    };
    match rule.prefix() {
        "" => format!("for {which}objects of the whole bucket"),
        prefix => format!("for {which}objects below '{prefix}'"),
    }
}
