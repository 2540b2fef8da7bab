//! Rows into objects: the stage that hashes, compresses, encrypts and cuts, on a thread of its own.

use pgkeep_repository::object::{SealedObject, Sealer};
use pgkeep_repository::{Access, RepositoryError};
use tokio::sync::mpsc;

use crate::binary::{self, RowStream};
use crate::data::RelationRead;
use crate::manifest::{RowFormat, Segment};

/// What a reader hands to its packer.
pub enum PackInput {
    /// A relation begins. One in the binary format has objects of its own: a [`PackInput::Cut`] comes before and after.
    Begin {
        /// Its place in the manifest's list.
        relation: u32,
        /// How its rows come.
        format: RowFormat,
        /// What is written before each of its blocks in a script: `COPY ... FROM stdin;`, without the line's end.
        copy_line: String,
    },
    /// What the server sends of the rows; a long row comes in several pieces.
    Rows(Vec<u8>),
    /// The relation ends.
    End,
    /// The object is to be finished: what comes next belongs into another.
    Cut,
}

/// What a packer hands on.
pub enum PackOutput {
    /// An object is ready to be stored.
    Object {
        /// The object.
        sealed: SealedObject,
        /// Its COPY blocks.
        segments: Vec<Segment>,
    },
    /// A relation has been read to its end.
    RelationDone {
        /// Its place in the manifest's list.
        relation: u32,
        /// Its rows, in what the server sent.
        read: RelationRead,
    },
    /// The packer failed.
    Failed(RepositoryError),
}

/// The first lines of every data object: it must load right whatever the session was set to before.
pub fn preamble(client_encoding: &str) -> String {
    format!(
        "SET client_encoding = '{client_encoding}';\nSET statement_timeout = 0;\nSET lock_timeout = 0;\n\
         SET idle_in_transaction_session_timeout = 0;\nSET datestyle = ISO;\nSET intervalstyle = postgres;\n\
         SET row_security = off;\nSET search_path = '';\n"
    )
}

/// What follows the rows of a block.
pub const BLOCK_END: &[u8] = b"\\.\n";

/// Limits of one object.
#[derive(Debug, Clone, Copy)]
pub struct PartLimits {
    /// An object is cut when it has grown to this, in bytes as stored.
    pub stored_bytes_max: usize,
    /// Or its contents to this: very compressible rows must not make one object of a whole database.
    pub plain_bytes_max: u64,
}

struct Current {
    relation: u32,
    copy_line: String,
    digest: RowDigest,
}

/// What the rows of a relation are known by: their number, size and hash.
pub struct RowDigest {
    /// For the binary format.
    stream: Option<RowStream>,
    hasher: blake3::Hasher,
    rows: u64,
    bytes: u64,
}

/// Rows out of what the server sent.
struct Rows<'a> {
    bytes: &'a [u8],
    count: u64,
    /// Whether they end where a row does.
    are_whole: bool,
}

impl RowDigest {
    /// Of no rows yet.
    pub fn new(format: RowFormat) -> Self {
        Self {
            stream: (format == RowFormat::Binary).then(RowStream::default),
            hasher: blake3::Hasher::new(),
            rows: 0,
            bytes: 0,
        }
    }

    /// Adds what the server sent.
    ///
    /// # Errors
    /// It isn't what COPY sends.
    pub fn add(&mut self, messages: &[u8]) -> Result<(), RepositoryError> {
        self.rows_in(messages).map(drop)
    }

    fn rows_in<'a>(&mut self, messages: &'a [u8]) -> Result<Rows<'a>, RepositoryError> {
        let rows = match &mut self.stream {
            Some(stream) => {
                let rows = stream.rows(messages);
                let (bytes, count) = rows.map_err(|error| internal(&error.to_string()))?;
                let are_whole = stream.is_between_rows();
                Rows {
                    bytes,
                    count,
                    are_whole,
                }
            }
            None => Rows {
                bytes: messages,
                count: binary::text_rows(messages),
                are_whole: messages.ends_with(b"\n"),
            },
        };
        self.hasher.update(rows.bytes);
        self.rows += rows.count;
        self.bytes += rows.bytes.len() as u64;
        Ok(rows)
    }

    /// All of them.
    ///
    /// # Errors
    /// The binary stream has no end.
    pub fn finish(self) -> Result<RelationRead, RepositoryError> {
        if self.stream.is_some_and(|stream| !stream.is_whole()) {
            return Err(internal("the server's binary rows have no end"));
        }
        Ok(RelationRead {
            rows: self.rows,
            bytes: self.bytes,
            hash: self.hasher.finalize(),
        })
    }
}

struct Packer {
    access: std::sync::Arc<Access>,
    preamble: String,
    limits: PartLimits,
    output: mpsc::Sender<PackOutput>,
    buffers: mpsc::Sender<Vec<u8>>,
    object: Option<(Sealer, Vec<Segment>)>,
    block_open: bool,
    current: Option<Current>,
}

/// The packer's loop. Ends when its input ends; blocking. Emptied buffers go back through `buffers`.
pub fn run(
    access: std::sync::Arc<Access>,
    client_encoding: &str,
    limits: PartLimits,
    mut input: mpsc::Receiver<PackInput>,
    output: mpsc::Sender<PackOutput>,
    buffers: mpsc::Sender<Vec<u8>>,
) {
    let preamble = preamble(client_encoding);
    let mut packer = Packer {
        access,
        preamble,
        limits,
        output,
        buffers,
        object: None,
        block_open: false,
        current: None,
    };
    while let Some(message) = input.blocking_recv() {
        if let Err(error) = packer.take(message) {
            // Nobody listens any more when the dump has failed elsewhere.
            let _ = packer.output.blocking_send(PackOutput::Failed(error));
            return;
        }
    }
}

impl Packer {
    fn take(&mut self, message: PackInput) -> Result<(), RepositoryError> {
        match message {
            PackInput::Begin {
                relation,
                format,
                copy_line,
            } => {
                self.current = Some(Current {
                    relation,
                    copy_line,
                    digest: RowDigest::new(format),
                });
                Ok(())
            }
            PackInput::Rows(mut rows) => {
                self.rows(&rows)?;
                rows.clear();
                // With enough buffers under way this one may go.
                let _ = self.buffers.try_send(rows);
                Ok(())
            }
            PackInput::End => {
                self.close_block()?;
                let current = self
                    .current
                    .take()
                    .ok_or_else(|| internal("a relation ends that never began"))?;
                self.send(PackOutput::RelationDone {
                    relation: current.relation,
                    read: current.digest.finish()?,
                })
            }
            PackInput::Cut => self.cut(),
        }
    }

    fn rows(&mut self, messages: &[u8]) -> Result<(), RepositoryError> {
        let current = self
            .current
            .as_mut()
            .ok_or_else(|| internal("rows of no relation"))?;
        let rows = current.digest.rows_in(messages)?;
        if rows.bytes.is_empty() {
            return Ok(());
        }
        self.open_block()?;
        let (sealer, segments) = self
            .object
            .as_mut()
            .ok_or_else(|| internal("rows outside an object"))?;
        sealer.write(rows.bytes)?;
        let segment = segments
            .last_mut()
            .ok_or_else(|| internal("rows outside a block"))?;
        segment.rows += rows.count;
        segment.bytes += rows.bytes.len() as u64;
        let full = sealer.sealed_bytes() >= self.limits.stored_bytes_max
            || sealer.plain_bytes() >= self.limits.plain_bytes_max;
        // An object ends where a row does.
        if full && rows.are_whole {
            self.cut()
        } else {
            Ok(())
        }
    }

    /// Begins a block of the current relation, and an object where there is none. Only when there are rows: an empty
    /// table needs neither.
    fn open_block(&mut self) -> Result<(), RepositoryError> {
        if self.block_open {
            return Ok(());
        }
        let current = self
            .current
            .as_ref()
            .ok_or_else(|| internal("a block of no relation"))?;
        if self.object.is_none() {
            let mut sealer = Sealer::new(&self.access)?;
            if current.digest.stream.is_none() {
                sealer.write(self.preamble.as_bytes())?;
            }
            self.object = Some((sealer, Vec::new()));
        }
        let (sealer, segments) = self
            .object
            .as_mut()
            .ok_or_else(|| internal("a block outside an object"))?;
        match current.digest.stream {
            Some(_) if !segments.is_empty() => {
                return Err(internal("binary rows in an object that holds others"));
            }
            Some(_) => sealer.write(binary::HEADER)?,
            None => sealer.write(format!("{}\n", current.copy_line).as_bytes())?,
        }
        segments.push(Segment {
            relation: current.relation,
            rows: 0,
            bytes: 0,
        });
        self.block_open = true;
        Ok(())
    }

    fn close_block(&mut self) -> Result<(), RepositoryError> {
        if self.block_open
            && let Some((sealer, _)) = self.object.as_mut()
        {
            let binary = self
                .current
                .as_ref()
                .is_some_and(|current| current.digest.stream.is_some());
            sealer.write(if binary { binary::TRAILER } else { BLOCK_END })?;
        }
        self.block_open = false;
        Ok(())
    }

    fn cut(&mut self) -> Result<(), RepositoryError> {
        self.close_block()?;
        let Some((sealer, segments)) = self.object.take() else {
            return Ok(());
        };
        let sealed = sealer.finish()?;
        self.send(PackOutput::Object { sealed, segments })
    }

    fn send(&self, output: PackOutput) -> Result<(), RepositoryError> {
        self.output
            .blocking_send(output)
            .map_err(|_| internal("the stage after the packer is gone"))
    }
}

fn internal(what: &str) -> RepositoryError {
    RepositoryError::Internal(what.to_owned())
}
