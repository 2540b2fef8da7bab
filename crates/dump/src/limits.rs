//! How large the texts may be in which a dump says what it is. Whoever reads a repository, which may be anybody's, refuses
//! more; so a dump that would have more is refused before it is committed.

use pgkeep_repository::integrity::CHECKSUMS_BYTES_MAX;

use crate::error::DumpError;

/// A relation takes some 500 bytes of it: a million of them fit. Whoever writes or reads one needs several times its size
/// in memory. What is promised of memory is promised up to 50,000 tables, whose manifest has 25 MB.
pub(crate) const MANIFEST: Limit = Limit::new("its manifest", 512 << 20);
/// Apart from the user's notes and patterns, it is short.
pub(crate) const SUMMARY: Limit =
    Limit::new("its summary, which holds the annotations and patterns,", 4 << 20);
/// An object takes some hundred bytes of them.
pub(crate) const CHECKSUMS: Limit = Limit::new("its list of checksums", CHECKSUMS_BYTES_MAX);
/// The globals of a cluster with a hundred thousand roles.
pub(crate) const GLOBALS: Limit = Limit::new("its script of roles and other globals", 64 << 20);
/// Scripts and lists of one database: sequences, what depends on what.
pub(crate) const TEXT: Limit = Limit::new("the list of sequences or dependents of a database", 256 << 20);

/// How many bytes of a text are written, and read.
pub(crate) struct Limit {
    what: &'static str,
    /// In bytes.
    pub bytes_max: u64,
}

impl Limit {
    const fn new(what: &'static str, bytes_max: u64) -> Self {
        Self { what, bytes_max }
    }

    /// For what takes a size in memory.
    pub(crate) fn size_max(&self) -> usize {
        usize::try_from(self.bytes_max).unwrap_or(usize::MAX)
    }

    /// Refuses what no reader would take.
    pub(crate) fn check(&self, bytes: usize) -> Result<(), DumpError> {
        if bytes <= self.size_max() {
            return Ok(());
        }
        Err(DumpError::Unreadable {
            what: self.what,
            bytes: bytes as u64,
            bytes_max: self.bytes_max,
        })
    }
}

#[cfg(test)]
mod tests {
    use pgkeep_base::Classified;

    use super::*;

    #[test]
    fn what_a_reader_takes_may_be_written_and_no_more() {
        let limit = Limit::new("its list", 10);
        limit.check(10).unwrap();
        let error = limit.check(11).unwrap_err();
        assert!(
            error.to_string().contains("its list would have 11 bytes"),
            "{error}"
        );
        assert!(error.hint().unwrap().as_str().contains("--database"), "{error}");
    }
}
