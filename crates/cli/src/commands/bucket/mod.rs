//! `pgkeep bucket`: whether the bucket is right for backups, and what makes it so.

mod print;

use jiff::Timestamp;
use pgkeep_repository::bucket::{self, ClusterKept, Expiry, Kept, Move, Plan, Wanted};
use pgkeep_store::{Store, StoreUrl};

use crate::args::{BucketAction, BucketArgs, WantedArgs};
use crate::commands::{dump, prune};
use crate::context::{Context, Settings};
use crate::exit::{Failure, Outcome};

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
    let mend = print::command(args, &place.flags);
    print::found(context, &place, &plan, &mend);
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
    /// Global flags that a command about this bucket repeats.
    flags: Vec<String>,
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
            flags: context.place_flags(),
        })
    }

    async fn examine(&self, may_create: bool) -> Result<Plan, Failure> {
        Ok(bucket::examine(&self.store, &self.wanted, may_create, Timestamp::now()).await?)
    }
}

/// What of a cluster's dumps is kept, as the planner of 'pgkeep prune' has it.
pub fn kept(settings: &Settings) -> ClusterKept {
    ClusterKept {
        name: settings.name.clone(),
        kept: Kept {
            policy: prune::policy(&settings.cluster),
            reuse_max_age: settings
                .cluster
                .dump
                .incremental
                .then(|| dump::reuse_max_age(&settings.cluster)),
        },
    }
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
                format!("cluster '{}' has several buckets", first.name),
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
