//! The lifecycle rules that a bucket for backups has, beside those of others, which stay.
//!
//! An own rule is known by its id. Somebody else's rule that does the same (Terraform's, say) does as well.

use pgkeep_base::BackupKind;
use pgkeep_store::PROBE_PREFIX;
use pgkeep_store::bucket::{
    Expiration, Filter, Lifecycle, NoncurrentVersionExpiration, Rule, StoredRule, Transition,
    UploadExpiration,
};

use super::age::ExpiryBound;
use super::wanted::{ClusterKept, EXPIRY_DAYS_DEFAULT, Expiry, Move, NONCURRENT_DAYS_DEFAULT, Wanted};
use crate::layout;

/// No dump is committed later than 72 hours after its start, so a lease of this age is nobody's.
const LEASE_DAYS: u32 = 7;
/// Repositories have no unfinished uploads; `pgkeep dump --output s3://...` may leave some when it is killed.
const UPLOAD_DAYS: u32 = 7;
/// The doctor removes its probes itself, where it may.
const PROBE_DAYS: u32 = 1;
/// S3 takes no longer name of a rule.
const ID_LENGTH_MAX: usize = 255;
const ENABLED: &str = "Enabled";

/// One thing that rules are there for.
pub(super) struct Aspect {
    /// What it is called.
    pub(super) setting: String,
    /// What is there.
    pub(super) now: String,
    /// What should be.
    pub(super) wanted: String,
    /// Whether the two differ.
    pub(super) differs: bool,
    /// What is good to know of it.
    pub(super) note: String,
}

/// What the rules come to.
pub(super) struct Rules {
    /// One for each thing.
    pub(super) aspects: Vec<Aspect>,
    /// All rules, as they should be written.
    pub(super) after: Lifecycle,
}

/// What is there, and where.
pub(super) struct Present<'a> {
    /// The bucket's rules.
    pub(super) lifecycle: &'a Lifecycle,
    /// Where the repository lies: empty, or with a slash at its end.
    pub(super) prefix: &'a str,
    /// How many dumps of a cluster are older than so many days; none where that isn't known.
    pub(super) older_dumps: &'a dyn Fn(&str, u32) -> Option<usize>,
}

/// What the rules should be.
pub(super) fn plan(present: &Present<'_>, wanted: &Wanted) -> Rules {
    let mut rules = Rules {
        aspects: Vec::new(),
        after: present.lifecycle.clone(),
    };
    present.housekeeping(wanted, &mut rules);
    let probes = Simple {
        setting: "doctor's probes".to_owned(),
        id: own_id("probes", present.prefix),
        prefix: format!("{}{PROBE_PREFIX}", present.prefix),
        days: PROBE_DAYS,
    };
    present.expire_debris(probes, &mut rules);
    for cluster in &wanted.clusters {
        let prefix = format!("{}{}", present.prefix, layout::lease_prefix(&cluster.name));
        let leases = Simple {
            setting: format!("leases of {}", cluster.name),
            id: own_id("leases", prefix.trim_end_matches("/lease/")),
            prefix,
            days: LEASE_DAYS,
        };
        let by_others = present
            .foreign(&leases.id, &leases.prefix)
            .any(|rule| expiry_days(rule).is_some());
        let is_first = present.own(&leases.id).is_none() && !by_others;
        present.expire_debris(leases, &mut rules);
        present.dumps(cluster, wanted, is_first, &mut rules);
    }
    rules
}

/// Debris that goes after some days.
struct Simple {
    setting: String,
    id: String,
    prefix: String,
    days: u32,
}

impl<'a> Present<'a> {
    fn own(&self, id: &str) -> Option<&'a Rule> {
        let mut rules = self.lifecycle.rules.iter().map(|stored| &stored.rule);
        rules.find(|rule| rule.id.as_deref() == Some(id))
    }

    /// Rules in force of others, for everything below a prefix.
    fn foreign(&self, id: &str, prefix: &str) -> impl Iterator<Item = &'a Rule> {
        let rules = self.lifecycle.rules.iter().map(|stored| &stored.rule);
        rules.filter(move |rule| {
            rule.id.as_deref() != Some(id)
                && rule.is_enabled()
                && !rule.is_for_tagged()
                && !rule.is_for_some_sizes()
                && prefix.starts_with(rule.prefix())
        })
    }

    /// Old versions, unfinished uploads, marks of deletion: below the repository's place, for all clusters.
    fn housekeeping(&self, wanted: &Wanted, rules: &mut Rules) {
        let id = own_id("housekeeping", self.prefix);
        let own = self.own(&id).filter(|rule| rule.is_enabled());
        let foreign: Vec<&Rule> = self.foreign(&id, self.prefix).collect();
        let mut rule = new_rule(&id, self.prefix);

        let own_days = own.and_then(noncurrent_days);
        // Of several rules S3 follows the earliest.
        let foreign_days = foreign.iter().copied().filter_map(noncurrent_days).min();
        let days = wanted.noncurrent_days.unwrap_or(NONCURRENT_DAYS_DEFAULT);
        let kept = match wanted.noncurrent_days {
            Some(days) => (foreign_days != Some(days)).then_some(days),
            None => own_days
                .map(|own| own.max(days))
                .or(foreign_days.is_none().then_some(days)),
        };
        rule.noncurrent_version_expiration = kept.map(|days| NoncurrentVersionExpiration {
            noncurrent_days: Some(days),
            newer_noncurrent_versions: None,
        });
        let now = own_days.into_iter().chain(foreign_days).min();
        rules.aspects.push(Aspect {
            setting: "old versions".to_owned(),
            now: expire_text(now),
            wanted: expire_text(kept.or(foreign_days)),
            differs: kept.is_some() && kept != own_days,
            note: match foreign_days {
                Some(foreign) if foreign < days => format!(
                    "another rule deletes old versions after {foreign} days: so long what was deleted can be brought back"
                ),
                _ => String::new(),
            },
        });

        let own_days = own.and_then(upload_days);
        let foreign_days = foreign.iter().copied().filter_map(upload_days).min();
        let kept = own_days.or(foreign_days.is_none().then_some(UPLOAD_DAYS));
        rule.upload_expiration = kept.map(|days| UploadExpiration {
            days_after_initiation: Some(days),
        });
        rules.aspects.push(Aspect {
            setting: "unfinished uploads".to_owned(),
            now: expire_text(own_days.into_iter().chain(foreign_days).min()),
            wanted: expire_text(kept.or(foreign_days)),
            differs: kept != own_days,
            note: String::new(),
        });

        let removes_marks = |rule: &Rule| {
            rule.expiration
                .as_ref()
                .is_some_and(|expiration| expiration.expired_object_delete_marker == Some(true))
        };
        let own_removes = own.is_some_and(removes_marks);
        let foreign_remove = foreign.iter().any(|rule| removes_marks(rule));
        if own_removes || !foreign_remove {
            rule.expiration = Some(Expiration {
                expired_object_delete_marker: Some(true),
                ..Expiration::default()
            });
        }
        let shown = |removed: bool| if removed { "removed" } else { "stay" };
        rules.aspects.push(Aspect {
            setting: "marks of deletion".to_owned(),
            now: shown(own_removes || foreign_remove).to_owned(),
            wanted: shown(true).to_owned(),
            differs: !own_removes && !foreign_remove,
            note: String::new(),
        });
        rules.put(rule);
    }

    fn expire_debris(&self, debris: Simple, rules: &mut Rules) {
        let own = self.own(&debris.id).filter(|rule| rule.is_enabled());
        let own_days = own.and_then(expiry_days);
        let foreign_days = self
            .foreign(&debris.id, &debris.prefix)
            .filter_map(expiry_days)
            .min();
        let kept = own_days.or(foreign_days.is_none().then_some(debris.days));
        rules.aspects.push(Aspect {
            setting: debris.setting,
            now: expire_text(own_days.into_iter().chain(foreign_days).min()),
            wanted: expire_text(kept.or(foreign_days)),
            differs: kept != own_days,
            note: String::new(),
        });
        let mut rule = new_rule(&debris.id, &debris.prefix);
        rule.expiration = kept.map(after_days);
        rules.put(rule);
    }

    fn dumps(&self, cluster: &ClusterKept, wanted: &Wanted, is_first: bool, rules: &mut Rules) {
        let prefix = format!(
            "{}{}",
            self.prefix,
            layout::kind_prefix(&cluster.name, BackupKind::Dump)
        );
        let id = own_id("dumps", prefix.trim_end_matches("/dump/"));
        let own = self.own(&id).filter(|rule| rule.is_enabled());
        let own_days = own.and_then(expiry_days);
        let foreign_days = self.foreign(&id, &prefix).filter_map(expiry_days).min();
        let older = |days| (self.older_dumps)(&cluster.name, days);
        let bound = cluster.kept.expiry_bound();
        let mut note = String::new();
        let kept = match wanted.expiry {
            Expiry::Never => None,
            Expiry::AfterDays(days) => {
                if own_days != Some(days)
                    && let Some(older) = older(days).filter(|older| *older > 0)
                {
                    note = format!("{older} of the dumps there are older, and go within two days");
                }
                (foreign_days != Some(days)).then_some(days)
            }
            Expiry::AsItIs => match own_days {
                Some(days) => bound.permits(days).then_some(days),
                None if bound == ExpiryBound::Any && is_first && foreign_days.is_none() => {
                    let harmless = older(EXPIRY_DAYS_DEFAULT) == Some(0);
                    if !harmless {
                        note = format!(
                            "dumps older than {EXPIRY_DAYS_DEFAULT} days may be there, so none is set: \
                             --expire-dumps-after DAYS or never"
                        );
                    }
                    harmless.then_some(EXPIRY_DAYS_DEFAULT)
                }
                None => None,
            },
        };
        rules.aspects.push(Aspect {
            setting: format!("dumps of {}", cluster.name),
            now: expire_text(own_days.into_iter().chain(foreign_days).min()),
            wanted: expire_text(kept.or(foreign_days)),
            differs: kept != own_days,
            note,
        });

        let own_transitions = own.map(|rule| rule.transitions.clone()).unwrap_or_default();
        let transitions = match &wanted.transition {
            Move::AsItIs => own_transitions.clone(),
            Move::Never => Vec::new(),
            Move::To { class, days } => vec![Transition {
                date: None,
                days: Some(*days),
                storage_class: class.clone(),
            }],
        };
        if !transitions.is_empty() || !own_transitions.is_empty() {
            rules.aspects.push(Aspect {
                setting: format!("dumps of {} move", cluster.name),
                now: move_text(&own_transitions),
                wanted: move_text(&transitions),
                differs: transitions != own_transitions,
                note: String::new(),
            });
        }
        let mut rule = new_rule(&id, &prefix);
        rule.expiration = kept.map(after_days);
        rule.transitions = transitions;
        rules.put(rule);
    }
}

impl Rules {
    /// Whether anything is to be written.
    pub(super) fn differ(&self) -> bool {
        self.aspects.iter().any(|aspect| aspect.differs)
    }

    /// In the place of the rule of that id, or behind all others; a rule that would do nothing goes.
    fn put(&mut self, rule: Rule) {
        let does_something = rule.expiration.is_some()
            || !rule.transitions.is_empty()
            || rule.noncurrent_version_expiration.is_some()
            || rule.upload_expiration.is_some();
        let rules = &mut self.after.rules;
        let place = rules.iter().position(|stored| stored.rule.id == rule.id);
        match (place, does_something) {
            (Some(place), _) if rules[place].rule.normalized() == rule.normalized() => {}
            (Some(place), true) => rules[place] = StoredRule::new(rule),
            (Some(place), false) => {
                rules.remove(place);
            }
            (None, true) => rules.push(StoredRule::new(rule)),
            (None, false) => {}
        }
    }
}

/// Whether an id is one of those that are given here.
pub(super) fn is_own(id: &str) -> bool {
    ["housekeeping", "probes", "leases", "dumps"]
        .iter()
        .any(|purpose| id.starts_with(&format!("pgkeep-{purpose}:")))
}

/// The id of the rule for a purpose at a place.
fn own_id(purpose: &str, place: &str) -> String {
    let id = format!("pgkeep-{purpose}:{}", place.trim_end_matches('/'));
    if id.len() <= ID_LENGTH_MAX {
        return id;
    }
    format!("pgkeep-{purpose}:{}", blake3::hash(place.as_bytes()).to_hex())
}

fn new_rule(id: &str, prefix: &str) -> Rule {
    Rule {
        id: Some(id.to_owned()),
        status: ENABLED.to_owned(),
        filter: Some(Filter {
            prefix: Some(prefix.to_owned()),
            ..Filter::default()
        }),
        ..Rule::default()
    }
}

fn after_days(days: u32) -> Expiration {
    Expiration {
        days: Some(days),
        ..Expiration::default()
    }
}

fn expiry_days(rule: &Rule) -> Option<u32> {
    rule.expiration.as_ref()?.days
}

fn noncurrent_days(rule: &Rule) -> Option<u32> {
    rule.noncurrent_version_expiration.as_ref()?.noncurrent_days
}

fn upload_days(rule: &Rule) -> Option<u32> {
    rule.upload_expiration.as_ref()?.days_after_initiation
}

fn expire_text(days: Option<u32>) -> String {
    days.map_or("stay".to_owned(), |days| format!("go after {}", days_text(days)))
}

/// `1 day`, `30 days`
pub(super) fn days_text(days: u32) -> String {
    match days {
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

fn move_text(transitions: &[Transition]) -> String {
    if transitions.is_empty() {
        return "stay".to_owned();
    }
    let one = |transition: &Transition| {
        let when = transition.days.map(|days| format!(" after {}", days_text(days)));
        format!("to {}{}", transition.storage_class, when.unwrap_or_default())
    };
    transitions.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::Kept;

    fn stored(id: &str, prefix: &str, change: impl FnOnce(&mut Rule)) -> StoredRule {
        let mut rule = new_rule(id, prefix);
        change(&mut rule);
        StoredRule::new(rule)
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
            clusters: vec![ClusterKept {
                name: "main".to_owned(),
                kept: Kept::default(),
            }],
            expiry,
            noncurrent_days,
            ..Wanted::default()
        };
        let present = Present {
            lifecycle,
            prefix: "pgkeep/",
            older_dumps: &|_, _| Some(0),
        };
        plan(&present, &wanted)
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
        let differing: Vec<&str> = rules
            .aspects
            .iter()
            .filter(|aspect| aspect.differs)
            .map(|aspect| aspect.setting.as_str())
            .collect();
        assert_eq!(differing, ["leases of main"]);
    }

    #[test]
    fn names_of_rules_are_as_long_as_the_store_takes() {
        let long = own_id("leases", &"a/".repeat(300));
        assert!(long.len() <= ID_LENGTH_MAX && is_own(&long), "{long}");
        assert!(is_own(&own_id("housekeeping", "")) && !is_own("housekeeping"));
    }
}
