//! Sealing and opening: round trips, wrong keys, damage at every place, limits, and stock age and zstd as referees.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use pgkeep_base::{Classified, RetryClass};
use pgkeep_repository::encryption::{
    AGE_HEADER_BYTES_MAX, Encryption, EncryptionError, OpenOptions, RECIPIENTS_MAX, encrypt_writer,
    open_bytes, open_reader, open_reader_with, seal_bytes, seal_writer,
};
use pgkeep_repository::keys::{self, Identity, Recipient};
use pgkeep_testkit::require;
use pgkeep_testkit::requirements::tool;
use proptest::prelude::*;

const MANY: u64 = 1 << 30;

fn options(identities: &[Identity]) -> OpenOptions<'_> {
    OpenOptions {
        identities,
        recipients: &[],
        bytes_max: MANY,
    }
}

fn encrypted_to(recipient: &Recipient) -> Encryption {
    Encryption::Age {
        recipients: vec![recipient.clone()],
    }
}

/// Bytes that compress somewhat, the same for the same seed.
fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length)
        .map(|at| {
            if at % 3 == 0 {
                next()
            } else {
                b'a' + (at % 7) as u8
            }
        })
        .collect()
}

/// Runs a filter; the input is written from a thread so that neither side waits for the other.
fn filter(command: &mut Command, input: Vec<u8>) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    writer.join().unwrap().unwrap();
    output.stdout
}

#[test]
fn what_is_sealed_opens_with_and_without_encryption() {
    let (identity, recipient) = keys::generate();
    for length in [0, 1, 100, 64 * 1024 - 16, 64 * 1024, 200_000, 3 << 20] {
        let plain = content(length, 7);
        for encryption in [encrypted_to(&recipient), Encryption::None] {
            for level in [1, 3, 19] {
                let object = seal_bytes(&encryption, level, &plain).unwrap();
                let opened =
                    open_reader_with(&object[..], &options(std::slice::from_ref(&identity))).unwrap();
                assert_eq!(opened.is_encrypted(), encryption.is_encrypted());
                assert_eq!(
                    opened.read_to_vec().unwrap(),
                    plain,
                    "{length} bytes at level {level}"
                );
            }
        }
    }
}

#[test]
fn any_one_of_several_recipients_opens() {
    let pairs = [keys::generate(), keys::generate(), keys::generate()];
    let encryption = Encryption::Age {
        recipients: pairs.iter().map(|(_, recipient)| recipient.clone()).collect(),
    };
    let object = seal_bytes(&encryption, 3, b"rows").unwrap();
    for (identity, _) in &pairs {
        assert_eq!(
            open_bytes(&object, &options(std::slice::from_ref(identity))).unwrap(),
            b"rows"
        );
    }
}

#[test]
fn as_many_recipients_as_are_allowed_open_and_one_more_is_refused() {
    let (identity, recipient) = keys::generate();
    let mut recipients = vec![recipient; RECIPIENTS_MAX];
    let object = seal_bytes(
        &Encryption::Age {
            recipients: recipients.clone(),
        },
        3,
        b"rows",
    )
    .unwrap();
    assert_eq!(open_bytes(&object, &options(&[identity])).unwrap(), b"rows");
    recipients.push(keys::generate().1);
    let error = seal_bytes(&Encryption::Age { recipients }, 3, b"rows").unwrap_err();
    assert_eq!(error.to_string(), "101 recipients are given; the most is 100");
}

#[test]
fn several_frames_open_as_one() {
    let (identity, recipient) = keys::generate();
    let parts = [content(100_000, 1), Vec::new(), content(5, 2)];
    let frames: Vec<u8> = parts
        .iter()
        .flat_map(|part| seal_bytes(&Encryption::None, 3, part).unwrap())
        .collect();
    let whole = parts.concat();
    assert_eq!(open_bytes(&frames, &options(&[])).unwrap(), whole);
    let mut writer = encrypt_writer(&encrypted_to(&recipient), Vec::new()).unwrap();
    writer.write_all(&frames).unwrap();
    assert_eq!(
        open_bytes(&writer.finish().unwrap(), &options(&[identity])).unwrap(),
        whole
    );
}

#[test]
fn a_missing_and_a_wrong_key_are_told_apart_and_say_what_to_do() {
    let (_, recipient) = keys::generate();
    let (other, other_public) = keys::generate();
    let object = seal_bytes(&encrypted_to(&recipient), 3, b"rows").unwrap();
    let recipients = [recipient.clone()];

    let none = OpenOptions {
        identities: &[],
        recipients: &recipients,
        bytes_max: MANY,
    };
    let error = open_bytes(&object, &none).unwrap_err();
    let expected =
        format!("the object is encrypted and no identity was given; the repository encrypts to {recipient}");
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.retry_class(), RetryClass::Usage);
    assert!(error.hint().unwrap().as_str().contains("--identity FILE"));

    let others = [other];
    let error = open_bytes(
        &object,
        &OpenOptions {
            identities: &others,
            ..none
        },
    )
    .unwrap_err();
    let expected = format!(
        "none of the identities given opens the object: they belong to {other_public}; the repository encrypts to {recipient}"
    );
    assert_eq!(error.to_string(), expected);
    assert!(error.hint().unwrap().as_str().contains("PGKEEP_IDENTITY_FILE"));
    assert!(matches!(
        open_bytes(&object, &options(&others)),
        Err(EncryptionError::WrongKey { .. })
    ));
}

/// Nothing in an object tells its header's damage from another key: who has its hash can.
#[test]
fn a_key_that_was_no_recipient_when_the_object_was_written_is_another_key() {
    let (_, recipient) = keys::generate();
    let (later, later_public) = keys::generate();
    let object = seal_bytes(&encrypted_to(&recipient), 3, b"rows").unwrap();
    let (recipients, identities) = ([recipient, later_public], [later]);
    let error = open_bytes(
        &object,
        &OpenOptions {
            recipients: &recipients,
            ..options(&identities)
        },
    )
    .unwrap_err();
    assert!(matches!(error, EncryptionError::WrongKey { .. }), "{error}");
    assert!(error.to_string().contains("written for others"), "{error}");
}

#[test]
fn every_cut_is_noticed() {
    let (identity, recipient) = keys::generate();
    let identities = [identity];
    let plain = content(150_000, 3);
    for encryption in [encrypted_to(&recipient), Encryption::None] {
        let object = seal_bytes(&encryption, 3, &plain).unwrap();
        let places = (0..300)
            .chain((300..object.len()).step_by(997))
            .chain(object.len() - 40..object.len());
        for end in places.chain([object.len() - 64 * 1024 - 16]) {
            let error = open_bytes(&object[..end], &options(&identities)).unwrap_err();
            assert!(
                matches!(error, EncryptionError::Truncated(_) | EncryptionError::Corrupt(_)),
                "{encryption:?} cut at {end}: {error}"
            );
        }
    }
}

#[test]
fn every_flipped_byte_is_noticed() {
    let (identity, recipient) = keys::generate();
    let identities = [identity];
    let object = seal_bytes(&encrypted_to(&recipient), 3, &content(150_000, 4)).unwrap();
    for at in (0..400)
        .chain((400..object.len()).step_by(499))
        .chain(object.len() - 40..object.len())
    {
        let mut altered = object.clone();
        altered[at] ^= 0x20;
        assert!(
            open_bytes(&altered, &options(&identities)).is_err(),
            "a flipped bit at {at} went unnoticed"
        );
    }
}

#[test]
fn what_follows_an_object_is_noticed() {
    let (identity, recipient) = keys::generate();
    let identities = [identity];
    for encryption in [encrypted_to(&recipient), Encryption::None] {
        for more in [&b"x"[..], b"more than four bytes"] {
            let mut object = seal_bytes(&encryption, 3, b"rows").unwrap();
            object.extend_from_slice(more);
            assert!(open_bytes(&object, &options(&identities)).is_err());
        }
    }
}

#[test]
fn a_bomb_is_stopped_at_the_limit_and_the_limit_itself_is_allowed() {
    let object = seal_bytes(&Encryption::None, 3, &vec![0; 10_000_000]).unwrap();
    assert!(object.len() < 2_000);
    let limited = |bytes_max| {
        open_bytes(
            &object,
            &OpenOptions {
                identities: &[],
                recipients: &[],
                bytes_max,
            },
        )
    };
    assert_eq!(limited(10_000_000).unwrap().len(), 10_000_000);
    let error = limited(9_999_999).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the object holds more than 9.5 MiB, the most that can be right here"
    );
    assert!(matches!(
        limited(0).unwrap_err(),
        EncryptionError::TooLarge { bytes_max: 0 }
    ));
    assert_eq!(
        open_bytes(
            &seal_bytes(&Encryption::None, 3, b"").unwrap(),
            &OpenOptions {
                identities: &[],
                recipients: &[],
                bytes_max: 0
            }
        )
        .unwrap(),
        b""
    );
}

#[test]
fn a_frame_that_needs_much_memory_is_refused() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(24).unwrap();
    encoder.write_all(&content(20 << 20, 5)).unwrap();
    let error = open_bytes(&encoder.finish().unwrap(), &options(&[])).unwrap_err();
    assert!(matches!(error, EncryptionError::Corrupt(_)), "{error}");
}

#[test]
fn an_endless_age_header_ends_at_a_limit() {
    struct Endless;
    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(b'\n');
            Ok(buffer.len())
        }
    }
    let (identity, _) = keys::generate();
    let endless = (&b"age-encryption.org/v1\n"[..]).chain(Endless);
    let error = open_reader_with(endless, &options(std::slice::from_ref(&identity)))
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, EncryptionError::Corrupt(_)), "{error}");
    // age's parser starts over at each line, which took it minutes here before the stanzas were counted.
    let mut many = b"age-encryption.org/v1\n".to_vec();
    while many.len() < AGE_HEADER_BYTES_MAX - 5_000 {
        many.extend_from_slice(b"-> a\n\n");
    }
    many.extend_from_slice(b"--- AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n");
    let start = std::time::Instant::now();
    let error = open_bytes(&many, &options(&[identity])).unwrap_err();
    assert!(matches!(error, EncryptionError::Corrupt(_)), "{error}");
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

#[test]
fn a_failing_reader_is_not_called_a_damaged_object() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the network went away",
            ))
        }
    }
    let (identity, recipient) = keys::generate();
    let identities = [identity];
    let plain = content(500_000, 6);
    for encryption in [encrypted_to(&recipient), Encryption::None] {
        let object = seal_bytes(&encryption, 3, &plain).unwrap();
        for end in [0, 3, 10, 19, 100, 250, 100_000, object.len()] {
            let cut = (&object[..end]).chain(Failing);
            let error = open_reader_with(cut, &options(&identities))
                .and_then(|opened| opened.read_to_vec())
                .unwrap_err();
            assert!(matches!(error, EncryptionError::Read(_)), "{end}: {error}");
            assert_eq!(error.retry_class(), RetryClass::Transient);
        }
    }
}

#[test]
fn reading_on_after_an_error_never_looks_like_the_end() {
    let mut object = seal_bytes(&Encryption::None, 3, &content(500_000, 8)).unwrap();
    let length = object.len();
    object[length - 1] ^= 1;
    let mut opened = open_reader_with(&object[..], &options(&[])).unwrap();
    let error = io::copy(&mut opened, &mut io::sink()).unwrap_err();
    assert!(matches!(
        EncryptionError::from_read(error),
        EncryptionError::Corrupt(_)
    ));
    for _ in 0..3 {
        assert!(opened.read(&mut [0; 10]).is_err());
    }
}

#[test]
fn a_writer_that_was_not_finished_leaves_no_whole_object() {
    let (identity, recipient) = keys::generate();
    let mut object = Vec::new();
    let mut writer = seal_writer(&encrypted_to(&recipient), 3, &mut object).unwrap();
    writer.write_all(&content(1 << 20, 9)).unwrap();
    writer.flush().unwrap();
    drop(writer);
    assert!(open_bytes(&object, &options(&[identity])).is_err());
}

#[test]
fn wrong_settings_are_refused_before_anything_is_written() {
    let nobody = Encryption::Age {
        recipients: Vec::new(),
    };
    assert!(matches!(
        nobody.check_writable(),
        Err(EncryptionError::NoRecipients)
    ));
    let error = seal_bytes(&nobody, 3, b"").unwrap_err();
    assert_eq!(error.to_string(), "encryption is on and no recipient is given");
    assert!(error.hint().unwrap().as_str().contains("pgkeep key new"));
    for level in [i32::MIN, -1, 0, 20, 22, i32::MAX] {
        assert!(matches!(
            seal_bytes(&Encryption::None, level, b""),
            Err(EncryptionError::Level(_))
        ));
    }
    let error = seal_bytes(&Encryption::None, 22, b"").unwrap_err();
    assert_eq!(error.to_string(), "compression level 22 is out of range: 1 to 19");
}

#[test]
fn stock_age_and_zstd_open_what_pgkeep_seals() {
    let (age, zstd) = (require!(tool("age")), require!(tool("zstd")));
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key.txt");
    let (identity, recipient) = keys::generate();
    keys::write_key_file(&key_file, &identity, "2026-11-22T02:00:00Z".parse().unwrap()).unwrap();
    for length in [0, 1, 1_000_000] {
        let plain = content(length, 10);
        let object = seal_bytes(&encrypted_to(&recipient), 3, &plain).unwrap();
        let compressed = filter(Command::new(&age).arg("-d").arg("-i").arg(&key_file), object);
        assert_eq!(filter(Command::new(&zstd).arg("-dc"), compressed), plain);
    }
}

#[test]
fn pgkeep_opens_what_stock_age_and_zstd_seal_with_a_stock_key() {
    let (age, keygen, zstd) = (
        require!(tool("age")),
        require!(tool("age-keygen")),
        require!(tool("zstd")),
    );
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("key.txt");
    assert!(
        Command::new(&keygen)
            .arg("-o")
            .arg(&key_file)
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let read = keys::read_identity_file(&key_file).unwrap();
    let public = filter(Command::new(&keygen).arg("-y").arg(&key_file), Vec::new());
    assert_eq!(
        String::from_utf8(public).unwrap().trim(),
        read.identities[0].to_recipient().to_string()
    );

    let plain = content(1_000_000, 11);
    let compressed = filter(Command::new(&zstd).arg("-c"), plain.clone());
    let recipient = read.identities[0].to_recipient().to_string();
    let object = filter(Command::new(&age).arg("-r").arg(recipient), compressed);
    assert_eq!(open_bytes(&object, &options(&read.identities)).unwrap(), plain);
}

fn assert_send<T: Send>(_: &T) {}

#[test]
fn writers_and_readers_can_move_to_a_worker_thread() {
    let object = seal_bytes(&Encryption::None, 3, b"rows").unwrap();
    assert_send(&open_reader_with(io::Cursor::new(object), &options(&[])).unwrap());
    assert_send(&seal_writer(&Encryption::None, 3, Vec::new()).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the sizes of the writes and reads, what comes out is what went in.
    #[test]
    fn any_content_in_any_pieces_survives(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..20),
        read_bytes in 1_usize..70_000,
        level in 1_i32..=5,
        encrypted: bool,
    ) {
        let (identity, recipient) = keys::generate();
        let encryption = if encrypted { encrypted_to(&recipient) } else { Encryption::None };
        let mut writer = seal_writer(&encryption, level, Vec::new()).unwrap();
        for piece in &pieces {
            writer.write_all(piece).unwrap();
        }
        let object = writer.finish().unwrap();
        let mut opened = open_reader(&object[..], std::slice::from_ref(&identity)).unwrap();
        let mut read = Vec::new();
        let mut buffer = vec![0; read_bytes];
        loop {
            match opened.read_typed(&mut buffer).unwrap() {
                0 => break,
                count => read.extend_from_slice(&buffer[..count]),
            }
        }
        prop_assert_eq!(read, pieces.concat());
    }

    /// Outside bytes never panic and never come out as content, except as real zstd frames.
    #[test]
    fn arbitrary_bytes_are_refused(
        start in prop::sample::select(vec![
            &b""[..], b"age-encryption.org/", b"age-encryption.org/v1\n", b"age-encryption.org/v1\n-> X25519 ",
            b"age-encryption.org/v1\n-> X25519 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n", b"\x28\xb5\x2f\xfd",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let object = [start, &rest].concat();
        let (identity, _) = keys::generate();
        let result = open_bytes(&object, &OpenOptions { identities: &[identity], recipients: &[], bytes_max: 1 << 20 });
        if start.starts_with(b"age") {
            prop_assert!(result.is_err());
        }
    }
}
