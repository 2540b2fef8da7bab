//! Keys: age X25519 identities (secret) and recipients (public), and the files they live in.
//!
//! Key files are what `age-keygen` writes, so that stock `age -d -i FILE` reads them. Post-quantum keys (`age1pq1...`)
//! are refused: the `age` in Debian's archive doesn't read them yet, and a dump must open with stock tools.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::secrecy::ExposeSecret;
use age::x25519;
use jiff::Timestamp;
use pgkeep_base::{Classified, Hint, RetryClass, Secret, quote_for_shell};
use pgkeep_store::durable;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

/// Identity files larger than this are something else: a key takes some 200 bytes.
pub const IDENTITY_FILE_BYTES_MAX: u64 = 64 * 1024;
const SECRET_KEY_PREFIX: &str = "AGE-SECRET-KEY-";

/// A secret key: opens what was sealed for its recipient. `Debug` shows the public half only.
#[derive(Clone)]
pub struct Identity(x25519::Identity);

impl Identity {
    /// The public key that belongs to it.
    pub fn to_recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// The key as `AGE-SECRET-KEY-1...`, for the one place that has to hand it on.
    pub fn to_secret(&self) -> Secret {
        Secret::new(self.0.to_string().expose_secret())
    }

    pub(crate) fn as_age(&self) -> &x25519::Identity {
        &self.0
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(of {})", self.to_recipient())
    }
}

/// A public key, `age1...`: whoever has it can seal, and only the identity's holder can open.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Recipient(x25519::Recipient);

impl Recipient {
    pub(crate) fn as_age(&self) -> &x25519::Recipient {
        &self.0
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({})", self.0)
    }
}

impl FromStr for Recipient {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let trimmed = text.trim();
        let lower = trimmed.to_ascii_lowercase();
        // Looked for anywhere in the text: a pasted `KEY=AGE-SECRET-KEY-1...` must not reach an error message either.
        if lower.contains("secret-key") || lower.starts_with("age-plugin-") {
            return Err(KeyError::RecipientIsSecretKey);
        }
        if let Ok(recipient) = trimmed.parse() {
            return Ok(Self(recipient));
        }
        let unsupported = |kind| Err(KeyError::RecipientUnsupported { kind });
        if lower.starts_with("ssh-") {
            return unsupported("an SSH key");
        }
        if lower.starts_with("age1pq1") {
            return unsupported("a post-quantum age key");
        }
        // age's own keys have no second '1' ('1' is no Bech32 data character); plugins' have: age1yubikey1...
        if lower.strip_prefix("age1").is_some_and(|rest| rest.contains('1')) {
            return unsupported("the key of an age plugin");
        }
        // What doesn't look like a public key may be a secret that was pasted in the wrong place: it isn't echoed.
        let shown = if lower.starts_with("age1") {
            format!("'{trimmed}'")
        } else {
            "the text given".to_owned()
        };
        Err(KeyError::RecipientInvalid { shown })
    }
}

impl Serialize for Recipient {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Recipient {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Something about a key or a key file is wrong. No variant holds secret text.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A secret key stands where a public one belongs.
    #[error("a secret key was given as a recipient; a recipient is the public key and begins with age1")]
    RecipientIsSecretKey,
    /// A recipient of a kind that stock age tools would not all open.
    #[error("{kind} was given as a recipient; pgkeep takes native age keys only (age1 and 58 characters)")]
    RecipientUnsupported {
        /// What it looks like.
        kind: &'static str,
    },
    /// Not a recipient, or one with a typing error (the checksum in it fails).
    #[error(
        "{shown} is not an age recipient: one is age1 and 58 characters, with a checksum that finds typing errors"
    )]
    RecipientInvalid {
        /// The text where it is surely not secret.
        shown: String,
    },
    /// A list of recipients is empty.
    #[error("no recipient was given")]
    RecipientsEmpty,
    /// A key file is never overwritten: it may be the only key to existing backups.
    #[error("{} exists already; a key file is never overwritten, it may be the only key to existing backups",
        path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// There is no place for a key file.
    #[error("there is no folder {} for the key file {}", folder.display(), path.display())]
    NoFolder {
        /// The folder.
        folder: PathBuf,
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("could not {action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file is no identity file.
    #[error("{origin} is not an identity file: {reason}")]
    NotIdentities {
        /// The file or the variable.
        origin: String,
        /// What is wrong with it, without its text.
        reason: String,
    },
    /// The identity file is itself encrypted.
    #[error("{origin} is protected by a passphrase, which pgkeep doesn't ask for")]
    PassphraseProtected {
        /// The file or the variable.
        origin: String,
    },
}

impl Classified for KeyError {
    fn retry_class(&self) -> RetryClass {
        match self {
            Self::FileExists { .. } => RetryClass::Refused,
            Self::File { .. } => RetryClass::Permanent,
            _ => RetryClass::Usage,
        }
    }

    fn hint(&self) -> Option<Hint> {
        let text = match self {
            Self::RecipientIsSecretKey => {
                "give the line after '# public key:' in the key file, or `age-keygen -y KEYFILE`; if the secret key \
                 is in a configuration file or a shell history, make a new one: `pgkeep key new --output FILE`"
            }
            Self::RecipientUnsupported { .. } | Self::RecipientInvalid { .. } | Self::RecipientsEmpty => {
                "make a pair with `pgkeep key new --output FILE` and give the public key it prints"
            }
            Self::FileExists { .. } => "choose another file with `pgkeep key new --output FILE`",
            // It isn't made: where a disk for keys isn't mounted, the key would stay on this one.
            Self::NoFolder { folder, .. } => {
                return Some(Hint::new(format!(
                    "make it (mkdir -p -m 700 '{}') or mount it, or choose another file with `pgkeep key new --output FILE`",
                    folder.display()
                )));
            }
            Self::NotIdentities { .. } => {
                "an identity file holds a line that begins with AGE-SECRET-KEY-1; `pgkeep key new --output FILE` makes one"
            }
            Self::PassphraseProtected { .. } => {
                "decrypt it on the way: `age -d KEYFILE | pgkeep ... --identity /dev/stdin`"
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "name the file that `pgkeep key new` made, with --identity FILE or PGKEEP_IDENTITY_FILE"
            }
            Self::File { .. } => return None,
        };
        Some(Hint::new(text))
    }
}

/// What is worth saying about an identity file that was read all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyWarning {
    /// Others than its owner may read the file. A warning, not an error: mounted secrets (Docker, Kubernetes) come so.
    ReadableByOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl fmt::Display for KeyWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadableByOthers { path, mode } => write!(
                f,
                "{path} holds a secret key and others may read it (mode {mode:04o}); `chmod 600 {path}` closes it",
                path = path.display()
            ),
        }
    }
}

impl KeyWarning {
    /// The command that mends it.
    pub fn mend(&self) -> String {
        match self {
            Self::ReadableByOthers { path, .. } => {
                format!("chmod 600 {}", quote_for_shell(&path.display().to_string()))
            }
        }
    }
}

/// The identities of one file.
#[derive(Debug, Clone)]
pub struct IdentityFile {
    /// At least one.
    pub identities: Vec<Identity>,
    /// What to tell the user.
    pub warnings: Vec<KeyWarning>,
}

/// Makes a new key pair.
pub fn generate() -> (Identity, Recipient) {
    let identity = Identity(x25519::Identity::generate());
    let recipient = identity.to_recipient();
    (identity, recipient)
}

/// Parses a list of recipients, keeping their order and dropping repetitions.
///
/// # Errors
/// A text is not a recipient, or there is none.
pub fn parse_recipients<T: AsRef<str>>(texts: &[T]) -> Result<Vec<Recipient>, KeyError> {
    let mut recipients: Vec<Recipient> = Vec::with_capacity(texts.len());
    for text in texts {
        let recipient: Recipient = text.as_ref().parse()?;
        if !recipients.contains(&recipient) {
            recipients.push(recipient);
        }
    }
    if recipients.is_empty() {
        return Err(KeyError::RecipientsEmpty);
    }
    Ok(recipients)
}

/// Parses the text of an identity file: comments, empty lines, and one `AGE-SECRET-KEY-1...` a line. `origin` names
/// where the text is from in errors: a path, or `PGKEEP_IDENTITY`.
///
/// # Errors
/// A line is something else, or there is no key. The text is never part of the error.
pub fn parse_identities(text: &str, origin: &str) -> Result<Vec<Identity>, KeyError> {
    let not_identities = |reason: String| KeyError::NotIdentities {
        origin: origin.to_owned(),
        reason,
    };
    if text.starts_with("age-encryption.org/")
        || text
            .trim_start()
            .starts_with("-----BEGIN AGE ENCRYPTED FILE-----")
    {
        return Err(KeyError::PassphraseProtected {
            origin: origin.to_owned(),
        });
    }
    let mut identities = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index + 1;
        let identity: x25519::Identity = line.parse().map_err(|_| {
            let upper = line.to_ascii_uppercase();
            not_identities(if upper.starts_with("AGE1") {
                format!("line {number} is a public key; to open backups takes the secret one")
            } else if upper.starts_with("AGE-SECRET-KEY-PQ-") || upper.starts_with("AGE-PLUGIN-") {
                format!("line {number} is a key of a kind that pgkeep doesn't use (post-quantum or plugin)")
            } else if upper.starts_with(SECRET_KEY_PREFIX) {
                format!("the key in line {number} is damaged: its checksum fails")
            } else {
                format!("line {number} is neither a comment nor a secret key")
            })
        })?;
        identities.push(Identity(identity));
    }
    if identities.is_empty() {
        return Err(not_identities("there is no secret key in it".to_owned()));
    }
    Ok(identities)
}

/// Reads an identity file. Pipes and `/dev/stdin` work too.
///
/// # Errors
/// The file can't be read, is larger than [`IDENTITY_FILE_BYTES_MAX`], or is no identity file.
pub fn read_identity_file(path: &Path) -> Result<IdentityFile, KeyError> {
    let file_error = |source| KeyError::File {
        action: "read the identity file",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(file_error)?;
    let metadata = file.metadata().map_err(file_error)?;
    let mut warnings = Vec::new();
    let mode = metadata.mode() & 0o777;
    if metadata.is_file() && mode & 0o077 != 0 {
        warnings.push(KeyWarning::ReadableByOthers {
            path: path.to_owned(),
            mode,
        });
    }
    let origin = path.display().to_string();
    // The whole limit at once: a growing vector would leave copies of the key behind in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(IDENTITY_FILE_BYTES_MAX + 1).unwrap_or(0),
    ));
    file.take(IDENTITY_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(file_error)?;
    if bytes.len() as u64 > IDENTITY_FILE_BYTES_MAX {
        let reason = format!("it is larger than {} KiB", IDENTITY_FILE_BYTES_MAX / 1024);
        return Err(KeyError::NotIdentities { origin, reason });
    }
    if bytes.starts_with(b"age-encryption.org/") {
        return Err(KeyError::PassphraseProtected { origin });
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| KeyError::NotIdentities {
        origin: origin.clone(),
        reason: "it is not text".to_owned(),
    })?;
    let identities = parse_identities(text, &origin)?;
    Ok(IdentityFile { identities, warnings })
}

/// Writes a key file as `age-keygen` does (<https://github.com/FiloSottile/age>, cmd/age-keygen), readable by its
/// owner only, durable when this returns. An existing file is never touched.
///
/// # Errors
/// The file exists, or can't be written (nothing is left behind then).
pub fn write_key_file(path: &Path, identity: &Identity, created: Timestamp) -> Result<(), KeyError> {
    let file_error = |action, source| KeyError::File {
        action,
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::AlreadyExists => KeyError::FileExists { path },
                io::ErrorKind::NotFound => KeyError::NoFolder {
                    folder: durable::parent(&path).to_owned(),
                    path,
                },
                _ => file_error("create the key file", source),
            }
        })?;
    let secret = identity.0.to_string();
    let text = Zeroizing::new(format!(
        "# created: {}\n# public key: {}\n{}\n",
        created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        identity.to_recipient(),
        secret.expose_secret()
    ));
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_parent(path));
    written.map_err(|source| {
        // Half a key would be taken for a whole one. Should this fail too, the first error is the one to show.
        let _ = std::fs::remove_file(path);
        file_error("write the key file", source)
    })
}

/// Makes the file's name durable, not only its content.
fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(durable::parent(path))?.sync_all()
}
