use std::io;

use pgkeep_base::{ByteCount, Classified, Hint, RetryClass};

use super::{COMPRESSION_LEVELS, RECIPIENTS_MAX};
use crate::keys::Recipient;

/// An object could not be written, or not be opened and read to its end.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// Encryption without anybody who could decrypt.
    #[error("encryption is on and no recipient is given")]
    NoRecipients,
    /// See [`RECIPIENTS_MAX`].
    #[error("{0} recipients are given; the most is {RECIPIENTS_MAX}")]
    TooManyRecipients(usize),
    /// See [`COMPRESSION_LEVELS`].
    #[error("compression level {0} is out of range: {first} to {last}",
        first = COMPRESSION_LEVELS.start(), last = COMPRESSION_LEVELS.end())]
    Level(i32),
    /// The writer underneath failed, or memory for the compressor could not be had.
    #[error("could not write the object")]
    Write(#[source] io::Error),
    /// The age library refused.
    #[error("could not encrypt: {0}")]
    Encrypt(String),
    /// The object is encrypted and no key was given.
    #[error("the object is encrypted and no identity was given{}", for_recipients(.recipients))]
    NoIdentity {
        /// Whom the repository encrypts to, where known.
        recipients: Vec<Recipient>,
    },
    /// None of the keys given opens the object. (age headers don't tell whom they are for.)
    #[error("none of the identities given opens the object: they belong to {}{}", list(.tried),
        written_for(.tried, .recipients))]
    WrongKey {
        /// The public halves of the keys tried.
        tried: Vec<Recipient>,
        /// Whom the repository encrypts to, where known.
        recipients: Vec<Recipient>,
    },
    /// The object is an age file that pgkeep did not write.
    #[error("the object is encrypted in a way that pgkeep doesn't write: {0}")]
    Unsupported(&'static str),
    /// The object ends too early.
    #[error("the object is cut off: {0}")]
    Truncated(String),
    /// The object's bytes are not what was written.
    #[error("the object is damaged or altered: {0}")]
    Corrupt(String),
    /// The object holds more than its reader was prepared for.
    #[error("the object holds more than {limit}, the most that can be right here", limit = ByteCount(*.bytes_max))]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The reader underneath failed: the object itself may be well.
    #[error("could not read the object")]
    Read(#[source] io::Error),
}

impl EncryptionError {
    /// Takes the typed error back out of the [`io::Error`] that [`Opened`]'s [`Read`] had to put it in.
    pub fn from_read(error: io::Error) -> Self {
        error.downcast::<Self>().unwrap_or_else(Self::Read)
    }
}

impl From<EncryptionError> for io::Error {
    fn from(error: EncryptionError) -> Self {
        let kind = match &error {
            EncryptionError::Truncated(_) => io::ErrorKind::UnexpectedEof,
            EncryptionError::NoIdentity { .. } | EncryptionError::WrongKey { .. } => {
                io::ErrorKind::PermissionDenied
            }
            EncryptionError::Read(source) => source.kind(),
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

impl Classified for EncryptionError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::NoRecipients
            | Self::TooManyRecipients(_)
            | Self::Level(_)
            | Self::NoIdentity { .. }
            | Self::WrongKey { .. } => RetryClass::Usage,
            Self::Read(_) => RetryClass::Transient,
            _ => RetryClass::Permanent,
        }
    }

    fn hint(&self) -> Option<Hint> {
        match self {
            Self::NoRecipients => Some(Hint::new(
                "make a key with `pgkeep key new --output FILE` and set recipients = [\"age1...\"] in pgkeep.toml, or say \
                 encryption = \"none\" there",
            )),
            Self::NoIdentity { .. } => Some(Hint::new(
                "give the key file that `pgkeep key new` made: --identity FILE, PGKEEP_IDENTITY_FILE=FILE, or \
                 identity_file in pgkeep.toml",
            )),
            Self::WrongKey { .. } => Some(Hint::new(
                "give the key file whose '# public key:' line is among the recipients that it was written for: --identity FILE or \
                 PGKEEP_IDENTITY_FILE=FILE; one file may hold several keys, a line each",
            )),
            Self::Truncated(_) | Self::Corrupt(_) => Some(Hint::new(
                "find out what else is damaged with `pgkeep verify all`; restore from another backup",
            )),
            _ => None,
        }
    }
}

fn list(recipients: &[Recipient]) -> String {
    recipients
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn for_recipients(recipients: &[Recipient]) -> String {
    if recipients.is_empty() {
        return String::new();
    }
    format!("; the repository encrypts to {}", list(recipients))
}

fn written_for(tried: &[Recipient], recipients: &[Recipient]) -> String {
    match tried.iter().any(|recipient| recipients.contains(recipient)) {
        // One of those that are configured now.
        true => "; it was written for others, before this key was a recipient or by another configuration"
            .to_owned(),
        false => for_recipients(recipients),
    }
}
