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

/// Compresses what is written to it. [`finish`](FrameWriter::finish) must end it.
pub struct FrameWriter<W: Write> {
    compressor: FrameCompressor,
    output: W,
    /// Contents of the next frame.
    waiting: Vec<u8>,
    /// A compressed frame, on its way out.
    frame: Vec<u8>,
    any: bool,
}

impl<W: Write> FrameWriter<W> {
    /// Begins with a zstd level.
    ///
    /// # Errors
    /// zstd refuses the level.
    pub fn new(level: i32, output: W) -> io::Result<Self> {
        Ok(Self {
            compressor: FrameCompressor::new(level)?,
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
        self.compressor.compress(&self.waiting, &mut self.frame)?;
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
