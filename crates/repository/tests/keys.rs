//! Keys: the file's form and permissions, every error, and no secret in any of them.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_repository::keys::{
    IDENTITY_FILE_BYTES_MAX, KeyError, KeyWarning, Recipient, generate, parse_identities, parse_recipients,
    read_identity_file, write_key_file,
};
use proptest::prelude::*;

#[test]
fn a_key_file_is_what_age_keygen_writes_private_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.txt");
    let (identity, recipient) = generate();
    write_key_file(&path, &identity, "2026-11-22T02:00:00.123Z".parse().unwrap()).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "# created: 2026-11-22T02:00:00Z");
    assert_eq!(lines[1], format!("# public key: {recipient}"));
    assert_eq!(lines[2], identity.to_secret().expose());
    assert_eq!((lines.len(), lines[2].len(), text.ends_with('\n')), (3, 74, true));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let read = read_identity_file(&path).unwrap();
    assert_eq!(read.identities[0].to_recipient(), recipient);
    assert_eq!(read.warnings, []);

    let error = write_key_file(&path, &generate().0, "2026-11-22T02:00:00Z".parse().unwrap()).unwrap_err();
    assert!(matches!(error, KeyError::FileExists { .. }));
    assert_eq!(error.retry_class(), RetryClass::Refused);
    assert!(
        error
            .to_string()
            .ends_with("a key file is never overwritten, it may be the only key to existing backups")
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), text);

    let missing = folder.path().join("nowhere/key.txt");
    let error = write_key_file(&missing, &identity, "2026-11-22T02:00:00Z".parse().unwrap()).unwrap_err();
    let nowhere = folder.path().join("nowhere");
    assert!(
        matches!(&error, KeyError::NoFolder { folder, .. } if *folder == nowhere),
        "{error}"
    );
    let hint = error.hint().unwrap().to_string();
    assert!(
        hint.contains(&format!("mkdir -p -m 700 '{}'", nowhere.display())),
        "{hint}"
    );
    assert!(!nowhere.exists());
}

#[test]
fn a_file_that_others_can_read_is_read_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.txt");
    write_key_file(&path, &generate().0, "2026-11-22T02:00:00Z".parse().unwrap()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let read = read_identity_file(&path).unwrap();
    assert_eq!(
        read.warnings,
        [KeyWarning::ReadableByOthers {
            path: path.clone(),
            mode: 0o644
        }]
    );
    let path = path.display();
    assert_eq!(
        read.warnings[0].to_string(),
        format!("{path} holds a secret key and others may read it (mode 0644); `chmod 600 {path}` closes it")
    );
}

#[test]
fn several_identities_comments_and_windows_line_ends_are_read() {
    let (one, other) = (generate().0, generate().0);
    let text = format!(
        "# c\r\n\r\n{}\r\n # d\n  {}",
        one.to_secret().expose(),
        other.to_secret().expose()
    );
    let identities = parse_identities(&text, "PGKEEP_IDENTITY").unwrap();
    let recipients: Vec<Recipient> = identities
        .iter()
        .map(|identity| identity.to_recipient())
        .collect();
    assert_eq!(recipients, [one.to_recipient(), other.to_recipient()]);
}

#[test]
fn what_is_no_identity_is_named_by_line_without_its_text() {
    let (identity, recipient) = generate();
    let mut damaged = identity.to_secret().expose().to_owned();
    let last = if damaged.ends_with('Q') { "P" } else { "Q" };
    damaged.replace_range(damaged.len() - 1.., last);
    for (text, expected) in [
        (
            String::new(),
            "PGKEEP_IDENTITY is not an identity file: there is no secret key in it",
        ),
        (
            "# only a comment\n".to_owned(),
            "PGKEEP_IDENTITY is not an identity file: there is no secret key in it",
        ),
        (
            format!("# c\n{recipient}\n"),
            "PGKEEP_IDENTITY is not an identity file: line 2 is a public key; to open backups takes the secret one",
        ),
        (
            damaged,
            "PGKEEP_IDENTITY is not an identity file: the key in line 1 is damaged: its checksum fails",
        ),
        (
            "hunter2".to_owned(),
            "PGKEEP_IDENTITY is not an identity file: line 1 is neither a comment nor a secret key",
        ),
        (
            "AGE-PLUGIN-YUBIKEY-1XYZ".to_owned(),
            "PGKEEP_IDENTITY is not an identity file: line 1 is a key of a kind that pgkeep doesn't use \
             (post-quantum or plugin)",
        ),
        (
            "age-encryption.org/v1\n-> scrypt".to_owned(),
            "PGKEEP_IDENTITY is protected by a passphrase, which pgkeep doesn't ask for",
        ),
    ] {
        let error = parse_identities(&text, "PGKEEP_IDENTITY").unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.retry_class(), RetryClass::Usage);
        assert!(error.hint().is_some());
    }
}

#[test]
fn files_that_cannot_be_identity_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("big");
    fs::write(
        &path,
        vec![b'#'; usize::try_from(IDENTITY_FILE_BYTES_MAX).unwrap() + 1],
    )
    .unwrap();
    let error = read_identity_file(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} is not an identity file: it is larger than 64 KiB",
            path.display()
        )
    );
    fs::write(&path, [0xff, 0xfe]).unwrap();
    let error = read_identity_file(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} is not an identity file: it is not text", path.display())
    );
    fs::write(&path, b"age-encryption.org/v1\n\xff").unwrap();
    assert!(matches!(
        read_identity_file(&path),
        Err(KeyError::PassphraseProtected { .. })
    ));
    let missing = folder.path().join("missing");
    let error = read_identity_file(&missing).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("could not read the identity file {}", missing.display())
    );
    assert!(error.hint().unwrap().as_str().contains("PGKEEP_IDENTITY_FILE"));
}

#[test]
fn recipients_are_checked_and_repetitions_dropped() {
    let (one, other) = (generate().1, generate().1);
    let texts = [one.to_string(), format!(" {other}\n"), one.to_string()];
    assert_eq!(parse_recipients(&texts).unwrap(), [one.clone(), other]);
    let json = serde_json::to_string(&one).unwrap();
    assert_eq!(json, format!("\"{one}\""));
    assert_eq!(serde_json::from_str::<Recipient>(&json).unwrap(), one);
    assert!(matches!(
        parse_recipients::<&str>(&[]),
        Err(KeyError::RecipientsEmpty)
    ));
}

#[test]
fn what_is_no_recipient_is_explained_and_a_secret_is_never_echoed() {
    let secret = generate().0.to_secret();
    let mut typing_error = generate().1.to_string();
    typing_error.replace_range(20..21, if &typing_error[20..21] == "q" { "p" } else { "q" });
    for text in [
        secret.expose().to_owned(),
        secret.expose().to_lowercase(),
        format!("KEY={}", secret.expose()),
        format!("age1{}", secret.expose()),
        secret.expose()[1..].to_owned(),
    ] {
        let error = text.parse::<Recipient>().unwrap_err();
        assert!(matches!(error, KeyError::RecipientIsSecretKey), "{error}");
        let shown = format!("{error} {error:?} {}", error.hint().unwrap()).to_lowercase();
        assert!(
            !shown.contains(&secret.expose()[20..30].to_lowercase()),
            "{shown}"
        );
    }
    for (text, expected) in [
        (
            "ssh-ed25519 AAAA",
            "an SSH key was given as a recipient; pgkeep takes native age keys only (age1 and 58 characters)",
        ),
        (
            "age1pq1xyz",
            "a post-quantum age key was given as a recipient; pgkeep takes native age keys only (age1 and 58 characters)",
        ),
        (
            "age1yubikey1xyz",
            "the key of an age plugin was given as a recipient; pgkeep takes native age keys only (age1 and 58 characters)",
        ),
        (
            "hunter2",
            "the text given is not an age recipient: one is age1 and 58 characters, with a checksum that finds typing errors",
        ),
        (
            "",
            "the text given is not an age recipient: one is age1 and 58 characters, with a checksum that finds typing errors",
        ),
    ] {
        assert_eq!(text.parse::<Recipient>().unwrap_err().to_string(), expected);
    }
    let error = typing_error.parse::<Recipient>().unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("'{typing_error}' is not an age recipient"))
    );
}

#[test]
fn debug_shows_no_secret() {
    let (identity, recipient) = generate();
    assert_eq!(format!("{identity:?}"), format!("Identity(of {recipient})"));
    assert_eq!(format!("{:?}", identity.to_secret()), "[secret]");
}

proptest! {
    #[test]
    fn arbitrary_text_is_refused_without_panic(text in "\\PC{0,200}") {
        prop_assert!(parse_identities(&text, "PGKEEP_IDENTITY").is_err());
        prop_assert!(text.parse::<Recipient>().is_err());
    }

    #[test]
    fn near_keys_are_refused_without_panic(
        prefix in prop::sample::select(vec!["age1", "AGE1", "AGE-SECRET-KEY-1", "age-secret-key-1"]),
        rest in "[a-zA-Z0-9]{0,80}",
    ) {
        let text = format!("{prefix}{rest}");
        let _ = parse_identities(&text, "PGKEEP_IDENTITY");
        let _ = text.parse::<Recipient>();
    }
}
