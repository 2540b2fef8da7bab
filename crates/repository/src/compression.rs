//! Compression: zstd frames of at most a megabyte of contents each, one after another.
//!
//! A frame whose contents lie in memory as one piece is compressed a fifth to a third faster than a stream that never
//! ends: once a stream has filled its window, zstd looks for matches in two separate pieces
//! (`ZSTD_compressBlock_doubleFast_extDict`). What is lost are matches over the frames' borders.
//!
//! Blocking and bound by CPU: call it off the async threads.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};

use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

/// Contents of one frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// zstd's own tables of levels 3 and 4 (`ZSTD_dfast`) take 768 KiB, more than the second-level cache of many server
/// processors. These take 384 KiB: a tenth faster on rows, and no larger.
const FAST_LEVELS: std::ops::RangeInclusive<i32> = 3..=4;
const FAST_HASH_LOG: u32 = 16;
const FAST_CHAIN_LOG: u32 = 15;

/// Compresses frames, one at a time; for a thread of its own.
pub struct FrameCompressor {
    compressor: Compressor<'static>,
    /// Where [`FrameCompressor::compress_as`] is asked.
    fast: Option<Compressor<'static>>,
}

/// Contents that tell how they are compressed best, in bytes. zstd has other parameters for what has 256 KiB or less.
const SAMPLE_BYTES: usize = 512 << 10;
/// After so many frames of a file its next one is tried again.
const CHOICE_FRAMES: u32 = 64;
/// What is faster may make the sample larger by one part in so many.
const LARGER_BY: usize = 256;
/// zstd's fastest strategy with shorter matches than its own level has (7), in a table of 64 KiB. Pages of tables and indexes it
/// compresses better than level 3, in half the time; the first one that does as well as the level that was asked for is taken.
const FAST_MIN_MATCHES: [u32; 2] = [5, 6];
const FAST_TABLE_LOG: u32 = 14;

/// How what one file holds is compressed best, as far as it is known: shared by all who compress parts of it.
#[derive(Debug, Default)]
pub struct LevelChoice {
    /// Of [`FAST_MIN_MATCHES`]; 0: the level that was asked for.
    min_match: AtomicU32,
    frames_to_trial: AtomicU32,
}

impl FrameCompressor {
    /// With a zstd level.
    ///
    /// # Errors
    /// zstd refuses the level.
    pub fn new(level: i32) -> io::Result<Self> {
        let mut compressor = Compressor::new(level)?;
        compressor.include_checksum(true)?;
        if FAST_LEVELS.contains(&level) {
            compressor.set_parameter(CParameter::HashLog(FAST_HASH_LOG))?;
            compressor.set_parameter(CParameter::ChainLog(FAST_CHAIN_LOG))?;
        }
        let fast = match level > FASTEST_LEVEL {
            true => {
                let mut fast = Compressor::new(FASTEST_LEVEL)?;
                fast.include_checksum(true)?;
                fast.set_parameter(CParameter::HashLog(FAST_TABLE_LOG))?;
                Some(fast)
            }
            false => None,
        };
        Ok(Self { compressor, fast })
    }

    /// As [`FrameCompressor::compress`], by zstd's fastest strategy where that does as well.
    ///
    /// # Errors
    /// zstd fails.
    pub fn compress_as(
        &mut self,
        contents: &[u8],
        frame: &mut Vec<u8>,
        choice: &LevelChoice,
    ) -> io::Result<()> {
        match self.choose(contents, frame, choice)? {
            0 => self.compress(contents, frame),
            min_match => self.compress_fast(contents, frame, min_match),
        }
    }

    fn compress_fast(&mut self, contents: &[u8], frame: &mut Vec<u8>, min_match: u32) -> io::Result<()> {
        let Some(fast) = &mut self.fast else {
            return self.compress(contents, frame);
        };
        fast.set_parameter(CParameter::MinMatch(min_match))?;
        compress_with(fast, contents, frame)
    }

    fn choose(&mut self, contents: &[u8], frame: &mut Vec<u8>, choice: &LevelChoice) -> io::Result<u32> {
        let known = choice.min_match.load(Ordering::Relaxed);
        let Some(sample) = contents.get(..SAMPLE_BYTES).filter(|_| self.fast.is_some()) else {
            return Ok(known);
        };
        let left = &choice.frames_to_trial;
        let wait = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if wait.is_ok() {
            return Ok(known);
        }
        // The others needn't try meanwhile.
        left.store(CHOICE_FRAMES, Ordering::Relaxed);
        self.compress(sample, frame)?;
        let permitted = frame.len() + frame.len() / LARGER_BY;
        let mut suits = 0;
        for min_match in FAST_MIN_MATCHES {
            self.compress_fast(sample, frame, min_match)?;
            if frame.len() <= permitted {
                suits = min_match;
                break;
            }
        }
        choice.min_match.store(suits, Ordering::Relaxed);
        Ok(suits)
    }

    /// Makes one frame of the contents, which tells their size and ends with a checksum; `frame` is emptied before.
    ///
    /// # Errors
    /// zstd fails.
    pub fn compress(&mut self, contents: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        compress_with(&mut self.compressor, contents, frame)
    }
}

fn compress_with(
    compressor: &mut Compressor<'static>,
    contents: &[u8],
    frame: &mut Vec<u8>,
) -> io::Result<()> {
    frame.clear();
    frame.reserve(zstd::zstd_safe::compress_bound(contents.len()));
    compressor.compress_to_buffer(contents, frame)?;
    Ok(())
}

/// The fastest of zstd's ordinary levels. What hardly repeats, as identifiers, hashes and measurements, it compresses as well
/// as the next ones or better, for two thirds of the time.
const FASTEST_LEVEL: i32 = 1;
/// Both levels are tried on one of so many frames; the better one makes those up to the next trial.
const TRIAL_FRAMES: u32 = 16;

/// Compresses what is written to it. [`finish`](FrameWriter::finish) must end it.
pub struct FrameWriter<W: Write> {
    compressor: FrameCompressor,
    /// Where the level is a higher one.
    fastest: Option<FrameCompressor>,
    /// By the last trial.
    is_fastest_better: bool,
    frames_to_trial: u32,
    output: W,
    /// Contents of the next frame.
    waiting: Vec<u8>,
    /// A compressed frame, on its way out.
    frame: Vec<u8>,
    any: bool,
}

impl<W: Write> FrameWriter<W> {
    /// Begins with a zstd level. Where the fastest one does as well, it is used in its stead.
    ///
    /// # Errors
    /// zstd refuses the level.
    pub fn new(level: i32, output: W) -> io::Result<Self> {
        let fastest = match level > FASTEST_LEVEL {
            true => Some(FrameCompressor::new(FASTEST_LEVEL)?),
            false => None,
        };
        Ok(Self {
            compressor: FrameCompressor::new(level)?,
            fastest,
            is_fastest_better: false,
            frames_to_trial: 0,
            output,
            waiting: Vec::new(),
            frame: Vec::new(),
            any: false,
        })
    }

    /// Compresses what waits, and gives the writer underneath back.
    ///
    /// # Errors
    /// The writer underneath fails.
    pub fn finish(mut self) -> io::Result<W> {
        // Even nothing is a frame: an object without any would look cut off.
        if !self.waiting.is_empty() || !self.any {
            self.write_frame()?;
        }
        Ok(self.output)
    }

    fn write_frame(&mut self) -> io::Result<()> {
        match &mut self.fastest {
            // What is less than a frame says little, and costs little.
            Some(fastest) if self.frames_to_trial == 0 && self.waiting.len() == FRAME_BYTES_MAX => {
                self.compressor.compress(&self.waiting, &mut self.frame)?;
                // Of a trial alone: what is held for longer counts for each worker.
                let mut other = Vec::new();
                fastest.compress(&self.waiting, &mut other)?;
                self.is_fastest_better = other.len() <= self.frame.len();
                if self.is_fastest_better {
                    self.frame = other;
                }
                self.frames_to_trial = TRIAL_FRAMES;
            }
            Some(fastest) if self.is_fastest_better => fastest.compress(&self.waiting, &mut self.frame)?,
            _ => self.compressor.compress(&self.waiting, &mut self.frame)?,
        }
        self.frames_to_trial = self.frames_to_trial.saturating_sub(1);
        self.waiting.clear();
        self.any = true;
        self.output.write_all(&self.frame)
    }
}

impl<W: Write> Write for FrameWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(FRAME_BYTES_MAX - self.waiting.len());
        self.waiting
            .extend_from_slice(bytes.get(..length).unwrap_or_default());
        if self.waiting.len() == FRAME_BYTES_MAX {
            self.write_frame()?;
        }
        Ok(length)
    }

    /// Frames are cut by their size alone, so that the same contents always become the same frames.
    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(level: i32, contents: &[u8]) -> Vec<u8> {
        let mut writer = FrameWriter::new(level, Vec::new()).unwrap();
        writer.write_all(contents).unwrap();
        writer.finish().unwrap()
    }

    fn at_one_level(level: i32, contents: &[u8]) -> usize {
        let mut compressor = FrameCompressor::new(level).unwrap();
        let mut frame = Vec::new();
        let frames = contents.chunks(FRAME_BYTES_MAX).map(|contents| {
            compressor.compress(contents, &mut frame).unwrap();
            frame.len()
        });
        frames.sum()
    }

    /// Rows of a time, a small number and a random name, in COPY's binary format.
    fn events(bytes: usize) -> Vec<u8> {
        let mut rows = Vec::new();
        for number in 0_u64.. {
            if rows.len() >= bytes {
                break;
            }
            let name = blake3::hash(&(number / 3).to_be_bytes()).to_hex();
            rows.extend([0, 3, 0, 0, 0, 8]);
            rows.extend((number * 1_000_000).to_be_bytes());
            rows.extend([0, 0, 0, 4]);
            rows.extend(((number * 7919 % 5000) as u32).to_be_bytes());
            rows.extend([0, 0, 0, 32]);
            rows.extend(&name.as_bytes()[..32]);
        }
        rows
    }

    /// Words, chosen at random from some hundreds.
    fn sentences(bytes: usize) -> Vec<u8> {
        let words: Vec<String> = (0_u64..700)
            .map(|word| blake3::hash(&word.to_be_bytes()).to_hex()[..4 + (word % 6) as usize].to_owned())
            .collect();
        let mut text = Vec::new();
        for number in 0_u64.. {
            if text.len() >= bytes {
                break;
            }
            let hash = blake3::hash(&number.to_be_bytes());
            let chosen = hash
                .as_bytes()
                .chunks(2)
                .map(|pair| usize::from(pair[0]) * 256 + usize::from(pair[1]));
            for word in chosen {
                text.extend(words[word % words.len()].as_bytes());
                text.push(b' ');
            }
        }
        text
    }

    /// Identifiers of eight random bytes, more of them than a small table holds.
    fn identifiers(bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        for number in 0_u32.. {
            if all.len() >= bytes {
                break;
            }
            let hash = blake3::hash(&number.to_be_bytes());
            let chosen = u32::from_be_bytes(*hash.as_bytes().first_chunk().unwrap()) % 12_000;
            all.extend(&blake3::hash(&chosen.to_le_bytes()).as_bytes()[..8]);
        }
        all
    }

    /// Each file goes as suits it, whoever else is compressed by the same compressor; nothing becomes larger by it.
    #[test]
    fn each_file_is_compressed_as_suits_it() {
        let (events, others) = (events(4 << 20), identifiers(4 << 20));
        let (of_events, of_others) = (LevelChoice::default(), LevelChoice::default());
        let mut compressor = FrameCompressor::new(3).unwrap();
        let mut frame = Vec::new();
        for (contents, choice) in [(&events, &of_events), (&others, &of_others)] {
            let mut bytes = 0;
            for contents in contents.chunks(FRAME_BYTES_MAX) {
                compressor.compress_as(contents, &mut frame, choice).unwrap();
                assert_eq!(zstd::stream::decode_all(&frame[..]).unwrap(), contents);
                bytes += frame.len();
            }
            let asked = at_one_level(3, contents);
            assert!(bytes <= asked + asked / LARGER_BY, "{bytes} {asked}");
        }
        let is_fast = |choice: &LevelChoice| choice.min_match.load(Ordering::Relaxed) > 0;
        assert!(is_fast(&of_events) && !is_fast(&of_others));
        // Too little to tell.
        let untried = LevelChoice::default();
        compressor
            .compress_as(&events[..1000], &mut frame, &untried)
            .unwrap();
        assert!(!is_fast(&untried));
    }

    #[test]
    fn the_faster_level_is_taken_only_where_it_compresses_as_well() {
        let events = events(20 << 20);
        let text = sentences(20 << 20);
        for contents in [&events[..], &text, &events[..1000], &[]] {
            let stored = written(3, contents);
            assert_eq!(zstd::stream::decode_all(&stored[..]).unwrap(), contents);
        }
        // Each does better at its own, or the test would show nothing.
        assert!(at_one_level(1, &events) < at_one_level(3, &events));
        assert!(at_one_level(3, &text) < at_one_level(1, &text));
        assert_eq!(written(3, &events).len(), at_one_level(1, &events));
        assert_eq!(written(3, &text).len(), at_one_level(3, &text));
    }
}
