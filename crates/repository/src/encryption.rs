//! Sealing and opening objects: zstd inside age, as streams.
//!
//! Written: bytes -> zstd (frames, with checksums) -> age (if there are recipients) -> the object. So
//! `age -d -i KEY object | zstd -dc` opens any object. Read: both layers are told by their first bytes, so an object
//! may also be several zstd frames one after another, with or without age around it.
//!
//! What opening proves: every byte of an encrypted object is authenticated, and one that was cut off is noticed
//! (age ends with a marked chunk). An unencrypted one only has zstd's frame checksums: one that was cut between two
//! frames, or replaced, is noticed by the hash in the manifest alone.
//!
//! Blocking and bound by CPU: call it off the async threads.

use std::io::{self, BufRead, BufReader, Cursor, Read, Write};

use age::stream::StreamReader;

use crate::compression::FrameWriter;
use crate::keys::{Identity, Recipient};

mod end;
mod error;
mod stanza;
mod writer;

pub(crate) use end::{EndRanges, decrypt_end};
pub use error::EncryptionError;
pub(crate) use stanza::{HASH_HEAD_BYTES, hash_in_header};
pub(crate) use writer::encrypt_writer_with_hash;
pub use writer::{EncryptWriter, encrypt_writer};

/// What is done to objects beside compression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// Encrypted so that any one of the recipients' identities opens them.
    Age {
        /// At least one.
        recipients: Vec<Recipient>,
    },
    /// Not encrypted, because the user said so.
    None,
}

impl Encryption {
    /// Whether objects are encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Age { .. })
    }

    /// Whether objects can be written with it; worth asking before a long run begins.
    ///
    /// # Errors
    /// There are none, or more than [`RECIPIENTS_MAX`].
    pub fn check_writable(&self) -> Result<(), EncryptionError> {
        match self {
            Self::Age { recipients } if recipients.is_empty() => Err(EncryptionError::NoRecipients),
            Self::Age { recipients } if recipients.len() > RECIPIENTS_MAX => {
                Err(EncryptionError::TooManyRecipients(recipients.len()))
            }
            _ => Ok(()),
        }
    }
}

/// The zstd levels that can be chosen. Above 19 a frame's window, and with it the memory of whoever opens it, grows
/// beyond [`WINDOW_LOG_MAX`].
pub const COMPRESSION_LEVELS: std::ops::RangeInclusive<i32> = 1..=19;
/// zstd's default, and the best trade for database rows: the next levels cost twice the time for a few per cent.
pub const COMPRESSION_LEVEL_DEFAULT: i32 = 3;
/// A frame that needs a window of more than 8 MiB (level 19's) is refused: memory must not depend on the object.
pub const WINDOW_LOG_MAX: u32 = 23;
/// The most recipients of one object; each costs 160 bytes in it.
pub const RECIPIENTS_MAX: usize = 100;
/// The longest age header that is read.
pub const AGE_HEADER_BYTES_MAX: usize = 64 * 1024;
/// The most stanzas in one: the recipients, and one of random text that age adds. The age library's parser starts over
/// at each line, so that a header of 64 KiB with 10,000 stanzas took it minutes.
const AGE_STANZAS_MAX: usize = 2 * RECIPIENTS_MAX;

const AGE_MAGIC: &[u8] = b"age-encryption.org/";
/// RFC 8878, 3.1.1 (little-endian 0xFD2FB528).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const READ_BUFFER_BYTES: usize = 128 * 1024;

/// Compresses, then encrypts. Write to it, then [`finish`](SealWriter::finish).
pub struct SealWriter<W: Write>(FrameWriter<EncryptWriter<W>>);

/// Begins an object: what is written to the result comes out of [`open_reader`] again.
///
/// # Errors
/// The level is out of range, there is no recipient, or `output` fails.
pub fn seal_writer<W: Write>(
    encryption: &Encryption,
    level: i32,
    output: W,
) -> Result<SealWriter<W>, EncryptionError> {
    if !COMPRESSION_LEVELS.contains(&level) {
        return Err(EncryptionError::Level(level));
    }
    let frames = FrameWriter::new(level, encrypt_writer(encryption, output)?);
    Ok(SealWriter(frames.map_err(EncryptionError::Write)?))
}

impl<W: Write> SealWriter<W> {
    /// Writes what is still held back and gives the writer underneath back. Without it the object is cut off, and
    /// opening it says so.
    ///
    /// # Errors
    /// The writer underneath fails.
    pub fn finish(self) -> io::Result<W> {
        self.0.finish()?.finish()
    }
}

impl<W: Write> Write for SealWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// How to open objects.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions<'a> {
    /// The keys to try, none if objects aren't encrypted.
    pub identities: &'a [Identity],
    /// Whom the repository says it encrypts to; only for error messages.
    pub recipients: &'a [Recipient],
    /// The most bytes that may come out: a small object can hold petabytes of zeros.
    pub bytes_max: u64,
}

/// An object's content, as a stream. An error is final: further reads fail too, never end as if all were well.
pub struct Opened<R: Read> {
    content: zstd::stream::read::Decoder<'static, Replayed<Unlocked<R>>>,
    encrypted: bool,
    bytes_max: u64,
    bytes_left: u64,
    failed: bool,
}

/// The start of a stream, which has been looked at, and the rest of it.
type Replayed<R> = io::Chain<Cursor<Vec<u8>>, BufReader<R>>;

enum Unlocked<R: Read> {
    Age(Box<StreamReader<Replayed<Source<R>>>>),
    Plain(Replayed<Source<R>>),
}

impl<R: Read> Read for Unlocked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Age(reader) => reader.read(buffer),
            Self::Plain(reader) => reader.read(buffer),
        }
    }
}

/// Marks the errors of the reader underneath, so that a cut connection isn't called a damaged object.
struct Source<R>(R);

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(EncryptionError::Read(error).into()),
                Ok(count) => return Ok(count),
            }
        }
    }
}

/// Begins to open an object of any size, to be read as a stream. See [`open_reader_with`].
///
/// # Errors
/// See [`EncryptionError`].
pub fn open_reader<R: Read>(input: R, identities: &[Identity]) -> Result<Opened<R>, EncryptionError> {
    open_reader_with(
        input,
        &OpenOptions {
            identities,
            recipients: &[],
            bytes_max: u64::MAX,
        },
    )
}

/// Begins to open an object. Reads its first bytes and, where it is encrypted, finds the key.
///
/// # Errors
/// See [`EncryptionError`].
pub fn open_reader_with<R: Read>(input: R, options: &OpenOptions<'_>) -> Result<Opened<R>, EncryptionError> {
    let mut rest = BufReader::with_capacity(READ_BUFFER_BYTES, Source(input));
    let mut head = Vec::new();
    read_more(&mut rest, &mut head, AGE_MAGIC.len())?;
    let encrypted = head == AGE_MAGIC;
    let unlocked = if encrypted {
        if options.identities.is_empty() {
            return Err(EncryptionError::NoIdentity {
                recipients: options.recipients.to_vec(),
            });
        }
        read_age_header(&mut rest, &mut head)?;
        Unlocked::Age(Box::new(decrypt(Cursor::new(head).chain(rest), options)?))
    } else {
        Unlocked::Plain(Cursor::new(head).chain(rest))
    };

    let mut compressed = BufReader::with_capacity(READ_BUFFER_BYTES, unlocked);
    let mut start = Vec::new();
    read_more(&mut compressed, &mut start, ZSTD_MAGIC.len())?;
    if start.len() < ZSTD_MAGIC.len() {
        return Err(EncryptionError::Truncated(format!(
            "it has {} bytes, fewer than any object",
            start.len()
        )));
    }
    if start != ZSTD_MAGIC {
        // Nothing is passed on as it is: an object whose first byte was flipped must not become a success.
        let layer = if encrypted {
            "what is inside it is not zstd"
        } else {
            "it begins as neither age nor zstd do"
        };
        return Err(EncryptionError::Corrupt(layer.to_owned()));
    }
    let mut content =
        zstd::stream::read::Decoder::with_buffer(Cursor::new(start).chain(compressed)).map_err(classify)?;
    content.window_log_max(WINDOW_LOG_MAX).map_err(classify)?;
    let bytes_max = options.bytes_max;
    Ok(Opened {
        content,
        encrypted,
        bytes_max,
        bytes_left: bytes_max,
        failed: false,
    })
}

/// Reads up to `count` more bytes, fewer only at the end.
fn read_more(reader: &mut impl Read, into: &mut Vec<u8>, count: usize) -> Result<usize, EncryptionError> {
    reader.take(count as u64).read_to_end(into).map_err(classify)
}

/// Reads until `head` holds the whole age header (<https://c2sp.org/age>: it ends with the line that begins `---`).
fn read_age_header(rest: &mut impl Read, head: &mut Vec<u8>) -> Result<(), EncryptionError> {
    const STEP_BYTES: usize = 4096;
    const VERSION_LINE_END: &[u8] = b"v1\n";
    const MAC_LINE_START: &[u8] = b"\n--- ";
    const STANZA_START: &[u8] = b"\n-> ";
    loop {
        let count = read_more(rest, head, STEP_BYTES)?;
        let after_magic = head.get(AGE_MAGIC.len()..).unwrap_or_default();
        if after_magic.len() >= VERSION_LINE_END.len() && !after_magic.starts_with(VERSION_LINE_END) {
            return Err(EncryptionError::Unsupported(
                "it is not of version 1 of the age format",
            ));
        }
        let mac_line = head
            .windows(MAC_LINE_START.len())
            .position(|window| window == MAC_LINE_START);
        let mac_line = mac_line
            .and_then(|at| head.get(at + MAC_LINE_START.len()..))
            .unwrap_or_default();
        let too_large = || {
            Err(EncryptionError::Corrupt(
                "its age header is larger than any that pgkeep writes".to_owned(),
            ))
        };
        if head
            .windows(STANZA_START.len())
            .filter(|window| window == &STANZA_START)
            .count()
            > AGE_STANZAS_MAX
        {
            return too_large();
        }
        if mac_line.contains(&b'\n') {
            return Ok(());
        }
        if count == 0 {
            return Err(EncryptionError::Truncated("its age header has no end".to_owned()));
        }
        if head.len() >= AGE_HEADER_BYTES_MAX {
            return too_large();
        }
    }
}

fn decrypt<R: BufRead>(input: R, options: &OpenOptions<'_>) -> Result<StreamReader<R>, EncryptionError> {
    let classify_age = |error| match error {
        age::DecryptError::Io(error) => classify(error),
        age::DecryptError::NoMatchingKeys => no_matching_key(options),
        age::DecryptError::UnknownFormat => {
            EncryptionError::Unsupported("it is not of version 1 of the age format")
        }
        age::DecryptError::InvalidMac => EncryptionError::Corrupt("its age header was altered".to_owned()),
        other => EncryptionError::Corrupt(other.to_string()),
    };
    let decryptor = age::Decryptor::new_buffered(input).map_err(classify_age)?;
    if decryptor.is_scrypt() {
        return Err(EncryptionError::Unsupported("it is protected by a passphrase"));
    }
    let identities = options
        .identities
        .iter()
        .map(|identity| identity.as_age() as &dyn age::Identity);
    decryptor.decrypt(identities).map_err(classify_age)
}

fn no_matching_key(options: &OpenOptions<'_>) -> EncryptionError {
    // An X25519 stanza doesn't say whom it is for: it may be another key's, or damaged, also where this key is one of those
    // that are configured now.
    let tried: Vec<Recipient> = options.identities.iter().map(Identity::to_recipient).collect();
    EncryptionError::WrongKey {
        tried,
        recipients: options.recipients.to_vec(),
    }
}

/// Tells errors of the reader underneath (which [`Source`] marked) from what zstd and age found wrong.
fn classify(error: io::Error) -> EncryptionError {
    error
        .downcast::<EncryptionError>()
        .unwrap_or_else(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => EncryptionError::Truncated(error.to_string()),
            _ => EncryptionError::Corrupt(error.to_string()),
        })
}

impl<R: Read> Opened<R> {
    /// Whether the object is encrypted. Where everything is, one that isn't was put there by somebody else.
    pub fn is_encrypted(&self) -> bool {
        self.encrypted
    }

    /// As [`Read::read`], with the typed error.
    ///
    /// # Errors
    /// See [`EncryptionError`].
    pub fn read_typed(&mut self, buffer: &mut [u8]) -> Result<usize, EncryptionError> {
        if self.failed {
            return Err(EncryptionError::Corrupt(
                "reading went on after an error".to_owned(),
            ));
        }
        let result = self.read_limited(buffer);
        self.failed = result.is_err();
        result
    }

    /// Reads all of it into memory; [`OpenOptions::bytes_max`] limits how much that can be.
    ///
    /// # Errors
    /// See [`EncryptionError`].
    pub fn read_to_vec(mut self) -> Result<Vec<u8>, EncryptionError> {
        let mut content = Vec::new();
        self.read_to_end(&mut content)
            .map_err(EncryptionError::from_read)?;
        Ok(content)
    }

    fn read_limited(&mut self, buffer: &mut [u8]) -> Result<usize, EncryptionError> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.bytes_left == 0 {
            // At the limit there may be nothing more, and that has to be seen: the last check of age lies there.
            return match self.content.read(&mut [0]).map_err(classify)? {
                0 => Ok(0),
                _ => Err(EncryptionError::TooLarge {
                    bytes_max: self.bytes_max,
                }),
            };
        }
        let count = buffer
            .len()
            .min(usize::try_from(self.bytes_left).unwrap_or(usize::MAX));
        let count = self
            .content
            .read(buffer.get_mut(..count).unwrap_or_default())
            .map_err(classify)?;
        self.bytes_left = self.bytes_left.saturating_sub(count as u64);
        Ok(count)
    }
}

impl<R: Read> Read for Opened<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.read_typed(buffer)?)
    }
}

/// Seals a small object in memory.
///
/// # Errors
/// See [`seal_writer`].
pub fn seal_bytes(encryption: &Encryption, level: i32, content: &[u8]) -> Result<Vec<u8>, EncryptionError> {
    let mut sealer = seal_writer(encryption, level, Vec::new())?;
    sealer.write_all(content).map_err(EncryptionError::Write)?;
    sealer.finish().map_err(EncryptionError::Write)
}

/// Opens a small object in memory.
///
/// # Errors
/// See [`EncryptionError`].
pub fn open_bytes(object: &[u8], options: &OpenOptions<'_>) -> Result<Vec<u8>, EncryptionError> {
    open_reader_with(object, options)?.read_to_vec()
}

/// Takes age's layer off an object in memory, where it has one, and leaves the compressed contents as they are.
///
/// # Errors
/// See [`EncryptionError`].
pub fn decrypt_bytes(object: &[u8], options: &OpenOptions<'_>) -> Result<Vec<u8>, EncryptionError> {
    let header_bytes = age_header_bytes(object)?;
    let mut contents = Vec::new();
    if header_bytes == 0 {
        contents.extend_from_slice(object);
        return Ok(contents);
    }
    if options.identities.is_empty() {
        return Err(EncryptionError::NoIdentity {
            recipients: options.recipients.to_vec(),
        });
    }
    contents.reserve(object.len());
    let reader = decrypt(object, options)?;
    reader
        .take(options.bytes_max.saturating_add(1))
        .read_to_end(&mut contents)
        .map_err(classify)?;
    if contents.len() as u64 > options.bytes_max {
        return Err(EncryptionError::TooLarge {
            bytes_max: options.bytes_max,
        });
    }
    Ok(contents)
}

/// How long the age header at the beginning of an object is, up to the end of its last line; 0 without one.
///
/// # Errors
/// [`EncryptionError::Truncated`] if it has no end there, and those of a header that pgkeep doesn't write.
pub fn age_header_bytes(object: &[u8]) -> Result<usize, EncryptionError> {
    const MAC_LINE_START: &[u8] = b"\n--- ";
    if !object.starts_with(AGE_MAGIC) {
        return Ok(0);
    }
    let mut head = AGE_MAGIC.to_vec();
    let rest = object.get(AGE_MAGIC.len()..).unwrap_or_default();
    read_age_header(&mut &*rest, &mut head)?;
    let mac_line = head
        .windows(MAC_LINE_START.len())
        .position(|window| window == MAC_LINE_START)
        .map(|at| at + MAC_LINE_START.len());
    let end = mac_line.and_then(|start| {
        let length = head.get(start..)?.iter().position(|byte| *byte == b'\n')?;
        Some(start + length + 1)
    });
    end.ok_or_else(|| EncryptionError::Truncated("its age header has no end".to_owned()))
}
