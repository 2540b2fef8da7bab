use std::io::{self, Write};

use age::stream::StreamWriter;

use super::stanza::HashStanza;
use super::{Encryption, EncryptionError};

/// The age layer alone, or nothing. Write to it, then [`finish`](EncryptWriter::finish).
pub struct EncryptWriter<W: Write>(EncryptLayer<W>);

enum EncryptLayer<W: Write> {
    Age(Box<StreamWriter<W>>),
    None(W),
}

/// Begins an object whose content is compressed already (zstd frames from elsewhere), or must not be.
///
/// # Errors
/// There is no recipient, or `output` fails.
pub fn encrypt_writer<W: Write>(
    encryption: &Encryption,
    output: W,
) -> Result<EncryptWriter<W>, EncryptionError> {
    begin(encryption, None, output)
}

/// The same for an object that carries the hash of its contents in age's header, where anybody can read it. Without
/// encryption there is no header, and no hash.
///
/// # Errors
/// As [`encrypt_writer`].
pub(crate) fn encrypt_writer_with_hash<W: Write>(
    encryption: &Encryption,
    hash: blake3::Hash,
    output: W,
) -> Result<EncryptWriter<W>, EncryptionError> {
    begin(encryption, Some(HashStanza(hash)), output)
}

fn begin<W: Write>(
    encryption: &Encryption,
    hash: Option<HashStanza>,
    output: W,
) -> Result<EncryptWriter<W>, EncryptionError> {
    let Encryption::Age { recipients } = encryption else {
        return Ok(EncryptWriter(EncryptLayer::None(output)));
    };
    encryption.check_writable()?;
    let readers = recipients.iter().map(|r| r.as_age() as &dyn age::Recipient);
    let first = hash.iter().map(|hash| hash as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(first.chain(readers));
    let encryptor = encryptor.map_err(|error| match error {
        age::EncryptError::MissingRecipients => EncryptionError::NoRecipients,
        age::EncryptError::Io(error) => EncryptionError::Write(error),
        other => EncryptionError::Encrypt(other.to_string()),
    })?;
    Ok(EncryptWriter(EncryptLayer::Age(Box::new(
        encryptor.wrap_output(output).map_err(EncryptionError::Write)?,
    ))))
}

impl<W: Write> EncryptWriter<W> {
    /// Writes what is still held back and gives the writer underneath back. Without it the object is cut off, and
    /// opening it says so.
    ///
    /// # Errors
    /// The writer underneath fails.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            EncryptLayer::Age(writer) => writer.finish(),
            EncryptLayer::None(writer) => Ok(writer),
        }
    }
}

impl<W: Write> Write for EncryptWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            EncryptLayer::Age(writer) => writer.write(bytes),
            EncryptLayer::None(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            EncryptLayer::Age(writer) => writer.flush(),
            EncryptLayer::None(writer) => writer.flush(),
        }
    }
}
