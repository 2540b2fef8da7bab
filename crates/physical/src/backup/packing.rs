//! The stages as a whole, without a server: what goes in as pieces is found at the addresses that the records say.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgkeep_base::{BackupId, Progress};
use pgkeep_repository::destinations::Destinations;
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::map::{Extent, RecordContents, RecordReader};
use pgkeep_repository::pack::PackReader;
use pgkeep_repository::{Access, Repository, keys, layout};
use pgkeep_store::{Store, StoreOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;

use super::pieces::{Bench, FileHead, Step};
use super::stages::{self, PackPlace};

const BLOCK_BYTES: u32 = 1024;
/// More than a pack takes.
const BLOCKS: u64 = 150_000;

/// The contents of a block, by its number: short ones, too.
fn block(number: u64, bytes: usize) -> Vec<u8> {
    let mut block = number.to_le_bytes().repeat(BLOCK_BYTES as usize / 8);
    block.truncate(bytes);
    block
}

fn is_short(number: u64) -> bool {
    number.is_multiple_of(3)
}

/// A file of some blocks, the last of which may be short, as a piece.
fn file(bench: &Bench, first: u64, blocks: u64) -> super::pieces::Piece {
    let mut piece = bench.piece();
    for number in first..first + blocks {
        let is_last = number + 1 == first + blocks;
        let bytes = if is_last && is_short(first) { 700 } else { 1024 };
        piece.buffer.extend(block(number, bytes));
    }
    piece.steps = vec![
        Step::Begin(FileHead {
            root: 0,
            path: first.to_string().into_bytes(),
            mode: 0o600,
            size: piece.buffer.len() as u64,
            modified_at: 0,
        }),
        Step::Blocks(piece.buffer.len()),
        Step::End,
    ];
    piece
}

async fn repository(folder: &std::path::Path) -> Repository {
    let url = format!("file://{}", folder.display());
    let store = Store::open(&url, &StoreOptions::default()).await.unwrap();
    let (identity, recipient) = keys::generate();
    let access = Access {
        encryption: Encryption::Age {
            recipients: vec![recipient],
        },
        identities: vec![identity],
        compression_level: 1,
    };
    Repository::open_or_create(store, "test", access).await.unwrap()
}

/// Many blocks and few, which share frames, over the ends of packs.
#[tokio::test(flavor = "multi_thread")]
async fn each_block_lies_where_the_records_say() {
    let seed = pgkeep_testkit::seed();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path()).await;
    let destinations = Arc::new(Destinations::from(repository.clone()));
    let lease = std::time::Duration::from_secs(60);
    destinations.acquire_leases("a test", lease).await.unwrap();
    let id: BackupId = "b20261122T020000Z-7f3a9c".parse().unwrap();
    let prefix = layout::backup_prefix("test", &id);
    let bench = Arc::new(Bench::new(1, [1; 32], BLOCK_BYTES));
    let (alive, _) = mpsc::channel(1);
    let progress = Arc::new(Progress::default());
    let place = (&id, prefix.as_str());
    let (to_pack, mut tasks) =
        stages::start(&destinations, place, &bench, None, 2, &progress, &alive).unwrap();
    let mut files = BTreeMap::new();
    let mut next = 1;
    while next < BLOCKS {
        let blocks = match random.random_range(0..10) {
            0..8 => random.random_range(1..64),
            _ => random.random_range(900..=1024),
        };
        let (bench, piece) = (Arc::clone(&bench), file(&bench, next, blocks));
        let working = tokio::task::spawn_blocking(move || bench.work(piece));
        to_pack.send(Some(working)).await.unwrap();
        files.insert(next.to_string().into_bytes(), blocks);
        next += blocks;
    }
    to_pack.send(None).await.unwrap();
    let stored = tasks.join_next().await.unwrap().unwrap().unwrap();
    assert!(stored.packs.len() >= 3, "{}", stored.packs.len());
    let places = (1..=3).map(PackPlace::Own).collect::<Vec<_>>();
    assert!(stored.places.starts_with(&places));
    let mut packs: Vec<PackReader> = Vec::new();
    for pack in &stored.packs {
        packs.push(repository.open_pack(pack).await.unwrap());
        let index = repository.pack_index(pack).await.unwrap();
        assert_eq!(&index, packs.last().unwrap().index());
        // Few blocks share frames: else there would be more than four for each with many.
        assert!(index.frames().len() < 400, "{}", index.frames().len());
    }
    let mut frames = BTreeMap::new();
    for object in &stored.records {
        let contents = repository.file_records(&id, object).await.unwrap();
        for record in RecordReader::new(&contents, BLOCK_BYTES) {
            let record = record.unwrap();
            let RecordContents::File { size, extents, .. } = record.contents else {
                panic!("only files");
            };
            let first: u64 = String::from_utf8(record.path.clone()).unwrap().parse().unwrap();
            let blocks = files.remove(&record.path).unwrap();
            let mut found = Vec::new();
            for extent in extents {
                let Extent::Stored { at, blocks } = extent else {
                    panic!("no zeros");
                };
                for number in at.block..at.block + blocks {
                    let pack = &packs[at.pack as usize];
                    let (frame, first) = pack.index().frame_of(number).unwrap();
                    let ranges = pack.index().frames()[frame].block_ranges(BLOCK_BYTES);
                    let contents = frames
                        .entry((at.pack, frame))
                        .or_insert_with(|| pack.frame(frame).unwrap());
                    found.extend_from_slice(&contents[ranges[(number - first) as usize].clone()]);
                }
            }
            assert_eq!(found.len() as u64, size);
            assert!(found == file(&bench, first, blocks).buffer, "{first}");
        }
    }
    assert!(files.is_empty());
    destinations.release_leases().await;
}
