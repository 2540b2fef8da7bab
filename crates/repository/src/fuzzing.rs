//! What the fuzz targets of fuzz/ do with outside bytes: each must read or refuse them, and may not panic, hang, lose a
//! backup or show a secret. The tests run the committed corpus through it.
#![allow(clippy::unwrap_used, reason = "here a panic is how a defect is reported")]

use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use pgkeep_base::{BackupId, BackupKind, Classified};
use pgkeep_store::{Store, StoreOptions};

use crate::encryption::{self, Encryption, EncryptionError, OpenOptions};
use crate::integrity::{format_checksums, parse_checksums};
use crate::keys::{self, Identity};
use crate::lease::Lease;
use crate::object::ObjectRef;
use crate::records::Evidence;
use crate::retention::{self, Candidate, Policy};
use crate::{Access, Repository, prune};

/// Made for this; it opens nothing else.
const SECRET_KEY: &str = "AGE-SECRET-KEY-1SZ5C3YSFA2CCD54NL6Z5MUR423VEVP9E430Q90JLUU6FWVG3GTLQ479RJH";
/// The most that may come out of an object.
const CONTENTS_BYTES_MAX: u64 = 1 << 20;
const OBJECTS_MAX: usize = 64;

fn run<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}

fn identities() -> Vec<Identity> {
    keys::parse_identities(SECRET_KEY, "here").unwrap()
}

fn age() -> Encryption {
    Encryption::Age {
        recipients: identities().iter().map(Identity::to_recipient).collect(),
    }
}

fn opened(object: &[u8], identities: &[Identity]) -> Result<Vec<u8>, EncryptionError> {
    let recipients: Vec<_> = identities.iter().map(Identity::to_recipient).collect();
    let options = OpenOptions {
        identities,
        recipients: &recipients,
        bytes_max: CONTENTS_BYTES_MAX,
    };
    let mut reader = encryption::open_reader_with(object, &options)?;
    let (mut content, mut buffer) = (Vec::new(), [0; 5000]);
    loop {
        match reader.read_typed(&mut buffer) {
            Ok(0) => return Ok(content),
            Ok(count) => content.extend_from_slice(buffer.get(..count).unwrap()),
            Err(error) => {
                assert!(reader.read(&mut buffer).is_err(), "an error became an end");
                return Err(error);
            }
        }
    }
}

/// Any bytes as an object.
pub fn open(data: &[u8]) {
    for known in [&identities()[..], &[]] {
        match opened(data, known) {
            Ok(content) => assert!(content.len() as u64 <= CONTENTS_BYTES_MAX),
            Err(error) => drop((error.to_string(), error.hint())),
        }
    }
}

/// Objects of ours: what is inside them is anything, or something was altered on the way.
pub fn sealed(data: &[u8]) {
    let Some(([place_high, place_low, change], data)) = data.split_first_chunk() else {
        return;
    };
    if *change == 0 {
        // Outside all is right: what is inside alone decides.
        let mut writer = encryption::encrypt_writer(&age(), Vec::new()).unwrap();
        writer.write_all(data).unwrap();
        let inside = opened(&writer.finish().unwrap(), &identities());
        match (inside, opened(data, &[])) {
            (Ok(inside), plain) => assert_eq!(Some(inside), plain.ok()),
            (Err(_), plain) => assert!(plain.is_err() || data.starts_with(b"age-encryption.org/")),
        }
        return;
    }
    for encryption in [age(), Encryption::None] {
        let mut object = encryption::seal_bytes(&encryption, 1, data).unwrap();
        assert_eq!(opened(&object, &identities()).unwrap(), data);
        let place = usize::from(u16::from_be_bytes([*place_high, *place_low])) % object.len();
        if *change == 1 {
            object.truncate(place);
        } else if let Some(byte) = object.get_mut(place) {
            *byte ^= change;
        }
        // zstd has bits without a meaning; age has none.
        match opened(&object, &identities()) {
            Ok(content) => assert!(!encryption.is_encrypted() && content == data, "altered unnoticed"),
            Err(error) => drop((error.to_string(), error.hint())),
        }
    }
}

/// Identity files and recipients.
pub fn keys(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let said = |text: &str| {
        let lines: Vec<&str> = text.lines().collect();
        let identities = match keys::parse_identities(text, "here") {
            Ok(identities) => format!("{identities:?}"),
            Err(error) => format!("{error} {:?}", error.hint()),
        };
        let recipients = match keys::parse_recipients(&lines) {
            Ok(recipients) => format!("{recipients:?}"),
            Err(error) => format!("{error} {:?}", error.hint()),
        };
        format!("{identities} {recipients}")
    };
    let _ = said(&text);
    let inner = SECRET_KEY.get(20..).unwrap();
    if !text.contains(inner) {
        let (before, after) = text.split_at(text.floor_char_boundary(text.len() / 2));
        let said = said(&format!("{before}{SECRET_KEY}{after}"));
        assert!(!said.contains(inner), "{said}");
    }
}

/// Lists of checksums.
pub fn checksums(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(checksums) = parse_checksums(&text) else {
        return;
    };
    let objects: Vec<ObjectRef> = checksums
        .iter()
        .map(|checksum| ObjectRef {
            name: checksum.name.clone(),
            stored_bytes: 0,
            hash: checksum.hash.clone(),
            plain_bytes: 0,
        })
        .collect();
    let again = format_checksums(objects.iter());
    assert_eq!(
        parse_checksums(std::str::from_utf8(&again).unwrap()),
        Ok(checksums)
    );
}

/// Takes numbers off the front; 0 at the end.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn long(&mut self) -> i64 {
        (0..8).fold(0, |number, _| number << 8 | i64::from(self.byte()))
    }

    fn id(&mut self) -> Option<BackupId> {
        let second = self.long() % 100_000_000_000;
        let time = Timestamp::from_second(second)
            .ok()?
            .strftime("%Y%m%dT%H%M%SZ")
            .to_string();
        format!("d{time}-0000{:02x}", self.byte()).parse().ok()
    }
}

/// The planner of retention.
pub fn retention(data: &[u8]) {
    const ZONES: [&str; 4] = ["UTC", "Europe/Berlin", "Pacific/Apia", "America/Havana"];
    let mut numbers = Numbers(data);
    let zone = ZONES.get(usize::from(numbers.byte()) % ZONES.len()).unwrap();
    let policy = Policy {
        window: (numbers.byte() % 2 == 1).then(|| SignedDuration::from_secs(numbers.long())),
        daily: u32::from(numbers.byte()),
        weekly: u32::from(numbers.byte()),
        monthly: u32::from(numbers.byte()),
        yearly: u32::from(numbers.byte()),
        time_zone: TimeZone::get(zone).unwrap(),
    };
    let Ok(now) = Timestamp::from_second(numbers.long() % 250_000_000_000) else {
        return;
    };
    let mut candidates: Vec<Candidate> = Vec::new();
    while !numbers.0.is_empty() && candidates.len() < OBJECTS_MAX {
        let Some(id) = numbers.id() else { continue };
        if candidates.iter().any(|candidate| candidate.id == id) {
            continue;
        }
        let flags = numbers.byte();
        candidates.push(Candidate {
            started_at: id.started_at(),
            completed: flags & 1 == 0,
            verified: (flags & 2 == 2).then_some(flags & 4 == 4),
            pinned: (flags & 8 == 8).then(|| "why".to_owned()),
            system_identifier: (flags & 16 == 16).then_some(u64::from(flags >> 6)),
            ended_at: (flags & 32 == 32).then_some(id.started_at()),
            id,
        });
    }
    check_plan(&policy, &candidates, now);
}

fn check_plan(policy: &Policy, candidates: &[Candidate], now: Timestamp) {
    let plan = retention::plan(policy, candidates, now);
    assert_eq!(plan.decisions.len() + plan.incomplete.len(), candidates.len());
    let keeps = |id: &BackupId| plan.kept().any(|decision| decision.id == *id);
    for decision in &plan.decisions {
        assert!(!decision.reasons.is_empty() && !decision.to_string().is_empty());
    }
    for candidate in candidates.iter().filter(|candidate| candidate.completed) {
        let kept = keeps(&candidate.id);
        assert!(kept || (candidate.pinned.is_none() && candidate.started_at <= now));
        // Something of its database system stays, and a good one where there is one.
        let same = candidates
            .iter()
            .filter(|other| other.completed && other.system_identifier == candidate.system_identifier);
        let good = |other: &&Candidate| other.verified != Some(false) && other.started_at <= now;
        assert!(same.clone().any(|other| keeps(&other.id)));
        assert!(same.clone().filter(good).count() == 0 || same.filter(good).any(|other| keeps(&other.id)));
    }
}

/// A repository in which anything may lie: lines of a key and, after a blank, what the object holds.
pub fn listing(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let objects = text.lines().take(OBJECTS_MAX);
    run(async {
        let store = Store::open("memory://", &StoreOptions::default()).await.unwrap();
        for line in objects {
            let (key, body) = line.split_once(' ').unwrap_or((line, ""));
            let _ = store.put_new(key, Bytes::copy_from_slice(body.as_bytes())).await;
        }
        let _ = Repository::clusters(&store).await;
        let access = Access {
            encryption: Encryption::None,
            identities: Vec::new(),
            compression_level: 1,
        };
        let Ok(repository) = Repository::open_or_create(store, "main", access).await else {
            return;
        };
        work(&repository).await;
    });
}

async fn work(repository: &Repository) {
    let _ = repository.claim_identity(7, true).await;
    if let Ok(lease) = Lease::acquire(repository, "dump", Duration::from_secs(300)).await {
        assert!(
            Lease::acquire(repository, "dump", Duration::from_secs(300))
                .await
                .is_err(),
            "two hold the lease"
        );
        let _ = lease.release().await;
    }
    let _ = repository.sweep(BackupKind::Dump).await;
    for text in ["latest", "d", "d2026"] {
        let Ok(id) = repository.find(BackupKind::Dump, text).await else {
            continue;
        };
        if let Ok(checksums) = repository.checksums(&id).await {
            let _ = repository.verify_stored(&id, &checksums, |_| ()).await;
        }
        let evidence = Evidence {
            at: repository.now(),
            depth: "hashes".to_owned(),
            objects: 1,
            objects_total: 1,
            passed: true,
            failures: Vec::new(),
        };
        let recorded = repository.record_evidence(&id, &evidence).await;
        let pinned = repository.set_pin(&id, true, "why").await;
        if let Ok(backups) = repository.backups(BackupKind::Dump).await {
            let entry = backups.iter().find(|entry| entry.id == id).unwrap();
            assert!(
                recorded.is_err() || entry.evidence.as_ref() == Some(&evidence),
                "evidence is lost"
            );
            assert!(pinned.is_err() || entry.pin.is_some(), "a pin is lost");
        }
        let policy = Policy {
            daily: 1,
            ..Policy::default()
        };
        let _ = prune::plan(
            repository,
            &policy,
            &prune::PruneInput::default(),
            repository.now(),
        )
        .await;
        let _ = repository
            .remove(&id, &mut crate::references::References::default())
            .await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_of_the_fuzzers_is_read_or_refused() {
        type Target = (&'static str, fn(&[u8]));
        let targets: [Target; 6] = [
            ("open", open),
            ("sealed", sealed),
            ("keys", keys),
            ("checksums", checksums),
            ("retention", retention),
            ("listing", listing),
        ];
        for (name, target) in targets {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../fuzz/corpus")
                .join(name);
            let entries: Vec<_> = std::fs::read_dir(&folder).unwrap().map(Result::unwrap).collect();
            assert!(!entries.is_empty(), "{}", folder.display());
            for entry in entries {
                target(&std::fs::read(entry.path()).unwrap());
            }
        }
    }
}
