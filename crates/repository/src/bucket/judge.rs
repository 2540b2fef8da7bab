//! Lifecycle rules against what is kept: which of them would tear backups apart.

use pgkeep_base::Severity;
use pgkeep_store::bucket::{Lifecycle, Reading, Rule};
use pgkeep_store::{Finding, PROBE_PREFIX, Store};

use super::age::ExpiryBound;
use super::rule::{days_text, is_own, noncurrent_days};
use super::wanted::{ClusterKept, Expiry, NONCURRENT_DAYS_DEFAULT, reason};
use crate::layout;

const CHECK: &str = "lifecycle";
const WHY_TORN: &str =
    "It knows nothing of which objects belong together, of pins, and of which dump is the last good one.";

const WHY_PHYSICAL: &str = "A base backup refers to what earlier ones stored, however old that is, and recovery needs all WAL \
                            since: deleted by age, backups that look whole can't be restored.";

/// Where in the bucket the backups are.
pub(super) struct Place<'a> {
    /// Empty, or with a slash at its end.
    pub(super) prefix: &'a str,
    /// Whose dumps.
    pub(super) clusters: &'a [ClusterKept],
    /// When dumps are to be deleted by a rule.
    pub(super) expiry: Expiry,
    /// How long old versions are to stay at least.
    pub(super) noncurrent_days: u32,
    /// The command that mends own rules.
    pub(super) setup: &'a str,
}

/// How far a rule reaches.
enum Reach<'a> {
    /// Nothing that counts.
    Nothing,
    /// Dumps alone, of one cluster.
    DumpsOf(&'a ClusterKept),
    /// Dumps of a cluster that isn't among those that are known here.
    DumpsOfOthers,
    /// Base backups or WAL alone.
    Physical,
    /// Also the marker, pins, identities, or what isn't known.
    Everything,
}

/// What is to be said of the rules of the bucket that a store lies in; none where it lies in no bucket. `setup` is the command
/// that sets this bucket up.
pub async fn lifecycle_findings(store: &Store, clusters: &[ClusterKept], setup: &str) -> Vec<Finding> {
    let Some(bucket) = store.bucket() else {
        return Vec::new();
    };
    let unknown = |reason: String| {
        let what = format!("lifecycle rules: unknown ({reason})");
        vec![finding(
            Severity::Info,
            what,
            "A rule that expires objects would tear backups apart.",
            None,
        )]
    };
    let prefix = bucket.prefix();
    let place = Place::new(&prefix, clusters, setup);
    match bucket.lifecycle().await {
        Ok(Reading::Set(lifecycle)) => {
            let mut findings = judge(&lifecycle, &place);
            if findings.is_empty() {
                let number = lifecycle.rules.len();
                let what = format!("none of the bucket's {number} lifecycle rules touches backups");
                let why = "A rule that expires objects would tear backups apart.";
                findings.push(finding(Severity::Ok, what, why, None));
            }
            findings
        }
        Ok(Reading::Unset) => {
            let why = "Nothing interferes with pgkeep's retention; but unfinished multipart uploads stay, and cost.";
            vec![finding(
                Severity::Ok,
                "the bucket has no lifecycle rules".to_owned(),
                why,
                None,
            )]
        }
        Ok(Reading::Forbidden(permission)) => unknown(format!("these credentials lack {permission}")),
        Ok(Reading::Unsupported(why)) => unknown(format!("the store doesn't know them: {why}")),
        Err(error) => unknown(error.to_string()),
    }
}

/// What is to be said of the rules; nothing of those that do no harm.
pub(super) fn judge(lifecycle: &Lifecycle, place: &Place<'_>) -> Vec<Finding> {
    let rules = lifecycle.rules.iter().map(|stored| &stored.rule);
    rules
        .filter(|rule| rule.is_enabled())
        .flat_map(|rule| judge_rule(rule, place))
        .collect()
}

fn judge_rule(rule: &Rule, place: &Place<'_>) -> Vec<Finding> {
    let reach = place.reach(rule);
    if matches!(reach, Reach::Nothing) {
        return Vec::new();
    }
    let name = format!(
        "the lifecycle rule '{}'",
        rule.id.as_deref().unwrap_or("without a name")
    );
    let below = match rule.prefix() {
        "" => String::new(),
        prefix => format!(" below '{prefix}'"),
    };
    let mut findings = Vec::new();
    let expiration = rule.expiration.as_ref();
    if let Some(date) = expiration.and_then(|expiration| expiration.date.as_deref()) {
        let what = format!("{name} expires all objects{below} on {date}");
        findings.push(finding(Severity::Error, what, WHY_TORN, Some(place.mend(rule))));
    }
    if let Some(days) = expiration.and_then(|expiration| expiration.days) {
        let what = format!("{name} expires objects{below} after {}", days_text(days));
        findings.extend(place.judge_expiry(rule, days, what, &reach));
    }
    if let Some(days) = noncurrent_days(rule).filter(|days| *days < place.noncurrent_days) {
        let wanted = days_text(place.noncurrent_days);
        let what = format!(
            "{name} deletes old versions{below} after {}, before {wanted}",
            days_text(days)
        );
        let why = "So long what was deleted by mistake or malice can be brought back.";
        let mend = match rule.id.as_deref().filter(|id| is_own(id)) {
            Some(_) => place.setup.to_owned(),
            None => format!("make it {wanted} in the rule"),
        };
        findings.push(finding(Severity::Warning, what, why, Some(mend)));
    }
    let archives = |class: &str| matches!(class, "GLACIER" | "DEEP_ARCHIVE");
    let classes = rule
        .transitions
        .iter()
        .map(|transition| transition.storage_class.as_str());
    for class in classes.filter(|class| archives(class)) {
        let what = format!("{name} moves objects{below} to {class}");
        let why = "From there nothing can be read, so nothing restored, before hours of waiting.";
        let mend = "use GLACIER_IR or STANDARD_IA in the rule".to_owned();
        findings.push(finding(Severity::Warning, what, why, Some(mend)));
    }
    findings
}

fn finding(severity: Severity, what: String, why: &str, mend: Option<String>) -> Finding {
    Finding {
        check: CHECK,
        severity,
        what,
        why: why.to_owned(),
        mend,
    }
}

impl<'a> Place<'a> {
    /// Where nothing is asked for.
    pub(super) fn new(prefix: &'a str, clusters: &'a [ClusterKept], setup: &'a str) -> Self {
        Self {
            prefix,
            clusters,
            expiry: Expiry::AsItIs,
            noncurrent_days: NONCURRENT_DAYS_DEFAULT,
            setup,
        }
    }

    fn judge_expiry(&self, rule: &Rule, days: u32, what: String, reach: &Reach<'_>) -> Option<Finding> {
        match reach {
            Reach::Nothing => None,
            Reach::Everything => {
                let why =
                    format!("It would also delete the repository's marker, identities and pins. {WHY_TORN}");
                Some(finding(Severity::Error, what, &why, Some(self.mend(rule))))
            }
            // At no age: each base backup refers to packs of earlier ones, and recovery to all WAL since.
            Reach::Physical => Some(finding(
                Severity::Error,
                what,
                WHY_PHYSICAL,
                Some(self.mend(rule)),
            )),
            Reach::DumpsOfOthers => {
                let why = format!("Whether that is too early, the settings of that cluster say. {WHY_TORN}");
                Some(finding(Severity::Info, what, &why, None))
            }
            Reach::DumpsOf(cluster) => {
                let bound = cluster.kept.expiry_bound();
                if bound.permits(days) {
                    return Some(self.judge_wish(rule, days, what));
                }
                let what = match bound {
                    ExpiryBound::AtLeast(least) => format!("{what}, {least} would do"),
                    ExpiryBound::Any | ExpiryBound::Never => what,
                };
                let why = format!(
                    "That contradicts what is kept: {}. {WHY_TORN}",
                    reason(bound, &cluster.kept)
                );
                Some(finding(Severity::Error, what, &why, Some(self.mend(rule))))
            }
        }
    }

    /// A rule that leaves what is kept, and isn't what is asked for: S3 follows the earliest.
    fn judge_wish(&self, rule: &Rule, days: u32, what: String) -> Finding {
        let wished = match self.expiry {
            Expiry::AsItIs => None,
            Expiry::Never => Some("never".to_owned()),
            Expiry::AfterDays(wished) if days < wished => Some(format!("after {}", days_text(wished))),
            Expiry::AfterDays(_) => None,
        };
        match wished {
            None => finding(Severity::Info, what, WHY_TORN, None),
            Some(wished) => {
                let why = format!("Dumps shall go {wished}, and the earliest rule counts. {WHY_TORN}");
                finding(Severity::Warning, what, &why, Some(self.mend(rule)))
            }
        }
    }

    /// Own rules are mended by the setup; those of others are theirs.
    fn mend(&self, rule: &Rule) -> String {
        match rule.id.as_deref().filter(|id| is_own(id)) {
            Some(_) => self.setup.to_owned(),
            None => "remove the rule, and let pgkeep prune decide what goes".to_owned(),
        }
    }

    fn reach(&self, rule: &Rule) -> Reach<'a> {
        // pgkeep's objects have no tags.
        if rule.is_for_tagged() {
            return Reach::Nothing;
        }
        let Some(inside) = rule.prefix().strip_prefix(self.prefix) else {
            return match self.prefix.starts_with(rule.prefix()) {
                true => Reach::Everything,
                false => Reach::Nothing,
            };
        };
        if inside.starts_with(PROBE_PREFIX) || layout::is_disposable(inside) {
            return Reach::Nothing;
        }
        if layout::is_physical(inside) {
            return Reach::Physical;
        }
        let Some(cluster) = layout::cluster_of_dumps(inside) else {
            return Reach::Everything;
        };
        match self.clusters.iter().find(|known| known.name == cluster) {
            Some(cluster) => Reach::DumpsOf(cluster),
            None => Reach::DumpsOfOthers,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use pgkeep_store::bucket::{
        Expiration, Filter, NoncurrentVersionExpiration, StoredRule, Tag, Transition,
    };

    use super::*;
    use crate::bucket::Kept;
    use crate::retention::Policy;

    fn rule(prefix: &str) -> Rule {
        Rule {
            id: Some("old".to_owned()),
            status: "Enabled".to_owned(),
            filter: Some(Filter {
                prefix: Some(prefix.to_owned()),
                ..Filter::default()
            }),
            ..Rule::default()
        }
    }

    fn expiring(prefix: &str, days: u32) -> Rule {
        Rule {
            expiration: Some(Expiration {
                days: Some(days),
                ..Expiration::default()
            }),
            ..rule(prefix)
        }
    }

    fn findings(rules: &[Rule], kept: Kept) -> Vec<Finding> {
        let lifecycle = Lifecycle {
            rules: rules.iter().cloned().map(StoredRule::new).collect(),
            transition_minimum: None,
        };
        let clusters = [ClusterKept {
            name: "main".to_owned(),
            kept,
        }];
        judge(&lifecycle, &Place::new("a/", &clusters, "pgkeep bucket setup"))
    }

    fn severity(rule: Rule, kept: Kept) -> Option<Severity> {
        findings(&[rule], kept)
            .into_iter()
            .map(|finding| finding.severity)
            .max()
    }

    fn window(days: i64, reuse_days: Option<i64>) -> Kept {
        let length = |days: i64| SignedDuration::from_hours(24 * days);
        Kept {
            policy: Policy {
                window: Some(length(days)),
                ..Policy::default()
            },
            reuse_max_age: reuse_days.map(length),
            rhythm: None,
        }
    }

    #[test]
    fn a_rule_is_judged_by_what_lies_below_its_prefix() {
        for reaching in ["", "a", "a/", "a/main", "a/main/", "a/main/dum", "a/main/pin/"] {
            assert_eq!(
                severity(expiring(reaching, 9999), Kept::default()),
                Some(Severity::Error),
                "{reaching}"
            );
        }
        for physical in [
            "a/main/base/",
            "a/main/base/b2026",
            "a/main/wal/",
            "a/other/wal/7/",
        ] {
            let found = &findings(&[expiring(physical, 9999)], Kept::default())[0];
            assert_eq!(found.severity, Severity::Error, "{physical}");
            assert!(found.why.contains("all WAL since"), "{physical}: {found:?}");
            assert!(found.mend.as_ref().unwrap().contains("pgkeep prune"), "{found:?}");
        }
        for elsewhere in ["b/", "ab/", "a/main/lease/", "a/pgkeep-probe-"] {
            assert_eq!(
                severity(expiring(elsewhere, 1), Kept::default()),
                None,
                "{elsewhere}"
            );
        }
        assert_eq!(
            severity(expiring("a/other/dump/", 1), window(30, None)),
            Some(Severity::Info)
        );
        let mut tagged = expiring("a/", 1);
        tagged.filter = Some(Filter {
            tag: Some(Tag::default()),
            ..Filter::default()
        });
        assert_eq!(severity(tagged, Kept::default()), None);
    }

    #[test]
    fn an_expiry_is_compared_with_what_is_kept() {
        let dumps = |days| expiring("a/main/dump/", days);
        let judged = |days, kept| severity(dumps(days), kept);
        assert_eq!(judged(30, Kept::default()), Some(Severity::Info));
        assert_eq!(judged(30, window(30, None)), Some(Severity::Error));
        assert_eq!(judged(31, window(30, None)), Some(Severity::Info));
        assert_eq!(judged(37, window(30, Some(7))), Some(Severity::Error));
        assert_eq!(judged(38, window(30, Some(7))), Some(Severity::Info));
        let incremental = Kept {
            reuse_max_age: Some(SignedDuration::from_hours(1)),
            ..Kept::default()
        };
        assert_eq!(judged(9999, incremental), Some(Severity::Error));
        let said = &findings(&[dumps(37)], window(30, Some(7)))[0];
        assert!(
            said.what
                .contains("'old' expires objects below 'a/main/dump/' after 37 days, 38 would do"),
            "{said:?}"
        );
        assert!(said.why.contains("dump.reuse_max_age"), "{said:?}");
    }

    #[test]
    fn an_earlier_rule_than_was_asked_for_is_told() {
        let clusters = [ClusterKept {
            name: "main".to_owned(),
            kept: Kept::default(),
        }];
        let judged = |expiry, days| {
            let place = Place {
                expiry,
                ..Place::new("a/", &clusters, "pgkeep bucket setup")
            };
            let found = judge_rule(&expiring("a/main/dump/", days), &place);
            found[0].severity
        };
        assert_eq!(judged(Expiry::Never, 9999), Severity::Warning);
        assert_eq!(judged(Expiry::AfterDays(40), 31), Severity::Warning);
        assert_eq!(judged(Expiry::AfterDays(40), 40), Severity::Info);
        assert_eq!(judged(Expiry::AsItIs, 31), Severity::Info);
    }

    #[test]
    fn old_versions_that_go_too_soon_are_told() {
        let ending = |prefix: &str, days, newer| Rule {
            noncurrent_version_expiration: Some(NoncurrentVersionExpiration {
                noncurrent_days: Some(days),
                newer_noncurrent_versions: newer,
            }),
            ..rule(prefix)
        };
        for reaching in ["", "a/", "a/main/dump/", "a/main/pin/"] {
            let judged = |days, newer| severity(ending(reaching, days, newer), Kept::default());
            assert_eq!(judged(29, None), Some(Severity::Warning), "{reaching}");
            assert_eq!(judged(30, None), None, "{reaching}");
            assert_eq!(judged(1, Some(1)), None, "{reaching}");
        }
        assert_eq!(severity(ending("b/", 1, None), Kept::default()), None);
        let clusters = [];
        let longer = Place {
            noncurrent_days: 60,
            ..Place::new("a/", &clusters, "pgkeep bucket setup")
        };
        let found = judge_rule(&ending("", 30, None), &longer);
        assert!(
            found[0]
                .what
                .contains("'old' deletes old versions after 30 days, before 60 days"),
            "{found:?}"
        );
    }

    #[test]
    fn every_transition_of_a_rule_is_looked_at() {
        let to = |class: &str| Transition {
            date: None,
            days: Some(90),
            storage_class: class.to_owned(),
        };
        let steps = Rule {
            transitions: vec![to("STANDARD_IA"), to("GLACIER")],
            ..rule("")
        };
        let found = findings(&[steps], Kept::default());
        assert_eq!(found.len(), 1);
        assert!(
            found[0].what.contains("'old' moves objects to GLACIER"),
            "{found:?}"
        );
        assert_eq!(found[0].severity, Severity::Warning);
    }

    #[test]
    fn rules_that_do_no_harm_are_let_be() {
        let off = Rule {
            status: "Disabled".to_owned(),
            ..expiring("", 1)
        };
        let marks = Rule {
            expiration: Some(Expiration {
                expired_object_delete_marker: Some(true),
                ..Expiration::default()
            }),
            ..rule("")
        };
        assert_eq!(findings(&[off, marks], Kept::default()), []);
        let dated = Rule {
            expiration: Some(Expiration {
                date: Some("2030-01-01T00:00:00Z".to_owned()),
                ..Expiration::default()
            }),
            ..rule("a/main/dump/")
        };
        assert_eq!(severity(dated, Kept::default()), Some(Severity::Error));
    }
}
