use jiff::SignedDuration;

use super::super::rule::{ID_LENGTH_MAX, is_own};
use super::*;
use crate::bucket::Kept;
use crate::retention::Policy;

fn stored(id: &str, prefix: &str, change: impl FnOnce(&mut Rule)) -> StoredRule {
    let mut rule = present(&Lifecycle::default(), OldVersions::None).new_rule(id, prefix);
    change(&mut rule);
    StoredRule::new(rule)
}

fn present(lifecycle: &Lifecycle, old_versions: OldVersions) -> Present<'_> {
    Present {
        lifecycle,
        prefix: "pgkeep/",
        old_versions,
        older_dumps: &|_, _| Some(0),
    }
}

fn wanted(kept: Kept) -> Wanted {
    let name = "main".to_owned();
    Wanted {
        clusters: vec![ClusterKept { name, kept }],
        ..Wanted::default()
    }
}

fn differing(rules: &Rules) -> Vec<&str> {
    let differing = rules.aspects.iter().filter(|aspect| aspect.differs);
    differing.map(|aspect| aspect.setting.as_str()).collect()
}

fn by_id<'a>(rules: &'a Rules, id: &str) -> Option<&'a Rule> {
    let mut all = rules.after.rules.iter().map(|stored| &stored.rule);
    all.find(|rule| rule.id.as_deref() == Some(id))
}

fn expiring(id: &str, prefix: &str, days: u32) -> StoredRule {
    stored(id, prefix, |rule| rule.expiration = Some(after_days(days)))
}

/// What infra/terraform/s3-backups/lifecycle.tf makes.
fn by_terraform() -> Lifecycle {
    let housekeeping = stored("housekeeping", "", |rule| {
        rule.noncurrent_version_expiration = Some(NoncurrentVersionExpiration {
            noncurrent_days: Some(30),
            newer_noncurrent_versions: None,
        });
        rule.upload_expiration = Some(UploadExpiration {
            days_after_initiation: Some(7),
        });
        rule.expiration = Some(Expiration {
            expired_object_delete_marker: Some(true),
            ..Expiration::default()
        });
    });
    Lifecycle {
        rules: vec![
            housekeeping,
            expiring("doctors-probes", "pgkeep/pgkeep-probe-", 1),
            expiring("leases-main", "pgkeep/main/lease/", 7),
        ],
        transition_minimum: None,
    }
}

fn planned(lifecycle: &Lifecycle, expiry: Expiry, noncurrent_days: Option<u32>) -> Rules {
    let wanted = Wanted {
        expiry,
        noncurrent_days,
        ..wanted(Kept::default())
    };
    plan(&present(lifecycle, OldVersions::None), &wanted)
}

#[test]
fn dumps_go_only_where_somebody_asks_for_it() {
    let new = planned(&Lifecycle::default(), Expiry::AsItIs, None);
    assert!(new.differ());
    let reaching = |rule: &&StoredRule| {
        let prefix = rule.rule.prefix();
        "pgkeep/main/dump/".starts_with(prefix) && expiry_days(&rule.rule).is_some()
    };
    assert_eq!(new.after.rules.iter().find(reaching), None);
    let asked = planned(&new.after, Expiry::AfterDays(30), None);
    assert_eq!(differing(&asked), ["dumps of main"]);
    let note = &asked.aspects.iter().find(|aspect| aspect.differs).unwrap().note;
    assert!(note.contains("nothing here says what is kept"), "{note}");
    assert!(asked.after.rules.iter().any(|rule| reaching(&rule)));
    // What is kept came to be known: the rule goes.
    let kept = Kept {
        policy: Policy {
            window: Some(SignedDuration::from_hours(24 * 30)),
            ..Policy::default()
        },
        ..Kept::default()
    };
    let back = plan(&present(&asked.after, OldVersions::Kept), &wanted(kept));
    assert_eq!(differing(&back), ["dumps of main"]);
    assert_eq!(back.after.rules.iter().find(reaching), None);
}

#[test]
fn old_versions_that_stay_for_ever_stay_unless_somebody_asks() {
    let none = Lifecycle::default();
    let housekeeping = "pgkeep-housekeeping:pgkeep";
    let days = |old_versions, asked: Option<u32>, lifecycle: &Lifecycle| {
        let wanted = Wanted {
            noncurrent_days: asked,
            ..wanted(Kept::default())
        };
        let rules = plan(&present(lifecycle, old_versions), &wanted);
        by_id(&rules, housekeeping).and_then(noncurrent_days)
    };
    assert_eq!(days(OldVersions::None, None, &none), Some(30));
    assert_eq!(days(OldVersions::Kept, None, &none), None);
    assert_eq!(days(OldVersions::Kept, Some(30), &none), Some(30));
    assert_eq!(days(OldVersions::Unsupported, None, &none), None);
    let rules = plan(&present(&none, OldVersions::Kept), &wanted(Kept::default()));
    let told = rules
        .aspects
        .iter()
        .find(|aspect| aspect.setting == "old versions")
        .unwrap();
    assert!(
        !told.differs && told.note.contains("--noncurrent-days 30"),
        "{}",
        told.note
    );
    // Once they end, they end at the default at the earliest.
    let short = planned(&none, Expiry::AsItIs, Some(10)).after;
    assert_eq!(days(OldVersions::Kept, None, &short), Some(30));
}

#[test]
fn at_the_top_of_a_bucket_the_whole_bucket_is_told() {
    let none = Lifecycle::default();
    let top = Present {
        prefix: "",
        ..present(&none, OldVersions::None)
    };
    let rules = plan(&top, &wanted(Kept::default()));
    assert_eq!(rules.aspects[0].wanted, "go after 30 days, in the whole bucket");
}

#[test]
fn an_own_rule_that_somebody_changed_is_mended_and_told() {
    let right = planned(&Lifecycle::default(), Expiry::AfterDays(40), None).after;
    type Change = fn(&mut Rule);
    let changes: [(&str, Change); 4] = [
        ("for objects of the whole bucket", |rule| {
            rule.filter = Some(Filter::default())
        }),
        ("for objects below 'pgkeep/'", |rule| {
            rule.filter.as_mut().unwrap().prefix = Some("pgkeep/".to_owned());
        }),
        ("for some sizes of objects below 'pgkeep/main/dump/'", |rule| {
            rule.filter.as_mut().unwrap().object_size_greater_than = Some(1);
        }),
        ("changed by somebody", |rule| {
            rule.noncurrent_version_expiration = Some(NoncurrentVersionExpiration {
                noncurrent_days: Some(1),
                newer_noncurrent_versions: None,
            });
        }),
    ];
    for (now, change) in changes {
        let mut wrong = right.clone();
        let id = "pgkeep-dumps:pgkeep/main";
        let place = wrong
            .rules
            .iter()
            .position(|stored| stored.rule.id.as_deref() == Some(id))
            .unwrap();
        let mut rule = wrong.rules[place].rule.clone();
        change(&mut rule);
        wrong.rules[place] = StoredRule::new(rule);
        let rules = planned(&wrong, Expiry::AsItIs, None);
        assert_eq!(differing(&rules), [format!("rule {id}")], "{now}");
        assert_eq!(
            rules.aspects.iter().find(|aspect| aspect.differs).unwrap().now,
            now
        );
        assert_eq!(rules.after, right, "{now}");
    }
}

#[test]
fn beside_a_rule_of_the_old_form_all_have_it() {
    let mut theirs = stored("theirs", "logs/", |rule| rule.expiration = Some(after_days(3))).rule;
    theirs.filter = None;
    theirs.prefix = Some("logs/".to_owned());
    let there = Lifecycle {
        rules: vec![StoredRule::new(theirs)],
        transition_minimum: None,
    };
    let rules = planned(&there, Expiry::AfterDays(40), None);
    for stored in &rules.after.rules {
        assert!(
            stored.rule.filter.is_none() && stored.rule.prefix.is_some(),
            "{stored:?}"
        );
        assert!(!removes_marks(&stored.rule), "{stored:?}");
    }
    assert_eq!(rules.after.rules.len(), 5);
    assert!(!planned(&rules.after, Expiry::AsItIs, None).differ());
}

#[test]
fn what_terraform_made_is_right() {
    let made = by_terraform();
    let rules = planned(&made, Expiry::AsItIs, None);
    assert!(!rules.differ());
    assert_eq!(rules.after, made);
    let more = planned(&made, Expiry::AfterDays(40), None);
    assert_eq!(more.after.rules[..3], made.rules[..]);
    assert_eq!(
        more.after.rules[3].rule.id.as_deref(),
        Some("pgkeep-dumps:pgkeep/main")
    );
}

#[test]
fn what_was_written_is_right_the_next_time() {
    for expiry in [Expiry::AsItIs, Expiry::Never, Expiry::AfterDays(40)] {
        let first = planned(&Lifecycle::default(), expiry, Some(60));
        assert!(first.differ());
        for again in [expiry, Expiry::AsItIs] {
            let second = planned(&first.after, again, None);
            assert!(!second.differ(), "{expiry:?} {again:?}");
            assert_eq!(second.after, first.after);
        }
    }
}

#[test]
fn a_rule_that_is_switched_off_counts_for_nothing() {
    let mut made = by_terraform();
    made.rules[2].rule.status = "Disabled".to_owned();
    let rules = planned(&made, Expiry::Never, None);
    assert_eq!(differing(&rules), ["leases of main"]);
}

#[test]
fn names_of_rules_are_as_long_as_the_store_takes() {
    let long = own_id("leases", &"a/".repeat(300));
    assert!(long.len() <= ID_LENGTH_MAX && is_own(&long), "{long}");
    assert!(is_own(&own_id("housekeeping", "")) && !is_own("housekeeping"));
}
