//! What a worker does before all others: reading the parts of a piece, and comparing pages with their checksums.

use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use pgkeep_base::Progress;
use pgkeep_pgformat::{Lsn, PageHeader, PageVerdict, verify_page};
use pgkeep_repository::map::ROOT_DATA;
use pgkeep_repository::pack::{FRAME_CONTENT_BYTES_MAX, LevelChoice};

use super::plan::Part;
use crate::backup::blocks::FileKey;
use crate::backup::pieces::{FileHead, Piece, Step};
use crate::error::{Context, PhysicalError};
use crate::manifest::{DAMAGE_REPORTS_MAX, DamagedPages};

/// Of a mode, what `chmod` takes.
const MODE_BITS: u32 = 0o7777;
/// A page whose checksum is wrong may be one that is being written: it is read again after so long each.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_millis(1000),
];
/// In a backup, so many pieces with wrong pages are waited for; in later ones a page is read again once only, so that a file
/// full of damage doesn't take hours.
const PATIENT_PIECES_MAX: u32 = 100;

/// A file, as the workers that read parts of it share it: whoever is first opens it.
#[derive(Debug)]
pub struct SharedFile {
    pub root: u32,
    /// Relative to the root.
    pub path: Vec<u8>,
    at: PathBuf,
    /// Its size when it was listed.
    pub planned_bytes: u64,
    /// Of a file with pages: its place among those of its relation.
    segment: Option<u32>,
    opened: Mutex<Option<Opened>>,
    levels: Arc<LevelChoice>,
}

#[derive(Debug, Clone)]
enum Opened {
    Gone,
    There(Arc<OpenFile>),
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    /// Its device and number there.
    inode: (u64, u64),
    bytes: u64,
    mode: u32,
    modified_at: u64,
}

impl SharedFile {
    pub fn new(root: u32, path: Vec<u8>, at: PathBuf, planned_bytes: u64, segment: Option<u32>) -> Self {
        Self {
            root,
            path,
            at,
            planned_bytes,
            segment,
            opened: Mutex::new(None),
            levels: Arc::default(),
        }
    }

    /// `None` if it is gone, which is no error: the WAL says so, too.
    fn open(&self) -> Result<Option<Arc<OpenFile>>, PhysicalError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match opened.take() {
            Some(found) => found,
            None => self.open_now()?,
        };
        *opened = Some(found.clone());
        Ok(match found {
            Opened::Gone => None,
            Opened::There(file) => Some(file),
        })
    }

    /// Appends bytes to a buffer that has room for them; what isn't there any more are zeros. By a handle of its own, which fills
    /// memory that nobody has zeroed before; where the file has gone meanwhile, by the one that all share.
    fn read(&self, open: &OpenFile, offset: u64, bytes: usize, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        let start = buffer.len();
        let own = File::open(&self.at).ok().filter(|own| open.is(own));
        if let Some(mut own) = own {
            own.seek(SeekFrom::Start(offset))?;
            own.take(bytes as u64).read_to_end(buffer)?;
            // What was cut off meanwhile is cut off again by the WAL.
            buffer.resize(start + bytes, 0);
            return Ok(());
        }
        buffer.resize(start + bytes, 0);
        read_at(&open.file, buffer.get_mut(start..).unwrap_or_default(), offset)
    }

    fn open_now(&self) -> Result<Opened, PhysicalError> {
        let reading = || format!("reading {}", self.at.display());
        let file = match File::open(&self.at) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Opened::Gone),
            opened => opened.context(reading)?,
        };
        let metadata = file.metadata().context(reading)?;
        Ok(Opened::There(Arc::new(OpenFile {
            inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            mode: metadata.mode() & MODE_BITS,
            modified_at: u64::try_from(metadata.mtime()).unwrap_or(0),
            file,
        })))
    }
}

impl OpenFile {
    /// Whether a handle is one of the same file, and not of another one of its name.
    fn is(&self, other: &File) -> bool {
        let same = |metadata: Metadata| (metadata.dev(), metadata.ino()) == self.inode;
        other.metadata().is_ok_and(same)
    }
}

/// How pages are compared with their checksums.
#[derive(Debug, Clone, Copy)]
pub struct PageChecks {
    /// What has changed since then isn't judged: the WAL has it whole.
    pub start: Lsn,
    /// Pages of a file of a relation, at most.
    pub segment_blocks: u32,
}

/// What all workers share.
pub struct Reader {
    pub block_bytes: usize,
    pub checks: Option<PageChecks>,
    /// Read ahead of a piece, in bytes: what the other workers read meanwhile.
    pub ahead_bytes: u64,
    pub progress: Arc<Progress>,
    pub patient_pieces: AtomicU32,
    pub damaged: Mutex<DamagedPages>,
    pub files: AtomicU64,
    pub plain_bytes: AtomicU64,
}

impl Reader {
    pub fn new(block_bytes: u32, checks: Option<PageChecks>, jobs: usize, progress: &Arc<Progress>) -> Self {
        Self {
            block_bytes: block_bytes as usize,
            checks,
            ahead_bytes: (jobs as u64).saturating_mul(FRAME_CONTENT_BYTES_MAX as u64),
            progress: Arc::clone(progress),
            patient_pieces: AtomicU32::new(PATIENT_PIECES_MAX),
            damaged: Mutex::default(),
            files: AtomicU64::new(0),
            plain_bytes: AtomicU64::new(0),
        }
    }

    /// What was found so far.
    pub fn damaged_pages(&self) -> DamagedPages {
        self.damaged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads the parts into an empty piece. Blocks.
    pub fn fill(&self, parts: Vec<Part>, mut piece: Piece) -> Result<Piece, PhysicalError> {
        let planned: usize = parts.iter().map(|part| part.bytes).sum();
        let mut spare = FRAME_CONTENT_BYTES_MAX.saturating_sub(planned);
        for part in parts {
            let Some(open) = part.file.open()? else {
                continue;
            };
            let bytes = match part.begins && part.ends {
                // Whole in this piece: as it is now, unless it has grown by more than there is room.
                true => match usize::try_from(open.bytes) {
                    Ok(now) if now <= part.bytes => now,
                    Ok(now) if now - part.bytes <= spare => {
                        spare -= now - part.bytes;
                        now
                    }
                    _ => part.bytes,
                },
                false => part.bytes,
            };
            if part.begins {
                let size = match part.ends {
                    true => bytes as u64,
                    false => part.file.planned_bytes,
                };
                self.files.fetch_add(1, Ordering::Relaxed);
                self.plain_bytes.fetch_add(size, Ordering::Relaxed);
                piece.steps.push(Step::Begin(FileHead {
                    root: part.file.root,
                    path: part.file.path.clone(),
                    mode: open.mode,
                    size,
                    modified_at: open.modified_at,
                }));
            } else {
                // It is the first of its piece.
                let key = FileKey::of(part.file.root, &part.file.path);
                piece.goes_on = Some((key, part.offset / self.block_bytes as u64));
            }
            if bytes > FRAME_CONTENT_BYTES_MAX / 2 {
                piece.levels = Some(Arc::clone(&part.file.levels));
            }
            if bytes > 0 {
                self.blocks(&part, &open, bytes, &mut piece)?;
            }
            if part.ends {
                piece.steps.push(Step::End);
            }
            Progress::add(&self.progress.bytes_done, bytes as u64);
        }
        Ok(piece)
    }

    fn blocks(
        &self,
        part: &Part,
        open: &OpenFile,
        bytes: usize,
        piece: &mut Piece,
    ) -> Result<(), PhysicalError> {
        let reading = || format!("reading {}", part.file.at.display());
        if !part.ends {
            self.read_ahead(part, open);
        }
        let start = piece.buffer.len();
        part.file
            .read(open, part.offset, bytes, &mut piece.buffer)
            .context(reading)?;
        let buffer = piece.buffer.get_mut(start..).unwrap_or_default();
        if let (Some(checks), Some(segment)) = (self.checks, part.file.segment) {
            let first = part.offset / self.block_bytes as u64;
            let pages = Pages {
                reader: self,
                checks,
                part,
                file: &open.file,
                first,
                first_in_relation: u64::from(segment) * u64::from(checks.segment_blocks) + first,
            };
            pages.check(buffer).context(reading)?;
        }
        piece.steps.push(Step::Blocks(bytes));
        Ok(())
    }

    /// The kernel may fetch what the next pieces need while this one is compressed. It needn't: then they wait.
    fn read_ahead(&self, part: &Part, open: &OpenFile) {
        let from = part.offset.saturating_add(self.ahead_bytes);
        let bytes = FRAME_CONTENT_BYTES_MAX as u64;
        if let (Ok(from), Ok(bytes)) = (i64::try_from(from), i64::try_from(bytes)) {
            let _ = posix_fadvise(&open.file, from, bytes, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
        }
    }
}

/// Fills the buffer with what is there from `offset` on, and with zeros what isn't there any more.
fn read_at(file: &File, buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    let mut rest = buffer;
    while !rest.is_empty() {
        match file.read_at(rest, offset) {
            Ok(0) => break,
            Ok(bytes) => {
                offset += bytes as u64;
                rest = rest.get_mut(bytes..).unwrap_or_default();
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // What was cut off meanwhile is cut off again by the WAL.
    rest.fill(0);
    Ok(())
}

/// What a file is that lies in a piece as a whole.
pub fn steps_of(path: &[u8], metadata: &Metadata, bytes: usize) -> Vec<Step<usize>> {
    let head = FileHead {
        root: ROOT_DATA,
        path: path.to_vec(),
        mode: metadata.mode() & MODE_BITS,
        size: bytes as u64,
        modified_at: u64::try_from(metadata.mtime()).unwrap_or(0),
    };
    vec![Step::Begin(head), Step::Blocks(bytes), Step::End]
}

/// The pages of a part.
struct Pages<'a> {
    reader: &'a Reader,
    checks: PageChecks,
    part: &'a Part,
    file: &'a File,
    /// The number of the first one in its file.
    first: u64,
    first_in_relation: u64,
}

/// A page whose checksum is wrong.
struct Wrong {
    slot: usize,
    stored: u16,
    reckoned: u16,
}

impl Pages<'_> {
    /// Compares all, and reads again what is wrong, for as long as it may still be being written.
    fn check(&self, pages: &mut [u8]) -> std::io::Result<()> {
        let size = self.reader.block_bytes;
        let mut wrong: Vec<Wrong> = pages
            .chunks_exact(size)
            .enumerate()
            .filter_map(|(slot, page)| self.judge(slot, page))
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        let patience =
            self.reader
                .patient_pieces
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let pauses = if patience.is_ok() { PAUSES.len() } else { 1 };
        for pause in PAUSES.iter().take(pauses) {
            std::thread::sleep(*pause);
            let mut still = Vec::new();
            for Wrong { slot, .. } in wrong {
                let Some(page) = pages.chunks_exact_mut(size).nth(slot) else {
                    continue;
                };
                let offset = self.part.offset + (slot * size) as u64;
                read_at(self.file, page, offset)?;
                still.extend(self.judge(slot, page));
            }
            if still.is_empty() {
                return Ok(());
            }
            wrong = still;
        }
        let mut damaged = self.reader.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        for Wrong {
            slot,
            stored,
            reckoned,
        } in wrong
        {
            damaged.reports_total += 1;
            if damaged.reports.len() < DAMAGE_REPORTS_MAX {
                damaged.reports.push(format!(
                    "{}, block {}: its checksum is {stored:04X}, its contents have {reckoned:04X}",
                    self.part.file.at.display(),
                    self.first + slot as u64,
                ));
            }
        }
        Ok(())
    }

    fn judge(&self, slot: usize, page: &[u8]) -> Option<Wrong> {
        let header = PageHeader::parse(page).ok()?;
        if header.is_new() || header.lsn >= self.checks.start {
            return None;
        }
        let block = u32::try_from(self.first_in_relation + slot as u64).ok()?;
        match verify_page(page, block) {
            Ok(PageVerdict::Wrong { stored, reckoned }) => Some(Wrong {
                slot,
                stored,
                reckoned,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};

    use pgkeep_pgformat::page_checksum;
    use pgkeep_repository::pack::is_block_size;

    use super::*;
    use crate::backup::pieces::Bench;

    const BLOCK: u32 = 8192;

    struct Place {
        folder: tempfile::TempDir,
        bench: Bench,
        reader: Reader,
    }

    impl Place {
        fn new() -> Self {
            assert!(is_block_size(BLOCK));
            let checks = PageChecks {
                start: Lsn::new(1000),
                segment_blocks: 131_072,
            };
            Self {
                folder: tempfile::tempdir().unwrap(),
                bench: Bench::new(1, [1; 32], BLOCK),
                reader: Reader::new(BLOCK, Some(checks), 2, &Arc::default()),
            }
        }

        /// A file that was listed with some size, whatever it has now.
        fn file(&self, name: &str, contents: Option<&[u8]>, planned_bytes: u64) -> Arc<SharedFile> {
            let at = self.folder.path().join(name);
            if let Some(contents) = contents {
                fs::write(&at, contents).unwrap();
            }
            let path = name.as_bytes().to_vec();
            Arc::new(SharedFile::new(0, path, at, planned_bytes, Some(0)))
        }

        fn fill(&self, parts: Vec<Part>) -> Piece {
            self.reader.fill(parts, self.bench.piece()).unwrap()
        }
    }

    fn whole(file: &Arc<SharedFile>) -> Part {
        Part {
            file: Arc::clone(file),
            offset: 0,
            bytes: usize::try_from(file.planned_bytes).unwrap(),
            begins: true,
            ends: true,
        }
    }

    /// Sizes of files that begin in a piece.
    fn sizes(piece: &Piece) -> Vec<u64> {
        let heads = piece.steps.iter().filter_map(|step| match step {
            Step::Begin(head) => Some(head.size),
            _ => None,
        });
        heads.collect()
    }

    #[test]
    fn files_that_went_shrank_or_grew_are_as_they_are_now() {
        let place = Place::new();
        let files = [
            place.file("gone", None, 100),
            place.file("shrunk", Some(b"ab"), 100),
            place.file("grown", Some(&[b'x'; 300]), 100),
            place.file("empty", Some(b""), 0),
        ];
        let piece = place.fill(files.iter().map(whole).collect());
        assert_eq!(sizes(&piece), [2, 300, 0]);
        assert_eq!(piece.buffer.len(), 302);
        // By more than there is room: as it was when it was listed, as the server does it.
        let grown = place.file("grown far", Some(&vec![b'x'; FRAME_CONTENT_BYTES_MAX + 1]), 100);
        let piece = place.fill(vec![whole(&grown)]);
        assert_eq!((sizes(&piece), piece.buffer.len()), (vec![100], 100));
    }

    #[test]
    fn a_file_in_pieces_has_the_size_that_was_planned() {
        let place = Place::new();
        let mib = FRAME_CONTENT_BYTES_MAX;
        let file = place.file("1", Some(&vec![0; mib + 10]), (2 * mib) as u64);
        let part = |offset: usize| Part {
            file: Arc::clone(&file),
            offset: offset as u64,
            bytes: mib,
            begins: offset == 0,
            ends: offset > 0,
        };
        // In any order.
        let second = place.fill(vec![part(mib)]);
        let first = place.fill(vec![part(0)]);
        assert_eq!(sizes(&first), [2 * mib as u64]);
        assert_eq!((first.buffer.len(), second.buffer.len()), (mib, mib));
        let gone = place.file("2", None, (2 * mib) as u64);
        let part = |offset: usize| Part {
            file: Arc::clone(&gone),
            ..part(offset)
        };
        assert!(place.fill(vec![part(0)]).steps.is_empty());
        fs::write(&gone.at, [1; 5]).unwrap();
        assert!(
            place.fill(vec![part(mib)]).steps.is_empty(),
            "gone for one, gone for all"
        );
    }

    fn page(lsn: u32, block: u32) -> Vec<u8> {
        let mut page = vec![7; BLOCK as usize];
        page[..4].fill(0);
        page[4..8].copy_from_slice(&lsn.to_le_bytes());
        let checksum = page_checksum(&page, block).unwrap();
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    #[test]
    fn only_pages_from_before_the_backup_are_judged() {
        let place = Place::new();
        let mut wrong = page(999, 2);
        wrong[5000] ^= 1;
        let mut later = page(1000, 3);
        later[5000] ^= 1;
        let new = vec![0; BLOCK as usize];
        let pages = [page(1, 0), new, wrong, later, page(999, 4)].concat();
        let file = place.file("16384", Some(&pages), pages.len() as u64);
        let piece = place.fill(vec![whole(&file)]);
        assert_eq!(piece.buffer, pages, "stored as they are");
        let damaged = place.reader.damaged_pages();
        assert_eq!(damaged.reports_total, 1);
        assert!(damaged.reports[0].contains("16384, block 2:"), "{damaged:?}");
        // Nothing is known of a file that has no pages.
        let other = SharedFile {
            segment: None,
            ..SharedFile::new(0, Vec::new(), file.at.clone(), pages.len() as u64, None)
        };
        place.fill(vec![whole(&Arc::new(other))]);
        assert_eq!(place.reader.damaged_pages().reports_total, 1);
    }

    #[test]
    fn a_page_that_was_being_written_is_read_again() {
        let place = Place::new();
        let right = page(999, 0);
        let mut torn = right.clone();
        torn[4096..].fill(8);
        let file = place.file("16384", Some(&torn), u64::from(BLOCK));
        let at = file.at.clone();
        let mended = right.clone();
        // While it waits for the second time, at the latest.
        let writing = std::thread::spawn(move || {
            std::thread::sleep(PAUSES[0]);
            let file = OpenOptions::new().write(true).open(at).unwrap();
            file.write_all_at(&mended, 0).unwrap();
        });
        let piece = place.fill(vec![whole(&file)]);
        writing.join().unwrap();
        assert_eq!(piece.buffer, right);
        assert_eq!(place.reader.damaged_pages().reports_total, 0);
    }
}
