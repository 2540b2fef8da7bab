//! The hash of an object's contents in its age header: `-> pgkeep-b3 <BLAKE3, 64 hexadecimal digits>` and an empty body, the
//! first stanza.
//!
//! Who finds a name taken tells by it whether its own bytes are there, with neither a key nor the object's body. To age it is
//! one more recipient, which opens nothing: whoever decrypts passes over stanzas that it doesn't know, and has the header
//! authenticated (<https://c2sp.org/age>). Without a key nobody can tell whether it is right.

use std::collections::HashSet;

use age_core::format::{FileKey, Stanza};

/// So many bytes of an object hold the stanza; no object that is encrypted for anybody is as short.
pub(crate) const HASH_HEAD_BYTES: u64 = (HEAD.len() + HASH_DIGITS + END.len()) as u64;

const TAG: &str = "pgkeep-b3";
const HEAD: &[u8] = b"age-encryption.org/v1\n-> pgkeep-b3 ";
const HASH_DIGITS: usize = 64;
const END: &[u8] = b"\n\n";

/// The stanza, as a recipient.
pub(super) struct HashStanza(pub(super) blake3::Hash);

impl age::Recipient for HashStanza {
    fn wrap_file_key(&self, _: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        let stanza = Stanza {
            tag: TAG.to_owned(),
            args: vec![self.0.to_hex().to_string()],
            body: Vec::new(),
        };
        Ok((vec![stanza], HashSet::new()))
    }
}

/// The hash in an object's first bytes, of which [`HASH_HEAD_BYTES`] are enough; `None` if it carries none.
pub(crate) fn hash_in_header(head: &[u8]) -> Option<blake3::Hash> {
    let (digits, end) = head.strip_prefix(HEAD)?.split_at_checked(HASH_DIGITS)?;
    let well_formed = digits
        .iter()
        .all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit));
    if !well_formed || !end.starts_with(END) {
        return None;
    }
    blake3::Hash::from_hex(digits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_stanza_in_its_place_is_read() {
        let hash = blake3::hash(b"x");
        let line = |digits: &str| [HEAD, digits.as_bytes(), END, b"-> X25519 "].concat();
        let whole = line(&hash.to_hex());
        assert_eq!(hash_in_header(&whole), Some(hash));
        assert_eq!(
            hash_in_header(&whole[..usize::try_from(HASH_HEAD_BYTES).unwrap()]),
            Some(hash)
        );
        for length in 0..usize::try_from(HASH_HEAD_BYTES).unwrap() {
            assert_eq!(hash_in_header(&whole[..length]), None, "{length}");
        }
        let digits = hash.to_hex().to_string();
        for wrong in [
            digits.to_uppercase(),
            format!("{digits}0"),
            digits[1..].to_owned(),
            format!("{} ", &digits[1..]),
        ] {
            assert_eq!(hash_in_header(&line(&wrong)), None, "{wrong}");
        }
        assert_eq!(hash_in_header(b"\x28\xb5\x2f\xfd"), None);
    }
}
