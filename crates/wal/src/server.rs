//! What a server says of itself.

use pgkeep_pg::Target;
use pgkeep_pg::replication::ReplicationSession;
use pgkeep_pgformat::SegmentSize;

use crate::error::WalError;

/// How a server waits for those who receive its WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Synchronous {
    /// `synchronous_commit`, for this role.
    pub commit: String,
    /// `synchronous_standby_names`: whom it waits for.
    pub names: String,
}

impl Synchronous {
    /// Asks the server.
    ///
    /// # Errors
    /// There is no connection, or the role may not replicate.
    pub async fn ask(target: &Target) -> Result<Self, WalError> {
        let mut session = ReplicationSession::connect(target).await?;
        let commit = session.show("synchronous_commit").await?;
        let names = session.show("synchronous_standby_names").await?;
        session.close().await;
        Ok(Self { commit, names })
    }

    /// Whether a commit waits until somebody has applied it, which no receiver ever does.
    pub fn waits_for_ever(&self) -> bool {
        self.commit == "remote_apply"
    }

    /// Whether it waits for a receiver of this name.
    pub fn names(&self, name: &str) -> bool {
        let words = self
            .names
            .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*'));
        words.into_iter().any(|word| word == name || word == "*")
    }
}

/// The size of the WAL's segments.
pub(crate) async fn segment_size(session: &mut ReplicationSession) -> Result<SegmentSize, WalError> {
    let answer = session.show("wal_segment_size").await?;
    let bytes = bytes_of(&answer).ok_or_else(|| WalError::Setting {
        setting: "wal_segment_size",
        answer: answer.clone(),
    })?;
    Ok(SegmentSize::new(bytes)?)
}

/// A size as SHOW writes it, with its unit (`convert_int_from_base_unit`, `utils/misc/guc.c`).
pub(crate) fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_however_the_list_is_written() {
        let waits = |names: &str| {
            let commit = "on".to_owned();
            let names = names.to_owned();
            Synchronous { commit, names }.names("pgkeep")
        };
        for names in [
            "pgkeep",
            "\"pgkeep\"",
            "FIRST 1 (other, pgkeep)",
            "ANY 2 (pgkeep,a)",
            "*",
        ] {
            assert!(waits(names), "{names}");
        }
        for names in ["", "pgkeep2", "FIRST 1 (a, b)"] {
            assert!(!waits(names), "{names}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(bytes_of("16MB"), Some(16 << 20));
        assert_eq!(bytes_of("1GB"), Some(1 << 30));
        for strange in ["", "16", "MB", "16 MB", "-1", "16mb", "99999999999999TB"] {
            assert_eq!(bytes_of(strange), None, "{strange}");
        }
    }
}
