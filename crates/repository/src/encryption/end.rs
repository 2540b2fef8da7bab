//! The end of an encrypted object, without what is before it: age encrypts in chunks, each of which is authenticated with its
//! number, and the last one as the last (<https://c2sp.org/age>, "Payload").

use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::Range;

use super::{EncryptionError, OpenOptions, age_header_bytes, classify, decrypt};

/// What follows the header.
const NONCE_BYTES: u64 = 16;
const CHUNK_BYTES: u64 = 64 << 10;
const TAG_BYTES: u64 = 16;
/// Up to here both parts are fetched as one: a request costs more than that many bytes.
const GAP_BYTES_MAX: u64 = 64 << 10;

/// Which bytes of an object are to be fetched for the last ones of its contents.
#[derive(Debug, Clone)]
pub(crate) struct EndRanges {
    /// The header, and what follows it; empty where the other one has it, too.
    pub head: Range<u64>,
    /// Whole chunks up to the end.
    pub end: Range<u64>,
    /// How many bytes all contents have.
    pub plain_bytes: u64,
    /// How many of them are wanted.
    wanted_bytes: u64,
}

impl EndRanges {
    /// For the last `wanted_bytes` of the contents of an object of `stored_bytes`, whose header has `header_bytes`; 0: it isn't
    /// encrypted. `None` if it can't have so many.
    pub fn of(header_bytes: u32, stored_bytes: u64, wanted_bytes: u64) -> Option<Self> {
        if header_bytes == 0 {
            return Some(Self {
                head: 0..0,
                end: stored_bytes.checked_sub(wanted_bytes)?..stored_bytes,
                plain_bytes: stored_bytes,
                wanted_bytes,
            });
        }
        let start = u64::from(header_bytes) + NONCE_BYTES;
        let encrypted = stored_bytes.checked_sub(start)?;
        let chunks = encrypted.div_ceil(CHUNK_BYTES + TAG_BYTES);
        let plain_bytes = encrypted.checked_sub(chunks * TAG_BYTES)?;
        // Even for nothing the last chunk is read: that it is the last one is what age knows.
        let first = plain_bytes
            .checked_sub(wanted_bytes)?
            .min(plain_bytes.saturating_sub(1));
        let first_chunk = first / CHUNK_BYTES;
        let end = start + first_chunk * (CHUNK_BYTES + TAG_BYTES);
        let is_near = end - start <= GAP_BYTES_MAX;
        Some(Self {
            head: if is_near { 0..0 } else { 0..start },
            end: if is_near { 0 } else { end }..stored_bytes,
            plain_bytes,
            wanted_bytes,
        })
    }
}

/// The last bytes of an object's contents, out of what was fetched by [`EndRanges`].
///
/// # Errors
/// See [`EncryptionError`].
pub(crate) fn decrypt_end(
    head: &[u8],
    end: &[u8],
    stored_bytes: u64,
    ranges: &EndRanges,
    options: &OpenOptions<'_>,
) -> Result<Vec<u8>, EncryptionError> {
    if ranges.plain_bytes == stored_bytes {
        return Ok(end.to_vec());
    }
    if options.identities.is_empty() {
        return Err(EncryptionError::NoIdentity {
            recipients: options.recipients.to_vec(),
        });
    }
    let first = if head.is_empty() { end } else { head };
    if age_header_bytes(first)? == 0 {
        return Err(EncryptionError::Corrupt("it isn't encrypted".to_owned()));
    }
    let fetched = Fetched {
        head,
        end,
        end_at: stored_bytes.saturating_sub(end.len() as u64),
        position: 0,
    };
    let mut reader = decrypt(fetched, options)?;
    reader
        .seek(SeekFrom::Start(ranges.plain_bytes - ranges.wanted_bytes))
        .map_err(classify)?;
    let mut contents = Vec::new();
    reader
        .take(ranges.wanted_bytes + 1)
        .read_to_end(&mut contents)
        .map_err(classify)?;
    match contents.len() as u64 == ranges.wanted_bytes {
        true => Ok(contents),
        false => Err(EncryptionError::Corrupt("its end lies elsewhere".to_owned())),
    }
}

/// An object of which the beginning and the end are at hand.
struct Fetched<'a> {
    head: &'a [u8],
    end: &'a [u8],
    /// Where `end` begins.
    end_at: u64,
    position: u64,
}

impl BufRead for Fetched<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let (bytes, start) = match self.position.checked_sub(self.end_at) {
            Some(start) => (self.end, start),
            None => (self.head, self.position),
        };
        match usize::try_from(start).ok().and_then(|start| bytes.get(start..)) {
            Some(rest) if !rest.is_empty() || self.position >= self.end_at => Ok(rest),
            // What was fetched is all that its layout needs.
            _ => Err(io::Error::other(
                "it is laid out in another way than its size says",
            )),
        }
    }

    fn consume(&mut self, count: usize) {
        self.position += count as u64;
    }
}

impl Read for Fetched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl Seek for Fetched<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let size = self.end_at + self.end.len() as u64;
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => size.checked_add_signed(by),
        };
        self.position = position.ok_or_else(|| io::Error::other("a position before its beginning"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Encryption, encrypt_writer};
    use super::*;
    use crate::keys;
    use std::io::Write;

    /// Whatever the sizes, also at the edges of chunks, the end is the end, and what was altered is refused.
    #[test]
    fn the_end_is_read_without_what_is_before_it() {
        let (identity, recipient) = keys::generate();
        let options = OpenOptions {
            identities: &[identity],
            recipients: &[],
            bytes_max: u64::MAX,
        };
        let chunk = CHUNK_BYTES;
        for encrypted in [true, false] {
            for size in [0, 1, 100, chunk - 1, chunk, chunk + 1, 3 * chunk, 5 * chunk + 7] {
                let contents: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
                let encryption = match encrypted {
                    true => Encryption::Age {
                        recipients: vec![recipient.clone()],
                    },
                    false => Encryption::None,
                };
                let mut writer = encrypt_writer(&encryption, Vec::new()).unwrap();
                writer.write_all(&contents).unwrap();
                let stored = writer.finish().unwrap();
                let header = u32::try_from(age_header_bytes(&stored).unwrap()).unwrap();
                let length = stored.len() as u64;
                for wanted in [0, 1, 50, chunk - 1, chunk, chunk + 1, 2 * chunk, size] {
                    let Some(ranges) = EndRanges::of(header, length, wanted) else {
                        assert!(wanted > size, "{wanted} of {size}");
                        continue;
                    };
                    assert_eq!(ranges.plain_bytes, size);
                    let part = |range: &Range<u64>| stored[range.start as usize..range.end as usize].to_vec();
                    let (head, mut end) = (part(&ranges.head), part(&ranges.end));
                    let read = decrypt_end(&head, &end, length, &ranges, &options).unwrap();
                    assert_eq!(read, contents[(size - wanted) as usize..], "{wanted} of {size}");
                    if let Some(last) = end.last_mut().filter(|_| encrypted && wanted > 0) {
                        *last ^= 1;
                        assert!(decrypt_end(&head, &end, length, &ranges, &options).is_err());
                    }
                }
            }
        }
    }
}
