//! `pgkeep bucket`: whether the bucket is right for backups, and what makes it so.

mod print;

use jiff::civil::{Date, date};
use jiff::{SignedDuration, Timestamp};
use pgkeep_repository::bucket::{self, BucketError, ClusterKept, Expiry, Kept, Move, Plan, Rhythm, Wanted};
use pgkeep_schedule::Schedule;
use pgkeep_store::{Store, StoreUrl};

use crate::args::{BucketAction, BucketArgs, WantedArgs};
use crate::commands::{dump, prune, run as scheduler};
use crate::context::{Context, Settings};
use crate::exit::{Failure, Outcome};

/// The years of a schedule that are looked at: with leap years on both sides.
const SCHEDULE_YEARS: (Date, Date) = (date(2020, 1, 1), date(2029, 1, 1));

/// `pgkeep bucket`
pub async fn run(context: &Context, args: BucketArgs) -> Result<Outcome, Failure> {
    match args.action {
        BucketAction::Check { wanted } => context.cancellation.or(check(context, &wanted)).await,
        BucketAction::Setup {
            wanted,
            create,
            dry_run,
        } => {
            context
                .cancellation
                .or(setup(context, &wanted, create, dry_run))
                .await
        }
    }
}

async fn check(context: &Context, args: &WantedArgs) -> Result<Outcome, Failure> {
    let place = Place::open(context, args).await?;
    let plan = place.examine(false).await?;
    print::plan(context, &plan);
    print::found(context, &place, &plan);
    Ok(match plan.needing().next() {
        None => Outcome::Done,
        Some(_) => Outcome::Attention,
    })
}

async fn setup(
    context: &Context,
    args: &WantedArgs,
    create: bool,
    dry_run: bool,
) -> Result<Outcome, Failure> {
    let place = Place::open(context, args).await?;
    let plan = place.examine(create).await?;
    print::plan(context, &plan);
    if dry_run || !plan.has_changes() {
        return Ok(print::without_changes(context, &place, &plan, dry_run));
    }
    let set_up = bucket::apply(&place.store, &place.wanted, plan.clone(), Timestamp::now()).await?;
    Ok(print::set_up(context, &place, &plan, &set_up))
}

/// The bucket, and what is wanted of it.
struct Place {
    store: Store,
    wanted: Wanted,
    /// The command that sets this bucket up so.
    command: String,
}

impl Place {
    async fn open(context: &Context, args: &WantedArgs) -> Result<Self, Failure> {
        let all = in_each_bucket(context.settings_of_all()?)?;
        let settings = one_bucket(&all)?;
        let wanted = Wanted {
            clusters: all.iter().map(kept).collect(),
            expiry: args.expire_dumps_after.unwrap_or(Expiry::AsItIs),
            transition: args.transition.clone().unwrap_or(Move::AsItIs),
            noncurrent_days: args.noncurrent_days,
            object_lock: args.object_lock,
            kms_key_id: args
                .kms_key
                .clone()
                .or_else(|| settings.cluster.s3.kms_key_id.clone()),
        };
        // What is wrong with it needs no bucket to be told.
        wanted.check()?;
        Ok(Self {
            store: settings.store_soon(settings.repository_url()?).await?,
            wanted,
            command: print::command(args, &context.place_flags()),
        })
    }

    async fn examine(&self, may_create: bool) -> Result<Plan, Failure> {
        let examined = bucket::examine(&self.store, &self.wanted, may_create, Timestamp::now()).await;
        Ok(examined.map_err(|error| match error {
            BucketError::NoBucket { url, .. } => BucketError::NoBucket {
                url,
                mend: format!(
                    "{} --create   # with --s3-region REGION at Amazon's; else correct the URL",
                    self.command
                ),
            },
            error => error,
        })?)
    }
}

/// What of a cluster's dumps is kept, as the planner of 'pgkeep prune' has it.
///
/// Incremental dumps count wherever anything is let go: `--incremental` asks for one without any setting, and there may be
/// some from before the setting was taken out. Where everything is kept, that would forbid what somebody asks for without need.
pub fn kept(settings: &Settings) -> ClusterKept {
    let cluster = &settings.cluster;
    let policy = prune::policy(cluster);
    let may_reuse = cluster.dump.incremental || !policy.keeps_everything();
    // A schedule that can't be read is for those to tell who run it.
    let schedule = scheduler::schedule(settings).ok().flatten();
    ClusterKept {
        name: settings.name.clone(),
        kept: Kept {
            reuse_max_age: may_reuse.then(|| dump::reuse_max_age(cluster)),
            rhythm: schedule.as_ref().and_then(rhythm),
            policy,
        },
    }
}

/// How far apart the dumps of a schedule are.
fn rhythm(schedule: &Schedule) -> Option<Rhythm> {
    let (first, end) = SCHEDULE_YEARS;
    let zone = schedule.zone();
    let next_from = |day: Date| {
        let begin = day.to_zoned(zone.clone()).ok()?.timestamp();
        let before = begin.checked_sub(SignedDuration::from_nanos(1)).ok()?;
        Some(schedule.next_after(before)?.to_zoned(zone.clone()).date())
    };
    // One for each day: there may be one a second.
    let days = std::iter::successors(next_from(first), |day| next_from(day.tomorrow().ok()?));
    Rhythm::of(days.take_while(|day| *day < end))
}

/// The settings for each repository; beside buckets, those that are none are left out.
fn in_each_bucket(clusters: Vec<Settings>) -> Result<Vec<Settings>, Failure> {
    let each = clusters.iter().map(Settings::in_each_repository);
    let mut all: Vec<Settings> = each
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect();
    let is_bucket = |settings: &Settings| {
        let url = settings.repository_url().map(StoreUrl::parse);
        matches!(url, Ok(Ok(StoreUrl::S3 { .. })))
    };
    if all.iter().any(is_bucket) {
        all.retain(is_bucket);
    }
    Ok(all)
}

/// The settings by which the bucket is reached: of several clusters all lead to one place.
fn one_bucket(all: &[Settings]) -> Result<&Settings, Failure> {
    let Some((first, others)) = all.split_first() else {
        return Err(Failure::usage(
            "no cluster is configured",
            "name the repository: --repository s3://BUCKET/PREFIX",
        ));
    };
    let place = |settings: &Settings| -> Result<String, Failure> {
        let url = settings.repository_url()?;
        // As written differently, it is the same all the same.
        let url = StoreUrl::parse(url).map_or_else(|_| url.to_owned(), |url| url.to_string());
        Ok(format!(
            "{url} {}",
            settings.cluster.s3.endpoint.as_deref().unwrap_or_default()
        ))
    };
    for other in others {
        if place(other)? == place(first)? {
            continue;
        }
        if other.name == first.name {
            return Err(Failure::usage(
                format!("cluster '{}' has several repositories", first.name),
                "choose one with --repository URL",
            ));
        }
        return Err(Failure::usage(
            format!(
                "the clusters '{}' and '{}' have different repositories",
                first.name, other.name
            ),
            "choose one with --cluster NAME",
        ));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use pgkeep_repository::bucket::ExpiryBound;
    use pgkeep_repository::retention::Policy;

    use super::*;

    #[test]
    fn a_schedule_says_how_long_what_is_counted_stays() {
        let least = |text: &str, policy: Policy| {
            let zone = TimeZone::get("Europe/Berlin").unwrap();
            let schedule = Schedule::parse(text, zone).unwrap();
            let rhythm = rhythm(&schedule);
            assert!(rhythm.is_some(), "{text}");
            let bound = Kept {
                policy,
                reuse_max_age: None,
                rhythm,
            }
            .expiry_bound();
            let ExpiryBound::AtLeast(days) = bound else {
                panic!("{text}: {bound:?}");
            };
            days
        };
        let daily = || Policy {
            daily: 30,
            ..Policy::default()
        };
        let monthly = || Policy {
            monthly: 6,
            ..Policy::default()
        };
        // The day that has 25 hours is one.
        for often in ["30 2 * * *", "@hourly", "* * * * * *", "0 23,1 * * *"] {
            assert_eq!(least(often, daily()), 31, "{often}");
            assert_eq!(least(often, monthly()), 187, "{often}");
        }
        assert_eq!(least("30 1 * * SUN", daily()), 211);
        assert_eq!(least("30 1 * * SUN", monthly()), 187 + 6);
        assert_eq!(least("0 2 * * 1-5", daily()), 91);
        assert_eq!(least("@monthly", monthly()), 187 + 30);
        // Every four years.
        assert_eq!(
            least(
                "0 2 29 2 *",
                Policy {
                    daily: 1,
                    ..Policy::default()
                }
            ),
            1462
        );
    }
}
