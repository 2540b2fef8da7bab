//! Pieces: what passes from the stream to the workers, up to a frame's contents of blocks of one file or many; and the work
//! on them: zero test, fingerprints, compression.

use std::sync::{Arc, Mutex, PoisonError};

use pgkeep_repository::map::FileRecord;
use pgkeep_repository::pack::{
    BlockAddress, FRAME_CONTENT_BYTES_MAX, Fingerprint, Frame, FrameBuilder, LevelChoice, LooseBlocks,
};

use super::before::Before;
use super::blocks::FileKey;
use crate::error::{Context, PhysicalError};

/// Of a piece in which little has changed: a lone page compresses badly, and one thread can compress so much of each.
const LOOSE_BYTES_MAX: usize = 64 << 10;

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
    /// Of a file that began in an earlier piece: which one it is, and the number of its first block here.
    pub goes_on: Option<(FileKey, u64)>,
    /// How the file is compressed that has the most in it; else as small ones are.
    pub levels: Option<Arc<LevelChoice>>,
}

/// Blocks one after another that are alike in this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    Zeros(u64),
    /// The next ones of those that the piece stores.
    Stored(u32),
    /// The backup before has them, from this address of its own on.
    Referred(BlockAddress, u32),
}

/// Blocks of a piece that are stored.
#[derive(Debug)]
pub enum StoredBlocks {
    None,
    Frame(Frame),
    /// So few that they are worth more in a frame with others.
    Loose(LooseBlocks),
}

/// What became of a piece.
#[derive(Debug)]
pub struct Worked {
    /// Its blocks that aren't zeros and that the backup before doesn't have.
    pub stored: StoredBlocks,
    /// Of all its blocks that aren't zeros.
    pub fingerprints: Vec<Fingerprint>,
    pub steps: Vec<Step<Vec<Run>>>,
    pub zero_bytes: u64,
}

/// What workers share: compressors and buffers, so that they are made once.
pub struct Bench {
    level: i32,
    key: [u8; 32],
    block_bytes: u32,
    before: Option<Arc<Before>>,
    /// How small files are compressed.
    levels: LevelChoice,
    builders: Mutex<Vec<FrameBuilder>>,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Bench {
    pub fn new(level: i32, key: [u8; 32], block_bytes: u32) -> Self {
        Self {
            level,
            key,
            block_bytes,
            before: None,
            levels: LevelChoice::default(),
            builders: Mutex::default(),
            buffers: Mutex::default(),
        }
    }

    /// Refers to the blocks of an earlier backup; the key must be its own.
    pub fn with_before(mut self, before: Option<Arc<Before>>) -> Self {
        self.before = before;
        self
    }

    /// The size of blocks.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// For the frames of few blocks each of several pieces.
    pub fn builder(&self) -> Result<FrameBuilder, PhysicalError> {
        FrameBuilder::new(self.level, self.key, self.block_bytes).context(|| "compressing".to_owned())
    }

    /// An empty piece.
    pub fn piece(&self) -> Piece {
        let buffer = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Piece {
            buffer: buffer.unwrap_or_else(|| Vec::with_capacity(FRAME_CONTENT_BYTES_MAX)),
            steps: Vec::new(),
            goes_on: None,
            levels: None,
        }
    }

    /// Does all that is to be done to a piece. Bound by CPU.
    pub fn work(&self, piece: Piece) -> Result<Worked, PhysicalError> {
        let compressing = || "compressing".to_owned();
        let pooled = self.builders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut builder = match pooled {
            Some(builder) => builder,
            None => self.builder()?,
        };
        let Piece {
            mut buffer,
            steps,
            goes_on: mut place,
            levels,
        } = piece;
        let mut rest = buffer.as_slice();
        let mut work = Work {
            builder: &mut builder,
            fingerprints: Vec::new(),
            zero_bytes: 0,
        };
        let mut done = Vec::with_capacity(steps.len());
        for step in steps {
            done.push(match step {
                Step::Begin(head) => {
                    place = self
                        .before
                        .is_some()
                        .then(|| (FileKey::of(head.root, &head.path), 0));
                    Step::Begin(head)
                }
                Step::End => {
                    place = None;
                    Step::End
                }
                Step::Whole(record) => Step::Whole(record),
                Step::Blocks(bytes) => {
                    let (blocks, after) = rest
                        .split_at_checked(bytes)
                        .ok_or_else(|| PhysicalError::internal("a piece lacks some of its blocks"))?;
                    rest = after;
                    Step::Blocks(self.blocks(blocks, &mut place, &mut work)?)
                }
            });
        }
        let Work {
            fingerprints,
            zero_bytes,
            ..
        } = work;
        let levels = levels.as_deref().unwrap_or(&self.levels);
        let stored = match builder.take_loose(LOOSE_BYTES_MAX) {
            Some(loose) => StoredBlocks::Loose(loose),
            None => match builder.finish(levels).context(compressing)? {
                Some(frame) => StoredBlocks::Frame(frame),
                None => StoredBlocks::None,
            },
        };
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
            stored,
            fingerprints,
            steps: done,
            zero_bytes,
        })
    }

    fn blocks(
        &self,
        blocks: &[u8],
        place: &mut Option<(FileKey, u64)>,
        work: &mut Work<'_>,
    ) -> Result<Vec<Run>, PhysicalError> {
        let mut runs: Vec<Run> = Vec::new();
        let blocks = blocks.chunks(self.block_bytes as usize);
        let held = match (&self.before, place) {
            (Some(before), Some((key, from))) => {
                let held = before.held(*key, *from, blocks.len());
                *from += blocks.len() as u64;
                held
            }
            _ => Vec::new(),
        };
        let held = held.into_iter().chain(std::iter::repeat(None));
        for (block, held) in blocks.zip(held) {
            if is_zeros(block) {
                work.zero_bytes += block.len() as u64;
                match runs.last_mut() {
                    Some(Run::Zeros(count)) => *count += 1,
                    _ => runs.push(Run::Zeros(1)),
                }
                continue;
            }
            let fingerprint = work.builder.fingerprint(block);
            work.fingerprints.push(fingerprint);
            if let Some(held) = held.filter(|held| held.fingerprint == fingerprint) {
                match runs.last_mut() {
                    Some(Run::Referred(first, count))
                        if first.pack == held.at.pack && first.block + *count == held.at.block =>
                    {
                        *count += 1;
                    }
                    _ => runs.push(Run::Referred(held.at, 1)),
                }
                continue;
            }
            if !work.builder.push_known(block, fingerprint) {
                return Err(PhysicalError::internal(
                    "a piece has more blocks than a frame takes",
                ));
            }
            match runs.last_mut() {
                Some(Run::Stored(count)) => *count += 1,
                _ => runs.push(Run::Stored(1)),
            }
        }
        Ok(runs)
    }
}

/// What becomes of a piece, while it is worked on.
struct Work<'a> {
    builder: &'a mut FrameBuilder,
    fingerprints: Vec<Fingerprint>,
    zero_bytes: u64,
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
        assert!(matches!(worked.stored, StoredBlocks::Loose(loose) if loose.blocks() == 2));
        // The next one finds nothing of this one.
        let none = bench.work(bench.piece()).unwrap().stored;
        assert!(matches!(none, StoredBlocks::None));
        let mut large = bench.piece();
        large.buffer.resize(100 << 10, 1);
        large.steps = vec![Step::Blocks(100 << 10)];
        let large = bench.work(large).unwrap().stored;
        assert!(matches!(large, StoredBlocks::Frame(frame) if frame.entry.blocks() == 100));
    }

    /// Only what is the same at the same place is referred to, also where a file goes on in a further piece.
    #[test]
    fn blocks_that_the_backup_before_has_there_are_referred_to() {
        const KEY: [u8; 32] = [1; 32];
        const BLOCK: usize = 1024;
        let block = |number: u8| vec![number; BLOCK];
        let before: Vec<Fingerprint> = (1..=6)
            .map(|number| pgkeep_repository::pack::fingerprint(&KEY, &block(number)))
            .collect();
        let (root, path) = (0, b"base/1/2".to_vec());
        let before = Before::of_blocks(KEY, FileKey::of(root, &path), &before);
        let bench = Bench::new(1, KEY, 1024).with_before(Some(Arc::new(before)));
        let head = |path: &[u8]| FileHead {
            root,
            path: path.to_vec(),
            mode: 0o600,
            size: 0,
            modified_at: 0,
        };
        let runs = |steps: Vec<Step<usize>>, goes_on, numbers: &[u8]| {
            let piece = Piece {
                buffer: numbers.iter().flat_map(|number| block(*number)).collect(),
                steps,
                goes_on,
                levels: None,
            };
            let worked = bench.work(piece).unwrap();
            let runs = worked.steps.into_iter().filter_map(|step| match step {
                Step::Blocks(runs) => Some(runs),
                _ => None,
            });
            (runs.flatten().collect::<Vec<_>>(), worked.fingerprints.len())
        };
        let referred = |block, count| Run::Referred(BlockAddress { pack: 0, block }, count);
        let all = Step::Blocks(5 * BLOCK);
        let (found, fingerprints) = runs(vec![Step::Begin(head(&path)), all], None, &[1, 2, 9, 0, 5]);
        let expected = [referred(0, 2), Run::Stored(1), Run::Zeros(1), referred(4, 1)];
        assert_eq!((found.as_slice(), fingerprints), (&expected[..], 4));
        // Moved, in another file, or of nobody knows which file: stored.
        let begun = vec![Step::Begin(head(&path)), Step::Blocks(2 * BLOCK)];
        assert_eq!(runs(begun, None, &[2, 1]).0, [Run::Stored(2)]);
        let other = vec![Step::Begin(head(b"base/1/3")), Step::Blocks(2 * BLOCK)];
        assert_eq!(runs(other, None, &[1, 2]).0, [Run::Stored(2)]);
        assert_eq!(runs(vec![Step::Blocks(BLOCK)], None, &[1]).0, [Run::Stored(1)]);
        // It goes on, beyond where it ended, and another one begins.
        let goes_on = Some((FileKey::of(root, &path), 4));
        let steps = vec![
            Step::Blocks(2 * BLOCK),
            Step::Blocks(BLOCK),
            Step::End,
            Step::Begin(head(&path)),
            Step::Blocks(BLOCK),
        ];
        let (found, _) = runs(steps, goes_on, &[5, 6, 7, 1]);
        assert_eq!(found, [referred(4, 2), Run::Stored(1), referred(0, 1)]);
    }
}
