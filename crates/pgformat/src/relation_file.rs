/// `OIDCHARS` of `common/relpath.h`: no OID has more digits.
const OID_DIGITS_MAX: usize = 10;

/// Which part of a relation a file holds (`ForkNumber`, `common/relpath.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// Its rows, or its index.
    Main,
    /// `_fsm`: where it has room.
    FreeSpaceMap,
    /// `_vm`: which pages are visible to all.
    VisibilityMap,
    /// `_init`: what an unlogged relation is made of after a crash.
    Init,
}

/// The name of a file in a directory of relations: `16384`, `16384.2`, `16384_fsm`, `t3_16384`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFileName<'a> {
    /// The relation's number, in digits.
    pub number: &'a str,
    /// Which part of it.
    pub fork: Fork,
    /// The file's place among those of the fork, from 0.
    pub segment: u32,
    /// It belongs to a session's temporary relation.
    pub is_temporary: bool,
}

impl<'a> RelationFileName<'a> {
    /// Reads a name as `parse_filename_for_nontemp_relation` (`storage/file/reinit.c`) and `looks_like_temp_rel_name`
    /// (`storage/file/fd.c`) do. `None`: it is no relation's.
    pub fn parse(name: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(name).ok()?;
        let temporary = text.strip_prefix('t').map(|rest| {
            let (backend, rest) = rest.split_at(digits(rest));
            (!backend.is_empty()).then(|| rest.strip_prefix('_')).flatten()
        });
        let rest = match temporary {
            Some(rest) => rest?,
            None => text,
        };
        let (number, rest) = rest.split_at(digits(rest));
        if !(1..=OID_DIGITS_MAX).contains(&number.len()) {
            return None;
        }
        let forks = [
            ("_fsm", Fork::FreeSpaceMap),
            ("_vm", Fork::VisibilityMap),
            ("_init", Fork::Init),
        ];
        let found = forks
            .iter()
            .find_map(|(suffix, fork)| Some((rest.strip_prefix(suffix)?, *fork)));
        let (rest, fork) = found.unwrap_or((rest, Fork::Main));
        let segment = match rest.strip_prefix('.') {
            Some(segment) if digits(segment) == segment.len() => segment.parse().ok()?,
            Some(_) => return None,
            None if rest.is_empty() => 0,
            None => return None,
        };
        Some(Self {
            number,
            fork,
            segment,
            is_temporary: temporary.is_some(),
        })
    }
}

/// How many digits it begins with.
fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_the_server_reads_them() {
        for (name, number, fork, segment, is_temporary) in [
            ("16384", "16384", Fork::Main, 0, false),
            ("16384.12", "16384", Fork::Main, 12, false),
            ("16384_fsm", "16384", Fork::FreeSpaceMap, 0, false),
            ("16384_vm.1", "16384", Fork::VisibilityMap, 1, false),
            ("16384_init", "16384", Fork::Init, 0, false),
            ("t3_16384", "16384", Fork::Main, 0, true),
            ("t12_16384_fsm.2", "16384", Fork::FreeSpaceMap, 2, true),
        ] {
            let parsed = RelationFileName::parse(name.as_bytes()).unwrap();
            assert_eq!(
                (parsed.number, parsed.fork, parsed.segment, parsed.is_temporary),
                (number, fork, segment, is_temporary),
                "{name}"
            );
        }
        for name in [
            "",
            "PG_VERSION",
            "pg_filenode.map",
            "pg_internal.init",
            "1x",
            "1_foo",
            "1.",
            "1.x",
            "1.1.1",
            "t_1",
            "t1_",
            "t1",
            "12345678901",
            "1_fsmx",
            "1.99999999999",
        ] {
            assert_eq!(RelationFileName::parse(name.as_bytes()), None, "{name}");
        }
        assert_eq!(RelationFileName::parse(b"1\xff"), None);
    }
}
