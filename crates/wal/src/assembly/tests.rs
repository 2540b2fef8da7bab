use pgkeep_pgformat::{SegmentSize, Timeline};
use pgkeep_repository::encryption::Encryption;
use pgkeep_repository::wal::Stored;
use pgkeep_repository::{Access, Repository};
use pgkeep_store::{Store, StoreOptions};
use proptest::prelude::*;

use super::*;

const SYSTEM: u64 = 42;
const SIZE: usize = 1 << 20;

fn segment() -> SegmentName {
    SegmentName::holding(
        Timeline::FIRST,
        Lsn::new(3 << 20),
        SegmentSize::new(SIZE as u64).unwrap(),
    )
}

fn writer() -> Writer {
    Writer {
        cluster: "main".to_owned(),
        system_identifier: SYSTEM,
    }
}

/// A segment's contents: a header as the server writes it, then anything.
fn contents(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0x16, 0xD1, 0x07, 0x00, 1, 0, 0, 0];
    bytes.extend_from_slice(&segment().start().as_u64().to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&SYSTEM.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(SIZE).unwrap().to_le_bytes());
    bytes.extend_from_slice(&8192_u32.to_le_bytes());
    let mut state = seed | 1;
    while bytes.len() < SIZE {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.push((state >> 59) as u8);
    }
    bytes
}

async fn repository(name: &str) -> Repository {
    let store = Store::open(&format!("memory://assembly-{name}"), &StoreOptions::default())
        .await
        .unwrap();
    let access = Access {
        encryption: Encryption::None,
        identities: Vec::new(),
        compression_level: 1,
    };
    let repository = Repository::open_or_create(store, "main", access).await.unwrap();
    repository.claim_wal(SYSTEM, segment().size()).await.unwrap();
    repository
}

async fn put(repository: &Repository, object: ToPut) {
    let stored = repository.put_wal(SYSTEM, object.object, object.contents).await;
    assert_ne!(stored.unwrap(), Stored::OtherBytes);
}

/// Stores some parts as an earlier receiver did, and says what they are.
async fn store_before(repository: &Repository, all: &[u8], parts: &[(usize, usize)]) -> Vec<Known> {
    let mut known = Vec::new();
    for (from, length) in parts {
        let to = (from + length).min(SIZE);
        let bytes = Bytes::copy_from_slice(&all[*from..to]);
        let hash = blake3::hash(&bytes);
        let object = WalObject::part(segment(), *from as u64, to as u64).unwrap();
        let stored = repository.put_wal_bytes(SYSTEM, object, bytes).await.unwrap();
        assert_ne!(stored, Stored::OtherBytes);
        known.push(Known {
            object,
            from: *from as u64,
            to: to as u64,
            hash,
        });
    }
    known
}

/// Pieces that are at hand, with whether they are flushed behind.
fn pieces() -> impl Strategy<Value = Vec<(usize, bool)>> {
    proptest::collection::vec((1_usize..200_000, any::<bool>()), 1..24)
}

/// Parts of an earlier receiver: one after another, and perhaps one behind a hole.
fn before() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let lengths = proptest::collection::vec(1_usize..150_000, 0..4);
    (lengths, proptest::option::of((0_usize..300_000, 1_usize..50_000))).prop_map(|(lengths, behind)| {
        let (mut parts, mut at) = (Vec::new(), 0);
        for length in lengths {
            parts.push((at, length));
            at += length;
        }
        parts.extend(behind.map(|(hole, length)| (at + hole, length)));
        parts
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_comes_in_whatever_pieces_is_what_is_stored(seed: u64, before in before(), pieces in pieces()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let repository = repository(&format!("whole-{seed}")).await;
            let all = contents(seed);
            let known = store_before(&repository, &all, &before).await;
            let ahead = known.iter().map(|known| known.to).max().unwrap_or(0);
            let mut assembly = Assembly::new(segment(), writer(), known);
            let mut compressor = WalCompressor::new(1).unwrap();
            let mut at = 0;
            for (length, flush) in pieces {
                let end = (at + length).min(SIZE);
                if at == end {
                    break;
                }
                assembly.append(&mut compressor, &all[at..end]).unwrap();
                at = end;
                let due = assembly.due();
                assert_eq!(due.is_some(), assembly.is_full());
                let part = due.or_else(|| flush.then(|| assembly.part()).flatten());
                if let Some(object) = part {
                    assert!(at as u64 >= ahead, "it is put beside what isn't compared yet");
                    put(&repository, object).await;
                }
            }
            if let Some(object) = assembly.part() {
                put(&repository, object).await;
            }
            if (at as u64) < ahead {
                return;
            }
            let mut expected = all[..at].to_vec();
            expected.resize(SIZE, 0);
            let fetched = repository.fetch_wal(SYSTEM, &segment()).await.unwrap().unwrap();
            assert!(fetched == expected);
            let covered = repository.wal_coverage(SYSTEM, Timeline::FIRST).await.unwrap();
            let end = Lsn::new(segment().start().as_u64() + at as u64);
            assert_eq!(covered.iter().map(|range| (range.start, range.end)).collect::<Vec<_>>(), [(segment().start(), end)]);
        });
    }

    #[test]
    fn one_byte_that_differs_from_what_is_stored_is_found(
        seed: u64, before in before(), length in 1_usize..200_000, flipped in 0.0..1.0,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let repository = repository(&format!("other-{seed}")).await;
            let mut all = contents(seed);
            let known = store_before(&repository, &all, &before).await;
            let Some(target) = known.last().cloned() else { return };
            let at = target.from + ((target.to - target.from - 1) as f64 * flipped) as u64;
            // The header is looked at by itself.
            if at < WAL_HEADER_BYTES as u64 {
                return;
            }
            all[at as usize] ^= 1;
            let mut assembly = Assembly::new(segment(), writer(), known);
            let mut compressor = WalCompressor::new(1).unwrap();
            for piece in all.chunks(length) {
                match assembly.append(&mut compressor, piece) {
                    Ok(_) => assert!(assembly.part().is_none(), "it is put beside what isn't compared yet"),
                    Err(WalError::OtherWal { .. }) => return,
                    Err(error) => panic!("{error}"),
                }
            }
            panic!("byte {at} differs, and nothing is said");
        });
    }
}

#[test]
fn what_is_no_segment_of_this_cluster_is_refused() {
    for at in [1, 2, 9, 24, 34] {
        for split in [7, 40] {
            let mut all = contents(1);
            all[at] ^= 0x02;
            let mut assembly = Assembly::new(segment(), writer(), Vec::new());
            let mut compressor = WalCompressor::new(1).unwrap();
            let first = assembly.append(&mut compressor, &all[..split]);
            let both = first.and_then(|_| assembly.append(&mut compressor, &all[split..]));
            assert!(both.is_err(), "byte {at}");
        }
    }
}
