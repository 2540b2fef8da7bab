//! `pgkeep init`: from a server that somebody has to a first dump that is proven, with a configuration and a key. Until the
//! first dump begins, whatever goes wrong leaves nothing behind.

mod ask;
mod files;
mod kit;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgkeep_base::Secret;
use pgkeep_config::{Cluster, EncryptionMode, Overrides, SEARCH_PATHS};
use pgkeep_dump::verify::{VerifyDepth, VerifyOptions, VerifyReport, verify};
use pgkeep_dump::{DumpReport, Progress, memory};
use pgkeep_pg::programs::{self, ProgramSearch};
use pgkeep_schedule::Schedule;
use serde_json::json;

use super::doctor::{self, AskedBy};
use super::dump;
use crate::args::{DumpArgs, InitArgs};
use crate::context::{self, CONTAINER_PREFIX, Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{ACCENT, counted, styled};
use crate::progress::Display;
use ask::Ask;
use files::{Key, Made};
use source::Source;

const SCHEDULE_DEFAULT: &str = "0 2 * * *";

/// What is written, and what was found on the way.
struct Plan {
    /// The cluster's name.
    name: String,
    /// What flags and variables say of it.
    given: Cluster,
    source: Source,
    repository: String,
    key: Key,
    schedule: String,
    config: PathBuf,
    /// Further settings of the command line, which are written.
    set: Vec<(String, String)>,
    /// Those that hold for this run alone.
    set_once: Vec<(String, String)>,
}

/// `pgkeep init`
pub async fn run(context: &Context, args: InitArgs) -> Result<Outcome, Failure> {
    let mut made = Made::default();
    let (plan, settings, outcome) = context.cancellation.or(set_up(context, &args, &mut made)).await?;
    // Something may be encrypted for the key from now on, so it stays, whatever comes.
    made.keep();
    let first = match args.no_dump {
        true => None,
        false => Some(first_dump(context, &settings, &plan, args.accept_new_identity).await?),
    };
    kit::tell(context, &plan, &settings, first.as_ref());
    Ok(match &first {
        Some((report, verified)) => {
            report
                .attention
                .iter()
                .for_each(|line| context.output.attention(line));
            if !verified.passed() {
                Outcome::Failed
            } else if report.attention.is_empty() {
                outcome
            } else {
                Outcome::Attention
            }
        }
        None => outcome,
    })
}

/// Everything up to a configuration that the doctor has nothing against.
async fn set_up(
    context: &Context,
    args: &InitArgs,
    made: &mut Made,
) -> Result<(Plan, Settings, Outcome), Failure> {
    let plan = plan(context, args).await?;
    files::write(&plan, made)?;
    let once = Overrides {
        set: plan
            .set_once
            .iter()
            .map(|(name, value)| (name.clone(), Secret::new(value.clone())))
            .collect(),
        ..Overrides::default()
    };
    let settings = context.settings_of_file(&plan.config, &plan.name, &once)?;
    let asked_by = AskedBy::Init {
        accepts_new_identity: args.accept_new_identity,
    };
    let findings = doctor::examine(&settings, asked_by).await;
    doctor::tell_problems(context, &findings);
    if findings.errors() > 0 {
        context
            .output
            .json(&json!({ "problems": doctor::problems_json(&findings) }));
        return Err(Failure::unmended(
            format!(
                "{} to mend first; nothing was written",
                counted(findings.errors(), "error", "errors")
            ),
            "do what stands there, then run the same command again",
        ));
    }
    let outcome = match findings.warnings() {
        0 => Outcome::Done,
        _ => Outcome::Attention,
    };
    let mut plan = plan;
    plan.source.facts = findings.server;
    Ok((plan, settings, outcome))
}

async fn plan(context: &Context, args: &InitArgs) -> Result<Plan, Failure> {
    let config = config_path(context)?;
    let (name, given) = context.settings_given(Overrides::default())?;
    let ask = Ask::new(context, args.yes);
    let source = source::find(context, &given, args, &ask).await?;
    let repository = match given.repository.as_slice() {
        [] => {
            ask.value(
                "Where should the dumps go? (s3://bucket/prefix, gs://, az://, file:///directory)",
                None,
                "--repository URL, such as s3://bucket/prefix or file:///srv/backups",
            )
            .await?
        }
        [only] => only.clone(),
        _ => {
            return Err(Failure::usage(
                "several repositories were given, and this sets up one",
                "name one with --repository URL; add the others to repository = [...] in pgkeep.toml afterwards",
            ));
        }
    };
    let key = key(&given, args, &ask).await?;
    let schedule = match (&args.schedule, &given.dump.schedule) {
        (Some(schedule), _) | (None, Some(schedule)) => schedule.clone(),
        (None, None) => {
            ask.value(
                "When should 'pgkeep run' dump? (a cron expression)",
                Some(SCHEDULE_DEFAULT),
                "--schedule CRON",
            )
            .await?
        }
    };
    Schedule::parse(&schedule, given.timezone.clone())?;
    let (mut set, set_once) = files::written_and_not(context.further_settings());
    set.extend(container_programs(context, &given, &source).await);
    Ok(Plan {
        name,
        given,
        source,
        repository,
        key,
        schedule,
        config,
        set,
        set_once,
    })
}

/// The setting by which the programs of the server's own container are used, where this machine has none of its version.
async fn container_programs(context: &Context, given: &Cluster, source: &Source) -> Option<(String, String)> {
    let container = source.container.as_ref().filter(|_| given.pg_bin.is_none())?;
    let theirs = programs::find("pg_dump", 0, &context::programs_in(container))
        .await
        .ok()?;
    let ours = programs::find("pg_dump", theirs.major, &ProgramSearch::process(None)).await;
    if ours.is_ok() {
        return None;
    }
    context.output.note(format!(
        "this machine has no pg_dump of PostgreSQL {}: that in the container {container} is used",
        theirs.major
    ));
    Some(("pg_bin".to_owned(), format!("{CONTAINER_PREFIX}{container}")))
}

/// Where the configuration goes. One that is there is never overwritten, and one that would be found isn't put aside.
fn config_path(context: &Context) -> Result<PathBuf, Failure> {
    let taken = |path: &Path| {
        Failure::refused(
            format!("{} is there already, and is never overwritten", path.display()),
            "'pgkeep doctor' says whether all is in place; for another one: --config FILE",
        )
    };
    if let Some(path) = context.config_path() {
        return match path.exists() {
            true => Err(taken(&path)),
            false => Ok(path),
        };
    }
    match SEARCH_PATHS.iter().map(Path::new).find(|path| path.exists()) {
        Some(path) => Err(taken(path)),
        None => Ok(PathBuf::from(SEARCH_PATHS[0])),
    }
}

/// No key for dumps in the clear or where only the public one is given; else a file, which is taken if it is there.
async fn key(given: &Cluster, args: &InitArgs, ask: &Ask<'_>) -> Result<Key, Failure> {
    const FILE_DEFAULT: &str = "pgkeep.key";
    if given.encryption == EncryptionMode::None {
        return Ok(Key::None);
    }
    let named = args.key.as_ref().or(given.identity_file.as_ref());
    if !given.recipients.is_empty() && named.is_none() {
        return Ok(Key::Public(given.recipients.clone()));
    }
    let path = match named {
        Some(path) => path.clone(),
        None => {
            let question = "Which file should hold the secret key? (one that exists is taken)";
            PathBuf::from(ask.value(question, Some(FILE_DEFAULT), "--key FILE").await?)
        }
    };
    files::take_or_make(&path, &given.recipients)
}

/// The first dump, read back.
async fn first_dump(
    context: &Context,
    settings: &Settings,
    plan: &Plan,
    accept_new_identity: bool,
) -> Result<(DumpReport, VerifyReport), Failure> {
    let interrupted = |failure: Failure| {
        if context.cancellation.is_cancelled() {
            let accepting = match accept_new_identity {
                true => " --accept-new-identity",
                false => "",
            };
            context.output.note(format!(
                "{} and the key stay; the first dump is still to be made: pgkeep dump{accepting}",
                plan.config.display()
            ));
        }
        failure
    };
    let args = DumpArgs {
        accept_new_identity,
        ..DumpArgs::scheduled()
    };
    let report = dump::into_repository(context, settings, &args)
        .await
        .map_err(interrupted)?;
    context
        .output
        .note(format!("dump {} is complete; reading it back", report.id));
    let (keys, depth) = match plan.key {
        Key::Public(_) => (KeyUse::IfThere, VerifyDepth::Stored),
        Key::None | Key::Secret { .. } => (KeyUse::Needed, VerifyDepth::Contents),
    };
    let verified = async {
        let repository = context.repository(settings, keys).await?;
        let options = VerifyOptions {
            depth,
            sample: None,
            jobs: settings.jobs_in_memory(&context.output, memory::load_jobs_max),
        };
        let progress = Arc::new(Progress::default());
        let _display = Display::start(context.shown, &progress);
        Ok(verify(&repository, &report.id, &options, &progress).await?)
    };
    let verified = context.cancellation.or(verified).await.map_err(interrupted)?;
    Ok((report, verified))
}

impl Plan {
    /// What a program may want to know.
    fn json(&self, first: Option<&(DumpReport, VerifyReport)>) -> serde_json::Value {
        json!({
            "config": self.config.display().to_string(),
            "cluster": self.name,
            "repository": self.repository,
            "recipients": self.key.recipients(),
            "identity_file": self.key.file().map(|path| path.display().to_string()),
            "dump": first.map(|(report, _)| report.id.to_string()),
            "verified": first.map(|(_, verified)| verified.passed()),
        })
    }

    fn tell_written(&self, context: &Context) {
        context
            .output
            .summary(format!("{} is written.", styled(ACCENT, self.config.display())));
        for note in files::notes_on_secrets(&self.config, &self.set, &self.set_once) {
            context.output.note(note);
        }
    }
}
