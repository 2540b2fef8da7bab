use pgkeep_base::{Classified, Hint, RetryClass};

/// More tablespaces than there are numbers for would be needed to pass it by honest means.
const TABLESPACES_MAX: usize = 1_000_000;

/// Where a tablespace's link in `pg_tblspc` leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedTablespace {
    /// Its OID, which is the link's name.
    pub oid: u32,
    /// The directory; a path's bytes may be in any encoding.
    pub path: Vec<u8>,
}

/// The contents of `tablespace_map`, from which recovery makes the links in `pg_tblspc`: written by
/// `do_pg_backup_start` (`access/transam/xlog.c`), read by `read_tablespace_map` (`access/transam/xlogrecovery.c`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablespaceMap {
    /// In the order of the file.
    pub tablespaces: Vec<MappedTablespace>,
}

/// The contents are none of a `tablespace_map`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tablespace_map is damaged: its entry {entry} {reason}")]
pub struct TablespaceMapError {
    /// Which one, from 1.
    pub entry: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl Classified for TablespaceMapError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Permanent
    }

    fn hint(&self) -> Option<Hint> {
        Some(Hint::new(
            "take another backup: without this file, its tablespaces can't be restored",
        ))
    }
}

impl TablespaceMap {
    /// Reads the contents of the file: lines of OID, space and path, in which a backslash makes the next byte an ordinary
    /// one. Empty lines say nothing.
    ///
    /// # Errors
    /// An entry has no OID, or no path, or its line doesn't end.
    pub fn parse(contents: &[u8]) -> Result<Self, TablespaceMapError> {
        let mut tablespaces = Vec::new();
        let mut line = Vec::new();
        let mut escaped = false;
        for byte in contents {
            match byte {
                _ if escaped => {
                    line.push(*byte);
                    escaped = false;
                }
                b'\\' => escaped = true,
                b'\n' | b'\r' if line.is_empty() => {}
                b'\n' | b'\r' => {
                    let entry = tablespaces.len() + 1;
                    let refused = |reason| TablespaceMapError { entry, reason };
                    if entry > TABLESPACES_MAX {
                        return Err(refused("is one too many"));
                    }
                    tablespaces.push(mapped(&line).map_err(refused)?);
                    line.clear();
                }
                _ => line.push(*byte),
            }
        }
        if escaped || !line.is_empty() {
            return Err(TablespaceMapError {
                entry: tablespaces.len() + 1,
                reason: "has no end",
            });
        }
        Ok(Self { tablespaces })
    }

    /// The file's contents, as the server would write them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut contents = Vec::new();
        for tablespace in &self.tablespaces {
            contents.extend(tablespace.oid.to_string().bytes());
            contents.push(b' ');
            for byte in &tablespace.path {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    contents.push(b'\\');
                }
                contents.push(*byte);
            }
            contents.push(b'\n');
        }
        contents
    }
}

fn mapped(line: &[u8]) -> Result<MappedTablespace, &'static str> {
    let space = line.iter().position(|byte| *byte == b' ').ok_or("has no path")?;
    let (digits, path) = line.split_at(space);
    let digits = std::str::from_utf8(digits).unwrap_or_default();
    let oid = digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
        .filter(|oid| *oid != 0)
        .ok_or("has no OID")?;
    match path.get(1..) {
        Some(path) if !path.is_empty() && !path.contains(&0) => Ok(MappedTablespace {
            oid,
            path: path.to_owned(),
        }),
        _ => Err("has no path"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_may_hold_line_ends_and_backslashes() {
        let map = TablespaceMap::parse(b"16384 /srv/a b\n16385 /srv/c\\\n\\\\d\\\r\xff\n").unwrap();
        assert_eq!(
            map.tablespaces[0],
            MappedTablespace {
                oid: 16_384,
                path: b"/srv/a b".to_vec()
            }
        );
        assert_eq!(map.tablespaces[1].path, b"/srv/c\n\\d\r\xff");
        assert_eq!(TablespaceMap::parse(b"").unwrap(), TablespaceMap::default());
    }

    #[test]
    fn an_entry_that_is_not_whole_is_refused() {
        for (contents, entry, reason) in [
            (&b"16384 /a"[..], 1, "has no end"),
            (b"16384 /a\\\n", 1, "has no end"),
            (b"16384 /a\n16385\n", 2, "has no path"),
            (b"16384 \n", 1, "has no path"),
            (b"0 /a\n", 1, "has no OID"),
            (b"-1 /a\n", 1, "has no OID"),
            (b" /a\n", 1, "has no OID"),
            (b"4294967296 /a\n", 1, "has no OID"),
        ] {
            assert_eq!(
                TablespaceMap::parse(contents),
                Err(TablespaceMapError { entry, reason })
            );
        }
    }

    proptest! {
        #[test]
        fn every_map_is_read_as_it_was_written(
            entries in prop::collection::vec((1..=u32::MAX, prop::collection::vec(1..=u8::MAX, 1..30)), 0..8),
        ) {
            let tablespaces = entries.into_iter().map(|(oid, path)| MappedTablespace { oid, path }).collect();
            let map = TablespaceMap { tablespaces };
            prop_assert_eq!(TablespaceMap::parse(&map.to_bytes()), Ok(map));
        }
    }
}
