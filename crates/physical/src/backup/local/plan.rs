//! From the list of files to pieces: large files first, so that no worker is left with the largest at the end; then the small
//! ones, many in a piece.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use pgkeep_pgformat::RelationFileName;
use pgkeep_repository::pack::FRAME_CONTENT_BYTES_MAX;

use super::list::{ListedFile, Listing};
use super::read::SharedFile;

/// So many files at most go into a piece: empty ones take memory, too.
const PARTS_MAX: usize = 4096;

/// A range of a file that goes into one piece.
#[derive(Debug)]
pub struct Part {
    pub file: Arc<SharedFile>,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// How long it is, by the file's size when it was listed.
    pub bytes: usize,
    /// It is the file's first.
    pub begins: bool,
    /// It is the file's last.
    pub ends: bool,
}

/// Makes the parts of one piece after another.
pub struct Planner {
    listing: Listing,
    /// In the order of reading, the next one last.
    waiting: Vec<ListedFile>,
    block_bytes: u64,
    /// The file that goes on, how many of its bytes are done.
    current: Option<(Arc<SharedFile>, u64)>,
}

impl Planner {
    pub fn new(mut listing: Listing, block_bytes: u32) -> Self {
        let mut waiting = std::mem::take(&mut listing.files);
        // Small ones stay as they were listed, by directory.
        waiting.reverse();
        waiting.sort_by_key(|file| file.size / FRAME_CONTENT_BYTES_MAX as u64);
        Self {
            listing,
            waiting,
            block_bytes: u64::from(block_bytes),
            current: None,
        }
    }

    /// The parts of the next piece; `None` if there is nothing more.
    pub fn next(&mut self) -> Option<Vec<Part>> {
        let mut parts = Vec::new();
        let mut room = FRAME_CONTENT_BYTES_MAX as u64;
        while parts.len() < PARTS_MAX {
            let Some((file, offset)) = self.current.take().or_else(|| self.open()) else {
                break;
            };
            let left = file.planned_bytes - offset;
            // No block lies in two pieces.
            let bytes = match left <= room {
                true => left,
                false => room - room % self.block_bytes,
            };
            if bytes == 0 && left > 0 {
                self.current = Some((file, offset));
                break;
            }
            room -= bytes;
            parts.push(Part {
                file: Arc::clone(&file),
                offset,
                bytes: usize::try_from(bytes).unwrap_or(0),
                begins: offset == 0,
                ends: bytes == left,
            });
            if bytes < left {
                self.current = Some((file, offset + bytes));
                break;
            }
        }
        (!parts.is_empty()).then_some(parts)
    }

    fn open(&mut self) -> Option<(Arc<SharedFile>, u64)> {
        loop {
            let file = self.waiting.pop()?;
            let Some((directory, root)) = self.listing.directory(&file) else {
                continue;
            };
            let relation = RelationFileName::parse(&file.name).filter(|_| directory.has_relations);
            let path = match directory.path.is_empty() {
                true => file.name.to_vec(),
                false => [directory.path.as_slice(), b"/", &file.name].concat(),
            };
            let at = root.path.join(OsStr::from_bytes(&path));
            let segment = relation.map(|name| name.segment);
            return Some((
                Arc::new(SharedFile::new(root.number, path, at, file.size, segment)),
                0,
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::list::{ListedDirectory, Root};
    use super::*;

    const BLOCK: u64 = 8192;

    fn listing(sizes: &[u64]) -> Listing {
        let files = sizes.iter().enumerate().map(|(number, size)| ListedFile {
            directory: 0,
            name: number.to_string().into_bytes().into(),
            size: *size,
        });
        Listing {
            roots: vec![Root {
                number: 0,
                path: PathBuf::from("/data"),
            }],
            directories: vec![ListedDirectory {
                root: 0,
                path: b"base/1".to_vec(),
                has_relations: true,
            }],
            files: files.collect(),
            ..Listing::default()
        }
    }

    /// Every byte of every file lies in one part; parts of a file follow one another; no block is cut; pieces are full where
    /// files are large.
    #[test]
    fn every_byte_is_in_one_part_and_no_block_in_two() {
        let mib = FRAME_CONTENT_BYTES_MAX as u64;
        let sizes = [
            0,
            1,
            8191,
            8192,
            8193,
            mib,
            mib + 5,
            3 * mib - 1,
            100,
            40 * mib,
            mib / 2,
        ];
        let mut planner = Planner::new(listing(&sizes), 8192);
        let mut done = vec![0; sizes.len()];
        let mut ended = vec![false; sizes.len()];
        let mut first = None;
        let mut pieces = 0;
        while let Some(parts) = planner.next() {
            pieces += 1;
            assert!(parts.iter().map(|part| part.bytes as u64).sum::<u64>() <= mib);
            for part in parts {
                let name = String::from_utf8(part.file.path.clone()).unwrap();
                let number: usize = name.rsplit('/').next().unwrap().parse().unwrap();
                first.get_or_insert(number);
                assert_eq!((part.offset, part.begins), (done[number], done[number] == 0));
                assert_eq!(part.offset % BLOCK, 0);
                done[number] += part.bytes as u64;
                assert_eq!(part.ends, done[number] == sizes[number]);
                ended[number] |= part.ends;
            }
        }
        assert_eq!(done, sizes);
        assert!(ended.into_iter().all(|ended| ended));
        assert_eq!(first, Some(9), "the largest is first");
        let all = sizes.iter().sum::<u64>();
        assert!(pieces <= all / mib + 3, "{pieces} pieces for {all} bytes");
    }

    #[test]
    fn many_empty_files_are_no_single_piece() {
        let mut planner = Planner::new(listing(&[0; PARTS_MAX + 1]), 8192);
        assert_eq!(planner.next().map(|parts| parts.len()), Some(PARTS_MAX));
        assert_eq!(planner.next().map(|parts| parts.len()), Some(1));
        assert!(planner.next().is_none());
    }
}
