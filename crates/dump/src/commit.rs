//! The end of a dump: its manifest, in each of its repositories.

use futures::future::join_all;
use pgkeep_repository::Repository;
use pgkeep_repository::commit::CommitFailure;
use pgkeep_repository::destinations::LeftOut;

use crate::error::DumpError;
use crate::manifest::DumpManifest;
use crate::run::{DUMP_FAILED, Ready, Run, not_in_the_dump};
use crate::{presence, reuse};

/// A dump that exists.
pub(crate) struct Committed {
    pub manifest: DumpManifest,
    /// What needs attention, in plain words.
    pub attention: Vec<String>,
    /// The URLs of the repositories that have it.
    pub stored_in: Vec<String>,
    pub left_out: Vec<LeftOut<DumpError>>,
}

impl Run<'_> {
    /// The manifest: from now on the dump exists, in the repositories that haven't failed and in which it can be put.
    ///
    /// # Errors
    /// The first repository's, if it is in none.
    pub async fn commit(&self, ready: Ready) -> Result<Committed, DumpError> {
        let destinations = self.destinations;
        let commits = destinations.remaining().into_iter().map(|(place, repository)| {
            let committing = self.commit_in(place, repository, &ready);
            async move { (place, committing.await) }
        });
        let (committed, ()) = tokio::join!(
            join_all(commits),
            destinations.give_up_where_left_out(&self.id, DUMP_FAILED)
        );
        let mut stored_in = Vec::new();
        let mut failed = Vec::new();
        for (place, committed) in committed {
            let url = destinations.url(place).to_owned();
            match committed {
                Ok(()) => stored_in.push(url),
                Err(error) => failed.push(LeftOut { url, error }),
            }
        }
        if stored_in.is_empty() && !failed.is_empty() {
            return Err(failed.swap_remove(0).error);
        }
        let before = destinations.take_left_out().into_iter();
        let before = before.map(|LeftOut { url, error }| LeftOut {
            url,
            error: error.into(),
        });
        let omissions = ready.manifest.omissions.iter();
        let omissions = omissions.map(|omission| not_in_the_dump(omission));
        Ok(Committed {
            attention: omissions.chain(ready.attention).collect(),
            left_out: before.chain(failed).collect(),
            manifest: ready.manifest,
            stored_in,
        })
    }

    async fn commit_in(&self, place: usize, repository: &Repository, ready: &Ready) -> Result<(), DumpError> {
        let destinations = self.destinations;
        let committing =
            destinations.commit_in(place, repository, &self.id, ready.sealed.clone(), DUMP_FAILED);
        committing.await.map_err(|failure| match failure {
            CommitFailure::Failed(error) => error.into(),
            CommitFailure::Unconfirmed(error) => self.unconfirmed(error.into()),
        })?;
        self.look_again(repository, &ready.manifest).await?;
        if let Some(reuse) = &self.options.reuse {
            reuse::remember(repository, reuse, &ready.manifest);
        }
        Ok(())
    }

    /// Whether the objects of earlier dumps are there, now that nobody removes them any more. A prune on a host that took the
    /// lease for expired may have been faster than the manifest, which then goes again.
    async fn look_again(&self, repository: &Repository, manifest: &DumpManifest) -> Result<(), DumpError> {
        if manifest.totals.reused_objects == 0 {
            return Ok(());
        }
        match presence::require_all(repository, &self.id, manifest).await {
            Ok(()) => Ok(()),
            Err(error @ DumpError::ObjectsMissing { .. }) => {
                repository.take_back(&self.id).await;
                Err(error)
            }
            Err(error) => Err(self.unconfirmed(error)),
        }
    }

    fn unconfirmed(&self, source: DumpError) -> DumpError {
        DumpError::Unconfirmed {
            id: self.id.to_string(),
            source: Box::new(source),
        }
    }
}
