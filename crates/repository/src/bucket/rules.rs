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
use super::rule::{
    after_days, expire_text, expiry_days, move_text, noncurrent_days, own_id, reach_text, removes_marks,
    upload_days,
};
use super::state::OldVersions;
use super::wanted::{ClusterKept, Expiry, Move, NONCURRENT_DAYS_DEFAULT, Wanted};
use crate::layout;

/// No dump is committed later than 72 hours after its start, so a lease of this age is nobody's.
const LEASE_DAYS: u32 = 7;
/// Repositories have no unfinished uploads; `pgkeep dump --output s3://...` may leave some when it is killed.
const UPLOAD_DAYS: u32 = 7;
/// The doctor removes its probes itself, where it may.
const PROBE_DAYS: u32 = 1;
const ENABLED: &str = "Enabled";

/// One thing that rules are there for.
#[derive(Default)]
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
    /// Whether there are old versions that nothing ends.
    pub(super) old_versions: OldVersions,
    /// How many dumps of a cluster are older than so many days; none where that isn't known.
    pub(super) older_dumps: &'a dyn Fn(&str, u32) -> Option<usize>,
}

/// What own rules say of a cluster's dumps.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// When they go, where that leaves what is to be kept.
    pub(super) expiry_days: Option<u32>,
    /// To where they move, and when.
    pub(super) transition: Option<(String, u32)>,
    /// How long old versions stay.
    pub(super) noncurrent_days: Option<u32>,
}

/// Debris that goes after some days.
struct Simple {
    setting: String,
    id: String,
    prefix: String,
    days: u32,
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
        present.expire_debris(leases, &mut rules);
        present.dumps(cluster, wanted, &mut rules);
    }
    rules
}

impl<'a> Present<'a> {
    /// What own rules say of a cluster's dumps.
    pub(super) fn own_of(&self, cluster: &ClusterKept) -> Own {
        let enabled = |id: String| self.own(&id).filter(|rule| rule.is_enabled());
        let dumps = enabled(self.dumps_of(cluster).0);
        let bound = cluster.kept.expiry_bound();
        let first = dumps.and_then(|rule| rule.transitions.first());
        let when = first.and_then(|transition| Some((transition.storage_class.clone(), transition.days?)));
        Own {
            expiry_days: dumps.and_then(expiry_days).filter(|days| bound.permits(*days)),
            transition: when,
            noncurrent_days: enabled(own_id("housekeeping", self.prefix)).and_then(noncurrent_days),
        }
    }

    /// The id and the prefix of the rule for a cluster's dumps.
    fn dumps_of(&self, cluster: &ClusterKept) -> (String, String) {
        let folder = layout::kind_prefix(&cluster.name, BackupKind::Dump);
        let prefix = format!("{}{folder}", self.prefix);
        let id = own_id("dumps", prefix.trim_end_matches("/dump/"));
        (id, prefix)
    }

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

    /// A rule that does nothing yet. S3 takes none with a filter beside one of its old form.
    fn new_rule(&self, id: &str, prefix: &str) -> Rule {
        let mut rule = Rule {
            id: Some(id.to_owned()),
            status: ENABLED.to_owned(),
            ..Rule::default()
        };
        if self.lifecycle.has_old_form() {
            rule.prefix = Some(prefix.to_owned());
        } else {
            rule.filter = Some(Filter {
                prefix: Some(prefix.to_owned()),
                ..Filter::default()
            });
        }
        rule
    }

    /// Old versions, unfinished uploads, marks of deletion: below the repository's place, for all clusters.
    fn housekeeping(&self, wanted: &Wanted, rules: &mut Rules) {
        let id = own_id("housekeeping", self.prefix);
        let own = self.own(&id).filter(|rule| rule.is_enabled());
        let foreign: Vec<&Rule> = self.foreign(&id, self.prefix).collect();
        let mut rule = self.new_rule(&id, self.prefix);
        let mut aspects = Vec::new();
        // A store without old versions may refuse all rules for the sake of one that is for them.
        let has_versions = self.old_versions != OldVersions::Unsupported;
        if has_versions {
            let (days, aspect) = self.old_versions(own, &foreign, wanted);
            rule.noncurrent_version_expiration = days.map(|days| NoncurrentVersionExpiration {
                noncurrent_days: Some(days),
                newer_noncurrent_versions: None,
            });
            aspects.push(aspect);
        } else {
            rule.noncurrent_version_expiration =
                own.and_then(|own| own.noncurrent_version_expiration.clone());
        }

        let own_days = own.and_then(upload_days);
        let foreign_days = foreign.iter().copied().filter_map(upload_days).min();
        let kept = own_days.or(foreign_days.is_none().then_some(UPLOAD_DAYS));
        rule.upload_expiration = kept.map(|days| UploadExpiration {
            days_after_initiation: Some(days),
        });
        aspects.push(Aspect {
            setting: "unfinished uploads".to_owned(),
            now: self.expire_text(own_days.into_iter().chain(foreign_days).min()),
            wanted: self.expire_text(kept.or(foreign_days)),
            differs: kept != own_days,
            note: String::new(),
        });

        let own_removes = own.is_some_and(removes_marks);
        let foreign_remove = foreign.iter().any(|rule| removes_marks(rule));
        let remove = match own_removes {
            true => true,
            false => has_versions && !foreign_remove && !self.lifecycle.has_old_form(),
        };
        rule.expiration = remove.then(|| Expiration {
            expired_object_delete_marker: Some(true),
            ..Expiration::default()
        });
        if has_versions {
            aspects.push(self.marks(own_removes, foreign_remove));
        }
        rules.put(rule, aspects);
    }

    /// Of a repository at the top of a bucket, the whole bucket is told.
    fn expire_text(&self, days: Option<u32>) -> String {
        match (self.prefix, days) {
            ("", Some(_)) => format!("{}, in the whole bucket", expire_text(days)),
            _ => expire_text(days),
        }
    }

    /// When the own rule ends old versions, and that in words.
    fn old_versions(&self, own: Option<&Rule>, foreign: &[&Rule], wanted: &Wanted) -> (Option<u32>, Aspect) {
        let own_days = own.and_then(noncurrent_days);
        // Of several rules S3 follows the earliest. One that is too early is told by itself.
        let foreign_days = foreign.iter().copied().filter_map(noncurrent_days).min();
        let now = own_days.into_iter().chain(foreign_days).min();
        let days = wanted.noncurrent_days.unwrap_or(NONCURRENT_DAYS_DEFAULT);
        let kept = match wanted.noncurrent_days {
            Some(days) => (foreign_days != Some(days)).then_some(days),
            // Versions that nothing ends can be brought back for ever: nobody takes that away unasked.
            None if now.is_none() && self.old_versions == OldVersions::Kept => None,
            None => own_days
                .map(|own| own.max(days))
                .or(foreign_days.is_none().then_some(days)),
        };
        let note = match kept.or(now) {
            None => format!("nothing ends them, and that stays: --noncurrent-days {days} lets them go"),
            Some(_) => String::new(),
        };
        let aspect = Aspect {
            setting: "old versions".to_owned(),
            now: self.expire_text(now),
            wanted: self.expire_text(kept.or(foreign_days.map(|foreign| foreign.max(days)))),
            differs: kept.is_some() && kept != own_days,
            note,
        };
        (kept, aspect)
    }

    fn marks(&self, own_removes: bool, foreign_remove: bool) -> Aspect {
        let shown = |removed: bool| if removed { "removed" } else { "stay" };
        let now = own_removes || foreign_remove;
        // In the old form they would overlap with everything else that expires, which S3 refuses.
        let wanted = now || !self.lifecycle.has_old_form();
        let note = match wanted {
            true => "",
            false => {
                "beside rules of S3's old form (<Prefix> in place of <Filter>) there can be no rule for them; they cost nothing, \
                 and slow listings down"
            }
        };
        Aspect {
            setting: "marks of deletion".to_owned(),
            now: shown(now).to_owned(),
            wanted: shown(wanted).to_owned(),
            differs: now != wanted,
            note: note.to_owned(),
        }
    }

    fn expire_debris(&self, debris: Simple, rules: &mut Rules) {
        let own = self.own(&debris.id).filter(|rule| rule.is_enabled());
        let own_days = own.and_then(expiry_days);
        let foreign_days = self
            .foreign(&debris.id, &debris.prefix)
            .filter_map(expiry_days)
            .min();
        let kept = own_days.or(foreign_days.is_none().then_some(debris.days));
        let aspect = Aspect {
            setting: debris.setting,
            now: expire_text(own_days.into_iter().chain(foreign_days).min()),
            wanted: expire_text(kept.or(foreign_days)),
            differs: kept != own_days,
            note: String::new(),
        };
        let mut rule = self.new_rule(&debris.id, &debris.prefix);
        rule.expiration = kept.map(after_days);
        rules.put(rule, vec![aspect]);
    }

    fn dumps(&self, cluster: &ClusterKept, wanted: &Wanted, rules: &mut Rules) {
        let (id, prefix) = self.dumps_of(cluster);
        let own = self.own(&id).filter(|rule| rule.is_enabled());
        let own_days = own.and_then(expiry_days);
        let foreign_days = self.foreign(&id, &prefix).filter_map(expiry_days).min();
        let bound = cluster.kept.expiry_bound();
        let kept = match wanted.expiry {
            Expiry::Never => None,
            Expiry::AfterDays(days) => (foreign_days != Some(days)).then_some(days),
            Expiry::AsItIs => own_days.filter(|days| bound.permits(*days)),
        };
        let target = match wanted.expiry {
            Expiry::Never => None,
            Expiry::AfterDays(days) => Some(days),
            Expiry::AsItIs => kept.or(foreign_days),
        };
        let mut aspects = vec![Aspect {
            setting: format!("dumps of {}", cluster.name),
            now: expire_text(own_days.into_iter().chain(foreign_days).min()),
            wanted: expire_text(target),
            differs: kept != own_days,
            note: self.notes_of_dumps(cluster, kept, own_days, wanted.expiry),
        }];

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
            aspects.push(Aspect {
                setting: format!("dumps of {} move", cluster.name),
                now: move_text(&own_transitions),
                wanted: move_text(&transitions),
                differs: transitions != own_transitions,
                note: String::new(),
            });
        }
        let mut rule = self.new_rule(&id, &prefix);
        rule.expiration = kept.map(after_days);
        rule.transitions = transitions;
        rules.put(rule, aspects);
    }

    /// What is good to know of a rule that deletes dumps.
    fn notes_of_dumps(
        &self,
        cluster: &ClusterKept,
        kept: Option<u32>,
        own_days: Option<u32>,
        expiry: Expiry,
    ) -> String {
        let Some(days) = kept else {
            return String::new();
        };
        let mut notes = Vec::new();
        if own_days != kept
            && let Some(older) = (self.older_dumps)(&cluster.name, days).filter(|older| *older > 0)
        {
            notes.push(format!(
                "{older} of the dumps there are older, and go within two days"
            ));
        }
        match cluster.kept.expiry_bound() {
            ExpiryBound::Any if matches!(expiry, Expiry::AfterDays(_)) => notes.push(
                "nothing here says what is kept: if the dump host has keep or dump.incremental, run this with its settings"
                    .to_owned(),
            ),
            ExpiryBound::AtLeast(_) if cluster.kept.rhythm.is_none() => notes.push(
                "that supposes a dump every day: no dump.schedule here says when they come".to_owned(),
            ),
            _ => {}
        }
        notes.join("; ")
    }
}

impl Rules {
    /// Whether anything is to be written.
    pub(super) fn differ(&self) -> bool {
        self.aspects.iter().any(|aspect| aspect.differs)
    }

    /// In the place of the rule of that id, or behind all others; a rule that would do nothing goes. What differs beside the
    /// aspects (somebody made it reach further, say) is one more.
    fn put(&mut self, rule: Rule, aspects: Vec<Aspect>) {
        let does_something = rule.expiration.is_some()
            || !rule.transitions.is_empty()
            || rule.noncurrent_version_expiration.is_some()
            || rule.upload_expiration.is_some();
        let is_told = aspects.iter().any(|aspect| aspect.differs);
        self.aspects.extend(aspects);
        let rules = &mut self.after.rules;
        let Some(place) = rules.iter().position(|stored| stored.rule.id == rule.id) else {
            if does_something {
                rules.push(StoredRule::new(rule));
            }
            return;
        };
        let (present, wanted) = (rules[place].rule.normalized(), rule.normalized());
        let is_off = !present.is_enabled() && !does_something;
        if present == wanted || is_off {
            return;
        }
        let reaches_elsewhere = present.filter != wanted.filter;
        if reaches_elsewhere || !is_told {
            self.aspects.push(Aspect {
                setting: format!("rule {}", rule.id.as_deref().unwrap_or_default()),
                now: match reaches_elsewhere {
                    true => reach_text(&present),
                    false => "changed by somebody".to_owned(),
                },
                wanted: match (reaches_elsewhere, does_something) {
                    (_, false) => "none".to_owned(),
                    (true, true) => reach_text(&wanted),
                    (false, true) => "as it is set up".to_owned(),
                },
                differs: true,
                note: String::new(),
            });
        }
        match does_something {
            true => rules[place] = StoredRule::new(rule),
            false => {
                rules.remove(place);
            }
        }
    }
}

#[cfg(test)]
mod tests;
