//! A cluster with several repositories: what goes through all of them, and which one has a dump.

use futures::future::join_all;
use pgkeep_base::BackupId;
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
    fn url(&self) -> &str {
        self.repository.store().url()
    }
}

/// Does the work in each repository. One that fails doesn't keep the others from it; one that isn't made yet has nothing to
/// work on.
pub async fn in_each(
    context: &Context,
    settings: &Settings,
    work: impl AsyncFn(&Settings) -> Result<Outcome, Failure>,
) -> Result<Outcome, Failure> {
    let all = settings.in_each_repository()?;
    if let [only] = all.as_slice() {
        return work(only).await;
    }
    let mut outcome = None;
    let mut untold: Option<Failure> = None;
    for (number, settings) in all.iter().enumerate() {
        let gap = if number == 0 { "" } else { "\n" };
        let url = styled(BOLD, settings.repository_url()?);
        context.output.summary(format!("{gap}{url}"));
        let done = match context.repository_if_there(settings, KeyUse::None).await {
            Ok(Some(_)) => work(settings).await,
            Ok(None) => {
                context
                    .output
                    .summary("There is no repository yet: the next dump makes it.");
                Ok(Outcome::Done)
            }
            Err(failure) => Err(failure),
        };
        match done {
            Ok(of_one) => outcome = Some(outcome.unwrap_or(Outcome::Done).and(of_one)),
            Err(failure) if context.cancellation.is_cancelled() => return Err(failure),
            Err(failure) => {
                if let Some(before) = untold.replace(failure) {
                    before.tell(&context.output);
                }
            }
        }
    }
    match (outcome, untold) {
        (Some(outcome), None) => Ok(outcome),
        (Some(_), Some(failure)) => {
            failure.tell(&context.output);
            Ok(Outcome::Failed)
        }
        (None, Some(failure)) => Err(failure),
        (None, None) => Ok(Outcome::Done),
    }
}

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
        None => Some(asked.failures.remove(0).1),
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

/// The dump that is meant, to read from it, from the first repository in which it can be read.
pub async fn choose(
    context: &Context,
    settings: &Settings,
    text: &str,
    wanted: &Wanted<'_>,
) -> Result<(Repository, Chosen, Outcome), Failure> {
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
    let mut found = None;
    for (opened, answer) in asked.answers {
        match answer {
            Ok(chosen) if found.is_none() && Some(&chosen.id) == newest.as_ref() => {
                if several {
                    context.output.note(format!("reading from {}", opened.url()));
                }
                found = Some((opened.repository, chosen));
            }
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
    match found {
        Some((repository, chosen)) => {
            latest::tell_skipped(&context.output, &chosen.skipped);
            Ok((repository, chosen, outcome))
        }
        None => Err(Failure::usage(
            "no dump could be chosen",
            "'pgkeep list' shows them all",
        )),
    }
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
