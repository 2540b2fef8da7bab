//! Pieces: what passes from the stream to the workers, up to a frame's contents of blocks of one file or many; and the work
//! on them: zero test, fingerprints, compression.

use std::sync::{Mutex, PoisonError};

use pgkeep_repository::map::FileRecord;
use pgkeep_repository::pack::{FRAME_CONTENT_BYTES_MAX, Frame, FrameBuilder};

use crate::error::{Context, PhysicalError};

/// What belongs to the record of a file before its blocks are known.
#[derive(Debug)]
pub struct FileHead {
    pub root: u32,
    pub path: Vec<u8>,
    pub mode: u32,
    pub size: u64,
    pub modified_at: u64,
}

/// What a piece holds, in order. A file may go through several of them.
#[derive(Debug)]
pub enum Step<B> {
    /// A file begins.
    Begin(FileHead),
    /// Its next blocks.
    Blocks(B),
    /// It has ended.
    End,
    /// A directory or a link.
    Whole(FileRecord),
}

/// A piece on its way to a worker. Blocks are told by their bytes in the buffer, which follow one another; all are of the
/// usual size but a file's last one.
#[derive(Debug)]
pub struct Piece {
    pub buffer: Vec<u8>,
    pub steps: Vec<Step<usize>>,
}

/// Blocks one after another that are alike in this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    Zeros(u64),
    Stored(u32),
}

/// What became of a piece.
#[derive(Debug)]
pub struct Worked {
    /// Its blocks that aren't zeros.
    pub frame: Option<Frame>,
    pub steps: Vec<Step<Vec<Run>>>,
    pub zero_bytes: u64,
}

/// What workers share: compressors and buffers, so that they are made once.
pub struct Bench {
    level: i32,
    key: [u8; 32],
    block_bytes: u32,
    builders: Mutex<Vec<FrameBuilder>>,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Bench {
    pub fn new(level: i32, key: [u8; 32], block_bytes: u32) -> Self {
        Self {
            level,
            key,
            block_bytes,
            builders: Mutex::default(),
            buffers: Mutex::default(),
        }
    }

    /// An empty piece.
    pub fn piece(&self) -> Piece {
        let buffer = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Piece {
            buffer: buffer.unwrap_or_else(|| Vec::with_capacity(FRAME_CONTENT_BYTES_MAX)),
            steps: Vec::new(),
        }
    }

    /// Does all that is to be done to a piece. Bound by CPU.
    pub fn work(&self, piece: Piece) -> Result<Worked, PhysicalError> {
        let compressing = || "compressing".to_owned();
        let pooled = self.builders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut builder = match pooled {
            Some(builder) => builder,
            None => FrameBuilder::new(self.level, self.key, self.block_bytes).context(compressing)?,
        };
        let Piece { mut buffer, steps } = piece;
        let mut rest = buffer.as_slice();
        let mut zero_bytes = 0;
        let mut done = Vec::with_capacity(steps.len());
        for step in steps {
            done.push(match step {
                Step::Begin(head) => Step::Begin(head),
                Step::End => Step::End,
                Step::Whole(record) => Step::Whole(record),
                Step::Blocks(bytes) => {
                    let (blocks, after) = rest
                        .split_at_checked(bytes)
                        .ok_or_else(|| PhysicalError::internal("a piece lacks some of its blocks"))?;
                    rest = after;
                    Step::Blocks(self.blocks(blocks, &mut builder, &mut zero_bytes)?)
                }
            });
        }
        let frame = builder.finish().context(compressing)?;
        buffer.clear();
        self.builders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(builder);
        self.buffers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(buffer);
        Ok(Worked {
            frame,
            steps: done,
            zero_bytes,
        })
    }

    fn blocks(
        &self,
        blocks: &[u8],
        builder: &mut FrameBuilder,
        zero_bytes: &mut u64,
    ) -> Result<Vec<Run>, PhysicalError> {
        let mut runs: Vec<Run> = Vec::new();
        for block in blocks.chunks(self.block_bytes as usize) {
            let zeros = is_zeros(block);
            if zeros {
                *zero_bytes += block.len() as u64;
            } else if !builder.push(block) {
                return Err(PhysicalError::internal(
                    "a piece has more blocks than a frame takes",
                ));
            }
            match (runs.last_mut(), zeros) {
                (Some(Run::Zeros(count)), true) => *count += 1,
                (Some(Run::Stored(count)), false) => *count += 1,
                (_, true) => runs.push(Run::Zeros(1)),
                (_, false) => runs.push(Run::Stored(1)),
            }
        }
        Ok(runs)
    }
}

/// Most blocks have something in their first bytes.
fn is_zeros(block: &[u8]) -> bool {
    const STEP_BYTES: usize = 512;
    block
        .chunks(STEP_BYTES)
        .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_told_from_blocks() {
        let bench = Bench::new(1, [1; 32], 1024);
        let mut piece = bench.piece();
        piece.buffer.extend_from_slice(&[0; 2048]);
        piece.buffer.extend_from_slice(&[1; 1024]);
        piece.buffer.extend_from_slice(&[0; 100]);
        let mut last = [0; 1024];
        last[1023] = 1;
        piece.buffer.extend_from_slice(&last);
        piece.steps = vec![Step::Blocks(2048 + 1024 + 100), Step::Blocks(1024)];
        let worked = bench.work(piece).unwrap();
        assert_eq!(worked.zero_bytes, 2148);
        let runs: Vec<_> = worked
            .steps
            .iter()
            .map(|step| match step {
                Step::Blocks(runs) => runs.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            runs,
            [
                vec![Run::Zeros(2), Run::Stored(1), Run::Zeros(1)],
                vec![Run::Stored(1)]
            ]
        );
        assert_eq!(worked.frame.unwrap().entry.blocks(), 2);
        // The next one finds nothing of this one.
        assert!(bench.work(bench.piece()).unwrap().frame.is_none());
    }
}
