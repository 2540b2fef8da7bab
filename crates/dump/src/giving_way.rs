//! pg_dump beside our locks.
//!
//! pg_dump takes locks of its own on tables that the holder of the snapshot has locked already. It waits only when somebody
//! has queued for an exclusive lock in between, and then in vain: that one waits for the holder, who waits for pg_dump. So
//! both start over, and the queue goes on.

use std::time::{Duration, Instant};

use pgkeep_pg::Session;
use pgkeep_pg::programs::ProgramError;

use crate::error::{Context, DumpError};
use crate::snapshot::LockedSnapshot;

/// As long as pg_dump waits, others wait behind whoever queued; so it waits shortly at first. But to lock very many tables
/// takes time, too.
const LOCK_TIMEOUT_MIN: Duration = Duration::from_secs(2);
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the snapshot is given up and taken again because of that.
const ATTEMPTS_MAX: u32 = 5;

/// What pg_dump says when its lock could not be had; the server's words first, which are English where the server's are,
/// then its own, of its parallel workers.
const WORDS: [&str; 2] = ["due to lock timeout", "could not obtain lock on relation"];

/// The attempts to run pg_dump on a snapshot.
pub(crate) struct Attempts {
    number: u32,
    begun: Instant,
    waited: Duration,
    lock_timeout: Duration,
}

impl Attempts {
    pub(crate) fn new() -> Self {
        Self {
            number: 1,
            begun: Instant::now(),
            waited: Duration::ZERO,
            lock_timeout: LOCK_TIMEOUT_MIN,
        }
    }

    /// Which one it is, from 1.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// pg_dump is about to be started: how long it may wait for a lock, in milliseconds.
    pub(crate) fn begin(&mut self) -> u128 {
        self.begun = Instant::now();
        self.lock_timeout.as_millis()
    }

    /// pg_dump failed before it had written anything. Where it gave way to somebody who changes tables, the snapshot is
    /// given up, and the next attempt may begin.
    ///
    /// # Errors
    /// It failed for another reason: its own error. Or it has given way too often.
    pub(crate) async fn after(
        &mut self,
        error: DumpError,
        snapshot: &mut LockedSnapshot,
        database: &str,
    ) -> Result<(), DumpError> {
        let waited = self.begun.elapsed();
        if !gave_way(&error, waited >= self.lock_timeout, &mut snapshot.session).await {
            return Err(error);
        }
        self.waited += waited;
        let number = self.number;
        if number == ATTEMPTS_MAX {
            return Err(DumpError::LockTimeout {
                database: database.to_owned(),
                waited_seconds: self.waited.as_secs(),
                blockers: Some(format!(
                    "in each of {number} attempts somebody who changes them came before pg_dump; the last time: {error}"
                )),
            });
        }
        tracing::debug!(%error, "pg_dump could not lock the tables; starting over");
        let rolled_back = snapshot.session.execute("ROLLBACK").await;
        rolled_back.context(|| "starting over".to_owned())?;
        self.number += 1;
        self.lock_timeout = (self.lock_timeout * 2).min(LOCK_TIMEOUT);
        Ok(())
    }
}

async fn gave_way(error: &DumpError, waited_long: bool, session: &mut Session) -> bool {
    let DumpError::Program {
        source: ProgramError::Failed { stderr, .. },
        ..
    } = error
    else {
        return false;
    };
    says_so(stderr) || (waited_long && is_in_the_way(session).await)
}

fn says_so(stderr: &str) -> bool {
    WORDS.iter().any(|words| stderr.contains(words))
}

/// Whether somebody has or waits for an exclusive lock on one of the tables that pg_dump reads: the same in every language.
async fn is_in_the_way(session: &mut Session) -> bool {
    let sql = "SELECT count(*) > 0 FROM pg_catalog.pg_locks l
           JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database()
           JOIN pg_catalog.pg_class c ON c.oid = l.relation
         WHERE l.mode = 'AccessExclusiveLock' AND l.pid <> pg_catalog.pg_backend_pid()
           AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'";
    match session.query(sql).await {
        Ok(rows) => rows.first().is_some_and(|row| row.get(0).unwrap_or(false)),
        Err(error) => {
            tracing::debug!(%error, "who kept pg_dump from its locks can't be looked up");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_not_had_is_told_from_other_failures() {
        for (stderr, expected) in [
            (
                "pg_dump: error: query failed: ERROR:  canceling statement due to lock timeout\n\
                 pg_dump: detail: Query was: LOCK TABLE public.t IN ACCESS SHARE MODE",
                true,
            ),
            (
                "pg_dump: error: could not obtain lock on relation \"public.t\"\npg_dump: hint: This usually means",
                true,
            ),
            (
                "pg_dump: error: query failed: ERROR:  out of shared memory\n\
                 pg_dump: detail: Query was: LOCK TABLE public.t IN ACCESS SHARE MODE",
                false,
            ),
            (
                "pg_dump: error: query failed: ERROR:  cache lookup failed for type 7",
                false,
            ),
        ] {
            assert_eq!(says_so(stderr), expected, "{stderr}");
        }
    }
}
