//! One output stream: compressed, encrypted, into a file or an object; there when it is whole, and not before.

use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use pgkeep_repository::compression::FrameWriter;
use pgkeep_repository::encryption::{self, COMPRESSION_LEVEL_DEFAULT, EncryptWriter, Encryption};
use pgkeep_store::{ObjectWriter, Store, StoreOptions};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::{Context, DumpError};
use crate::partial::Partial;

/// How a file is compressed, told by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// By the ending, before an `.age` if there is one.
    pub fn of_name(name: &str) -> Self {
        let name = name.strip_suffix(".age").unwrap_or(name);
        match Path::new(name)
            .extension()
            .and_then(|extension| extension.to_str())
        {
            Some("gz") => Self::Gzip,
            Some("zst") => Self::Zstd,
            _ => Self::None,
        }
    }
}

const BLOCKS_WAITING_MAX: usize = 4;

/// The stream. [`Output::finish`] it; dropped, nothing of it stays.
pub struct Output {
    input: mpsc::Sender<Option<Bytes>>,
    encoder: JoinHandle<std::io::Result<()>>,
    sink: JoinHandle<Result<u64, DumpError>>,
    /// The file, where it is one. It goes when this does, whatever the stages are doing: a process that was interrupted
    /// doesn't wait for them.
    partial: Option<Partial>,
}

impl Output {
    /// Begins a file at a path, or an object at a URL.
    ///
    /// # Errors
    /// It exists; the disk's or the store's.
    pub async fn create(
        place: &str,
        store: &StoreOptions,
        compression: Compression,
        encryption: &Encryption,
    ) -> Result<Self, DumpError> {
        let (sink, partial) = Sink::create(place, store).await?;
        let (input, input_blocks) = mpsc::channel(BLOCKS_WAITING_MAX);
        let (output, output_blocks) = mpsc::channel(BLOCKS_WAITING_MAX);
        let encryption = encryption.clone();
        let encoder = tokio::task::spawn_blocking(move || {
            encode(compression, &encryption, input_blocks, ChannelWriter(output))
        });
        Ok(Self {
            input,
            encoder,
            sink: tokio::spawn(sink.take_all(output_blocks)),
            partial,
        })
    }

    /// Adds contents.
    ///
    /// # Errors
    /// A later stage failed; [`Output::finish`] would say why, so it is asked at once.
    pub async fn write(&mut self, contents: Bytes) -> Result<(), DumpError> {
        if self.input.send(Some(contents)).await.is_ok() {
            return Ok(());
        }
        Err(self.failure().await)
    }

    async fn failure(&mut self) -> DumpError {
        let ended = ended(&mut self.encoder, &mut self.sink).await;
        ended.err().unwrap_or_else(cut_off)
    }

    /// Ends the stream and makes it durable under its name. Returns its size in bytes.
    ///
    /// # Errors
    /// The disk's or the store's.
    pub async fn finish(mut self) -> Result<u64, DumpError> {
        if self.input.send(None).await.is_err() {
            return Err(self.failure().await);
        }
        let written = ended(&mut self.encoder, &mut self.sink).await?;
        match self.partial {
            Some(partial) => partial.finish().await,
            None => Ok(written),
        }
    }
}

/// What became of the stages. Of two that failed, the one that stopped because the other was gone doesn't know why.
async fn ended(
    encoder: &mut JoinHandle<std::io::Result<()>>,
    sink: &mut JoinHandle<Result<u64, DumpError>>,
) -> Result<u64, DumpError> {
    let died = |error| DumpError::Internal(format!("a stage of the output died: {error}"));
    match encoder.await.map_err(died)? {
        Err(error) if error.kind() != GONE => Err(error).context(|| "compressing the output".to_owned()),
        encoded => {
            let written = sink.await.map_err(died)??;
            encoded.context(|| "compressing the output".to_owned())?;
            Ok(written)
        }
    }
}

/// The kind of error of a stage whose next one is gone.
const GONE: std::io::ErrorKind = std::io::ErrorKind::BrokenPipe;

fn gone<T>(_: T) -> std::io::Error {
    std::io::Error::new(GONE, "the writing stage is gone")
}

/// The end of a stream is said, never inferred from a stage that is gone.
struct ChannelWriter(mpsc::Sender<Option<Bytes>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Some(Bytes::copy_from_slice(bytes)));
        sent.map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn encode(
    compression: Compression,
    encryption: &Encryption,
    input: mpsc::Receiver<Option<Bytes>>,
    output: ChannelWriter,
) -> std::io::Result<()> {
    const BUFFER_BYTES: usize = 128 << 10;
    let end = output.0.clone();
    let buffered = std::io::BufWriter::with_capacity(BUFFER_BYTES, output);
    let encrypted = encryption::encrypt_writer(encryption, buffered).map_err(std::io::Error::other)?;
    let finished: Option<EncryptWriter<_>> = match compression {
        Compression::None => pump(input, encrypted)?,
        Compression::Gzip => {
            let encoder = flate2::write::GzEncoder::new(encrypted, flate2::Compression::default());
            pump(input, encoder)?
                .map(flate2::write::GzEncoder::finish)
                .transpose()?
        }
        Compression::Zstd => {
            let encoder = FrameWriter::new(COMPRESSION_LEVEL_DEFAULT, encrypted)?;
            pump(input, encoder)?.map(FrameWriter::finish).transpose()?
        }
    };
    // Cut off: the sink must not take it for the end.
    let Some(encrypted) = finished else { return Ok(()) };
    encrypted.finish()?.flush()?;
    end.blocking_send(None).map_err(gone)
}

/// Gives the writer back when the input ended, and nothing when it was cut off.
fn pump<W: Write>(mut input: mpsc::Receiver<Option<Bytes>>, mut writer: W) -> std::io::Result<Option<W>> {
    while let Some(block) = input.blocking_recv() {
        match block {
            Some(block) => writer.write_all(&block)?,
            None => return Ok(Some(writer)),
        }
    }
    Ok(None)
}

enum Sink {
    File(tokio::fs::File, PathBuf),
    Object(Box<ObjectWriter>),
}

impl Sink {
    async fn create(place: &str, options: &StoreOptions) -> Result<(Self, Option<Partial>), DumpError> {
        if let Some((parent, name)) = place.rsplit_once('/').filter(|_| place.contains("://")) {
            let from_store = |error| DumpError::Repository(pgkeep_repository::RepositoryError::Store(error));
            let store = Store::open(parent, options).await.map_err(from_store)?;
            let writer = store.put_stream(name).await.map_err(from_store)?;
            return Ok((Self::Object(Box::new(writer)), None));
        }
        let (partial, file) = Partial::file(Path::new(place))?;
        let path = partial.place().to_path_buf();
        Ok((Self::File(file.into(), path), Some(partial)))
    }

    /// Takes all blocks up to the one that says the end. Returns their size in bytes.
    async fn take_all(self, mut blocks: mpsc::Receiver<Option<Bytes>>) -> Result<u64, DumpError> {
        match self {
            Self::Object(mut writer) => {
                let from_store =
                    |error| DumpError::Repository(pgkeep_repository::RepositoryError::Store(error));
                while let Some(block) = blocks.recv().await {
                    match block {
                        Some(block) => writer.write(block).await.map_err(from_store)?,
                        None => return writer.finish().await.map_err(from_store),
                    }
                }
                writer.abort().await;
                Err(cut_off())
            }
            Self::File(mut file, path) => {
                let context = || format!("writing {}", path.display());
                let mut bytes = 0;
                while let Some(block) = blocks.recv().await {
                    let Some(block) = block else {
                        file.flush().await.context(context)?;
                        file.sync_all().await.context(context)?;
                        return Ok(bytes);
                    };
                    file.write_all(&block).await.context(context)?;
                    bytes += block.len() as u64;
                }
                Err(cut_off())
            }
        }
    }
}

fn cut_off() -> DumpError {
    DumpError::Internal("the output was cut off before its end".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_stage_that_failed_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("out").display().to_string();
        let nobody = Encryption::Age {
            recipients: Vec::new(),
        };
        let mut output = Output::create(&place, &StoreOptions::default(), Compression::Zstd, &nobody)
            .await
            .unwrap();
        let mut failed = Ok(());
        while failed.is_ok() {
            failed = output.write(Bytes::from_static(b"x")).await;
        }
        let error = failed.unwrap_err().to_string();
        assert!(
            error.starts_with("compressing the output") && error.contains("recipient"),
            "{error}"
        );
        drop(output);

        // A disk that is full, behind a compressor that only finds it gone.
        let full = DumpError::Internal("the disk is full".to_owned());
        let mut sink = tokio::spawn(async { Err(full) });
        let mut encoder = tokio::spawn(async { Err(gone(())) });
        let error = ended(&mut encoder, &mut sink).await.unwrap_err();
        assert!(error.to_string().contains("the disk is full"), "{error}");
    }
}
