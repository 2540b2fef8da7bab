//! A cluster with several repositories: what goes through all of them, and which one has a dump.

use futures::future::join_all;
use pgkeep_base::{BackupId, quote_for_shell};
use pgkeep_dump::{Chosen, DumpError, Wanted};
use pgkeep_repository::{Repository, RepositoryError};

use super::latest;
use crate::context::{Context, KeyUse, Settings};
use crate::exit::{Failure, Outcome};
use crate::output::{BOLD, styled};

/// One repository of a cluster, and the settings as they are for it.
pub struct Opened {
    /// With this repository as the only one.
    pub settings: Settings,
    /// The repository.
    pub repository: Repository,
}

impl Opened {
    /// Its URL.
    pub fn url(&self) -> &str {
        self.repository.store().url()
    }
}

/// Does the work in each repository. One that fails, or can't be reached, doesn't keep the others from it.
pub async fn in_each(
    context: &Context,
    settings: &Settings,
    work: impl AsyncFn(&Settings) -> Result<Outcome, Failure>,
) -> Result<Outcome, Failure> {
    let all = settings.in_each_repository()?;
    if let [only] = all.as_slice() {
        return work(only).await;
    }
    let mut each = Each::default();
    for (number, settings) in all.iter().enumerate() {
        let gap = if number == 0 { "" } else { "\n" };
        let url = settings.repository_url()?;
        context.output.summary(format!("{gap}{}", styled(BOLD, url)));
        let looking = context.repository_if_there(settings, KeyUse::None);
        match context.cancellation.or(looking).await {
            Ok(Some(_)) => match work(settings).await {
                Ok(outcome) => each.outcome = Some(each.outcome.unwrap_or(Outcome::Done).and(outcome)),
                Err(failure) if context.cancellation.is_cancelled() => return Err(failure),
                Err(failure) => each.failed(context, failure.at(url)),
            },
            Ok(None) => each.missing.push(settings),
            Err(failure) if context.cancellation.is_cancelled() => return Err(failure),
            Err(failure) => each.unreachable(context, failure.at(url)),
        }
    }
    each.end(context)
}

/// What came of each repository.
#[derive(Default)]
struct Each<'a> {
    /// Of the work, where it was done.
    outcome: Option<Outcome>,
    /// Where there is no repository.
    missing: Vec<&'a Settings>,
    /// The last failure, which isn't told yet.
    untold: Option<Failure>,
    has_failed: bool,
}

impl Each<'_> {
    fn failed(&mut self, context: &Context, failure: Failure) {
        self.has_failed = true;
        self.unreachable(context, failure);
    }

    fn unreachable(&mut self, context: &Context, failure: Failure) {
        if let Some(before) = self.untold.replace(failure) {
            before.tell(&context.output);
        }
    }

    fn end(self, context: &Context) -> Result<Outcome, Failure> {
        let Some(mut outcome) = self.outcome else {
            let missing = self
                .missing
                .iter()
                .filter_map(|settings| settings.repository_url().ok());
            let mut missing =
                missing.map(|url| Failure::from(RepositoryError::NotARepository { url: url.to_owned() }));
            let last = self.untold.or_else(|| missing.next());
            missing.for_each(|failure| failure.tell(&context.output));
            return last.map_or(Ok(Outcome::Done), Err);
        };
        for settings in &self.missing {
            context.output.attention(missing(settings));
            outcome = outcome.and(Outcome::Attention);
        }
        if let Some(failure) = self.untold {
            failure.tell(&context.output);
            outcome = outcome.and(match self.has_failed {
                true => Outcome::Failed,
                false => Outcome::Attention,
            });
        }
        Ok(outcome)
    }
}

/// What is said of a repository that isn't there while another one of the cluster's is.
fn missing(settings: &Settings) -> String {
    let url = settings.repository_url().unwrap_or_default();
    format!(
        "there is no repository at {url}, and another one of the cluster's is there; {WHERE_IS_IT}; the next dump makes it anew, \
         and this brings the earlier ones there: {}",
        settings.copy_command("all", url)
    )
}

/// What to do about a repository that should be there.
pub const WHERE_IS_IT: &str =
    "if it should be, see whether its disk is mounted or its bucket is the right one";

/// The repositories that answered, and those that didn't.
struct Asked<T> {
    answers: Vec<(Opened, T)>,
    failures: Vec<(String, Failure)>,
    /// Nothing of the kind is there.
    none: Vec<Failure>,
}

/// Asks all of them at once.
async fn ask<T>(
    context: &Context,
    settings: &Settings,
    keys: KeyUse,
    question: impl AsyncFn(&Repository) -> Result<T, DumpError>,
) -> Result<Asked<T>, Failure> {
    let all = settings.in_each_repository()?;
    let several = all.len() > 1;
    let each = all.into_iter().map(async |settings| {
        let url = settings.repository_url()?.to_owned();
        let opening = match several {
            true => context.repository_soon(&settings, keys).await,
            false => context.repository(&settings, keys).await,
        };
        let answer = match opening {
            Ok(repository) => {
                let answer = question(&repository).await;
                Ok((Opened { settings, repository }, answer))
            }
            Err(failure) => Err(failure),
        };
        Ok::<_, Failure>((url, answer))
    });
    let mut asked = Asked {
        answers: Vec::new(),
        failures: Vec::new(),
        none: Vec::new(),
    };
    for answer in join_all(each).await {
        match answer? {
            (_, Ok((opened, Ok(answer)))) => asked.answers.push((opened, answer)),
            (_, Ok((_, Err(error)))) if is_none(&error) => asked.none.push(error.into()),
            (url, Ok((_, Err(error)))) => asked.failures.push((url, error.into())),
            (url, Err(failure)) => asked.failures.push((url, failure)),
        }
    }
    if !asked.answers.is_empty() {
        return Ok(asked);
    }
    // That one doesn't have it is the answer, even if another, which can't be asked and is told, may.
    let failure = match asked.none.into_iter().next() {
        Some(none) => Some(none),
        None if asked.failures.is_empty() => None,
        None => {
            let (url, failure) = asked.failures.remove(0);
            Some(if several { failure.at(&url) } else { failure })
        }
    };
    tell_failures(context, &asked.failures);
    Err(failure.unwrap_or_else(|| Failure::usage("there is no repository", "set repository")))
}

fn is_none(error: &DumpError) -> bool {
    matches!(
        error,
        DumpError::Repository(RepositoryError::NoBackup { .. } | RepositoryError::NoSuchBackup { .. })
            | DumpError::Usage { .. }
    )
}

/// Says which repositories weren't asked.
fn tell_failures(context: &Context, failures: &[(String, Failure)]) -> Outcome {
    for (url, failure) in failures {
        let text = failure.text();
        let text = text.strip_prefix(&format!("{url}: ")).unwrap_or(&text);
        context.output.attention(format!("{url} is left out: {text}"));
    }
    match failures {
        [] => Outcome::Done,
        _ => Outcome::Attention,
    }
}

/// The newest of the dumps that the repositories named, or the only one.
fn newest<'a>(text: &str, ids: impl Iterator<Item = &'a BackupId>) -> Result<Option<BackupId>, Failure> {
    let mut ids: Vec<&BackupId> = ids.collect();
    ids.sort();
    ids.dedup();
    match ids.as_slice() {
        [_, _, ..] if text != "latest" => {
            let candidates = ids.iter().map(ToString::to_string).collect();
            let text = text.to_owned();
            Err(RepositoryError::AmbiguousId { text, candidates }.into())
        }
        ids => Ok(ids.last().map(|id| (*id).clone())),
    }
}

/// A dump to read from.
pub struct Choice {
    /// Where it is read.
    pub repository: Repository,
    /// The dump.
    pub chosen: Chosen,
    /// What came of asking the repositories.
    pub outcome: Outcome,
    /// The other repositories that have it.
    pub elsewhere: Vec<String>,
}

/// A failure of reading a dump in one repository. What is damaged there may be sound in another one that has it.
pub fn failed_to_read(error: DumpError, id: &BackupId, elsewhere: &[String]) -> Failure {
    let is_damage = error.is_damage();
    // What was begun in the target has to go first.
    let overwrite = match error {
        DumpError::Unfinished { .. } => " and --overwrite",
        _ => "",
    };
    let failure = Failure::from(error);
    match elsewhere.first() {
        Some(url) if is_damage => failure.or_else_do(&format!(
            "{id} is at {url} too: the same command with --repository {}{overwrite}",
            quote_for_shell(url)
        )),
        _ => failure,
    }
}

/// The dump that is meant, to read from it, from the first repository in which it can be read and isn't known to be damaged.
pub async fn choose(
    context: &Context,
    settings: &Settings,
    text: &str,
    wanted: &Wanted<'_>,
) -> Result<Choice, Failure> {
    let asked = ask(context, settings, KeyUse::Needed, async |repository| {
        match pgkeep_dump::choose(repository, text, wanted).await {
            // The newest may be readable elsewhere.
            Err(error @ DumpError::NewerUnreadable { .. }) => Ok(Err(error)),
            chosen => chosen.map(Ok),
        }
    })
    .await?;
    let chosen_ids = asked
        .answers
        .iter()
        .filter_map(|(_, answer)| answer.as_ref().ok());
    let newest = newest(text, chosen_ids.map(|chosen| &chosen.id))?;
    let mut outcome = tell_failures(context, &asked.failures);
    let several = asked.answers.len() + asked.failures.len() + asked.none.len() > 1;
    let mut having = Vec::new();
    for (opened, answer) in asked.answers {
        match answer {
            Ok(chosen) if Some(&chosen.id) == newest.as_ref() => having.push((opened, chosen)),
            Ok(_) => {}
            Err(DumpError::NewerUnreadable { unreadable, .. })
                if newest
                    .as_ref()
                    .is_some_and(|newest| unreadable.iter().all(|id| *id <= newest.to_string())) =>
            {
                let url = opened.url();
                let unreadable = unreadable.join(", ");
                context
                    .output
                    .attention(format!("{url}: can't be read there: {unreadable}"));
                outcome = Outcome::Attention;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let place = match first_not_damaged(context, settings, &having).await {
        // Damaged or not, there is no other.
        None => 0,
        Some(place) => {
            if place > 0 {
                outcome = Outcome::Attention;
            }
            place
        }
    };
    // Those before it are known to be damaged.
    let mut having = having.into_iter().skip(place);
    let Some((opened, chosen)) = having.next() else {
        return Err(Failure::usage(
            "no dump could be chosen",
            "'pgkeep list' shows them all",
        ));
    };
    if several {
        context.output.note(format!("reading from {}", opened.url()));
    }
    latest::tell_skipped(&context.output, &chosen.skipped);
    Ok(Choice {
        repository: opened.repository,
        chosen,
        outcome,
        elsewhere: having.map(|(opened, _)| opened.url().to_owned()).collect(),
    })
}

/// The first in which no verification found the dump damaged; those before it are told.
async fn first_not_damaged(
    context: &Context,
    settings: &Settings,
    having: &[(Opened, Chosen)],
) -> Option<usize> {
    let mut damaged: Vec<&(Opened, Chosen)> = Vec::new();
    for (place, candidate) in having.iter().enumerate() {
        let (opened, chosen) = candidate;
        let evidence = match having {
            [_] => None,
            // What isn't known to be damaged may be read.
            _ => opened.repository.evidence_of(&chosen.id).await.ok().flatten(),
        };
        if evidence.is_none_or(|evidence| evidence.passed) {
            for (damaged, chosen) in damaged {
                tell_damaged(context, settings, damaged.url(), &chosen.id, Some(opened.url()));
            }
            return Some(place);
        }
        damaged.push(candidate);
    }
    None
}

/// Says that a dump is damaged in a repository, with what mends it: the same dump from another one that has it sound.
pub fn tell_damaged(context: &Context, settings: &Settings, url: &str, id: &BackupId, sound: Option<&str>) {
    let mend = match sound {
        None => String::new(),
        Some(sound) => format!(": {}", settings.repair_from(&id.to_string(), sound, url)),
    };
    context
        .output
        .attention(format!("{url}: verification found {id} damaged there{mend}"));
}

/// The dump that is named, for `command`, which takes it as a whole, and every repository that has it; and what came of asking
/// the others.
pub async fn find(
    context: &Context,
    settings: &Settings,
    keys: KeyUse,
    text: &str,
    command: &str,
) -> Result<(BackupId, Vec<Opened>, Outcome), Failure> {
    let asked = ask(context, settings, keys, async |repository| {
        pgkeep_dump::find(repository, text, command).await
    })
    .await?;
    let newest = newest(text, asked.answers.iter().map(|(_, found)| &found.id))?;
    let outcome = tell_failures(context, &asked.failures);
    let mut having = Vec::new();
    let mut told = false;
    for (opened, found) in asked.answers {
        let Some(id) = &newest else { continue };
        if found.id == *id {
            if !told {
                latest::tell_found(context, &found);
                told = true;
            }
            having.push(opened);
        } else if opened.repository.state(id).await?.is_there() {
            having.push(opened);
        }
    }
    match newest {
        Some(id) => Ok((id, having, outcome)),
        None => Err(Failure::usage(
            "no dump could be found",
            "'pgkeep list' shows them all",
        )),
    }
}
