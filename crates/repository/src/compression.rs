//! Compression: zstd frames of at most a megabyte of contents each, one after another.
//!
//! A frame whose contents lie in memory as one piece is compressed a fifth to a third faster than a stream that never
//! ends: once a stream has filled its window, zstd looks for matches in two separate pieces
//! (`ZSTD_compressBlock_doubleFast_extDict`). What is lost are matches over the frames' borders.
//!
//! Blocking and bound by CPU: call it off the async threads.

use std::io::{self, Write};

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
pub struct FrameCompressor(Compressor<'static>);

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
        Ok(Self(compressor))
    }

    /// Makes one frame of the contents, which tells their size and ends with a checksum; `frame` is emptied before.
    ///
    /// # Errors
    /// zstd fails.
    pub fn compress(&mut self, contents: &[u8], frame: &mut Vec<u8>) -> io::Result<()> {
        frame.clear();
        frame.reserve(zstd::zstd_safe::compress_bound(contents.len()));
        self.0.compress_to_buffer(contents, frame)?;
        Ok(())
    }
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
