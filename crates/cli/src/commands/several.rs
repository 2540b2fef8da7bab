//! A cluster with several repositories: what goes through all of them, and which one has a dump.

use pgkeep_base::{BackupId, BackupKind};
use pgkeep_repository::Repository;

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

/// Does the work in each repository. One that fails doesn't keep the others from it.
pub async fn in_each(
    context: &Context,
    settings: &Settings,
    work: impl AsyncFn(&Settings) -> Result<Outcome, Failure>,
) -> Result<Outcome, Failure> {
    let all = settings.in_each_repository()?;
    if let [only] = all.as_slice() {
        return work(only).await;
    }
    let mut outcome = Outcome::Done;
    for (number, settings) in all.iter().enumerate() {
        let gap = if number == 0 { "" } else { "\n" };
        let url = styled(BOLD, settings.repository_url()?);
        context.output.summary(format!("{gap}{url}"));
        match work(settings).await {
            Ok(of_one) => outcome = outcome.and(of_one),
            Err(failure) if context.cancellation.is_cancelled() => return Err(failure),
            Err(failure) => {
                failure.tell(&context.output);
                outcome = Outcome::Failed;
            }
        }
    }
    Ok(outcome)
}

/// Opens all of them. One that can't be opened is told; if none can, the first one's failure is returned.
async fn open(context: &Context, all: Vec<Settings>, keys: KeyUse) -> Result<Vec<Opened>, Failure> {
    let several = all.len() > 1;
    let mut opened = Vec::new();
    let mut failures = Vec::new();
    for settings in all {
        match context.repository(&settings, keys).await {
            Ok(repository) => opened.push(Opened { settings, repository }),
            Err(failure) if several => failures.push((settings.repository_url()?.to_owned(), failure)),
            Err(failure) => return Err(failure),
        }
    }
    if opened.is_empty() && !failures.is_empty() {
        return Err(failures.swap_remove(0).1);
    }
    for (url, failure) in &failures {
        context
            .output
            .attention(format!("{url} is left out: {}", failure.text()));
    }
    Ok(opened)
}

/// The repositories that have the backup that is named, the best one to read it from first: for `latest` the one with the
/// newest, else in the order of the setting. There is at least one; it is for the command to say that none has it.
pub async fn having(
    context: &Context,
    settings: &Settings,
    keys: KeyUse,
    text: &str,
) -> Result<(Opened, Vec<Opened>), Failure> {
    let all = settings.in_each_repository()?;
    let several = all.len() > 1;
    let mut opened = open(context, all, keys).await?;
    if several {
        let mut with = Vec::new();
        let mut without = Vec::new();
        for opened in opened {
            match newest(&opened.repository, text).await {
                Ok(Some(id)) => with.push((id, opened)),
                Ok(None) => without.push(opened),
                Err(failure) => {
                    let url = opened.repository.store().url();
                    let why = failure.text();
                    context.output.attention(format!("{url} is left out: {why}"));
                }
            }
        }
        if text == "latest" {
            // Stable: of two that have it, the first stays the first.
            with.sort_by(|(a, _), (b, _)| b.cmp(a));
        }
        opened = with.into_iter().map(|(_, opened)| opened).collect();
        if opened.is_empty() {
            opened = without;
        }
    }
    let mut opened = opened.into_iter();
    match opened.next() {
        Some(first) => {
            if several {
                let url = first.repository.store().url();
                context.output.note(format!("from {url}"));
            }
            Ok((first, opened.collect()))
        }
        None => Err(Failure::unmended(
            "no repository could be asked",
            "'pgkeep doctor' says what is wrong with them",
        )),
    }
}

/// The newest backup that fits.
async fn newest(repository: &Repository, text: &str) -> Result<Option<BackupId>, Failure> {
    for id in repository.ids(BackupKind::Dump).await? {
        let fits = text == "latest" || id.to_string().starts_with(text);
        if fits && repository.state(&id).await?.is_there() {
            return Ok(Some(id));
        }
    }
    Ok(None)
}
