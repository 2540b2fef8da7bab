use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jiff::SignedDuration;
use pgkeep_base::{ByteCount, Classified, Secret};
use pgkeep_config::{Databases, DumpFormat, EncryptionMode, Overrides, SETTINGS, reference_markdown};

use crate::{RECIPIENT, from_variables, load_text, selected};

#[test]
fn the_example_of_the_design_is_read() {
    let text = r#"
        [cluster.gamepulse]
        connection = "postgres://pgkeep@db:5432/postgres"
        repository = ["s3://gamepulse-backups/pgkeep"]
        stream     = true
        backup     = { schedule = "0 3 * * *" }
        dump       = { schedule = "0 2 * * *", databases = "all" }
        drill      = { schedule = "0 5 * * 0" }
        keep       = { window = "30d", daily = 7, weekly = 4, monthly = 6 }
    "#;
    let config = load_text(text, &[]).unwrap().config;
    let (name, cluster) = config.select(None, &Overrides::default()).unwrap();
    assert_eq!(name, "gamepulse");
    assert_eq!(
        cluster.connection.unwrap().expose(),
        "postgres://pgkeep@db:5432/postgres"
    );
    assert_eq!(cluster.repository, ["s3://gamepulse-backups/pgkeep"]);
    assert!(cluster.stream);
    assert_eq!(cluster.backup.schedule.as_deref(), Some("0 3 * * *"));
    assert_eq!(cluster.dump.schedule.as_deref(), Some("0 2 * * *"));
    assert_eq!(cluster.dump.databases, Databases::All);
    assert_eq!(cluster.drill.schedule.as_deref(), Some("0 5 * * 0"));
    assert_eq!(cluster.keep.window, Some(SignedDuration::from_hours(720)));
    let keep = cluster.keep;
    assert_eq!((keep.daily, keep.weekly, keep.monthly, keep.yearly), (7, 4, 6, 0));
    assert_eq!(cluster.encryption, EncryptionMode::Age);
}

/// For each setting a value other than the default, as a variable and the file have it.
fn sample(name: &str) -> (&'static str, &'static str) {
    match name {
        "connection" => ("host=db password=hunter2", "\"host=db password=hunter2\""),
        "repository" => ("file:///a, s3://b/c", "[\"file:///a\", \"s3://b/c\"]"),
        "recipients" => ("age1a,age1b", "[\"age1a\", \"age1b\"]"),
        "encryption" => ("none", "\"none\""),
        "timezone" => ("Europe/Berlin", "\"Europe/Berlin\""),
        "dump.format" => ("custom", "\"custom\""),
        "dump.row_format" => ("text", "\"text\""),
        "backup.reader" => ("local", "\"local\""),
        "wal.slot" => ("backups", "\"backups\""),
        "wal.at_limit" => ("hold", "\"hold\""),
        "wal.slot_bytes_max" => ("1GiB", "\"1GiB\""),
        "dump.reuse_max_age" | "keep.window" | "wal.flush_after" => ("12h", "\"12h\""),
        "limits.upload_bytes_per_second" => ("20MB/s", "\"20MB/s\""),
        "limits.memory" => ("256MiB", "\"256MiB\""),
        _ if name.ends_with(".schedule") => ("0 3 * * *", "\"0 3 * * *\""),
        _ if name.ends_with("jobs") || name.ends_with("level") || name.starts_with("keep.") => ("7", "7"),
        "stream" | "wal.synchronous" | "dump.incremental" | "s3.path_style" | "s3.allow_http" => {
            ("true", "true")
        }
        _ if name.starts_with("dump.") => ("a, b", "[\"a\", \"b\"]"),
        _ => ("/text", "\"/text\""),
    }
}

#[test]
fn every_setting_means_the_same_in_file_variable_and_flag() {
    for setting in SETTINGS {
        let (text, toml) = sample(setting.name);
        let none = Overrides::default();
        let default = selected("[cluster.a]", &[], &none);
        let in_file = selected(&format!("[cluster.a]\n{} = {toml}", setting.name), &[], &none);
        assert_ne!(in_file, default, "{} has no effect", setting.name);
        let by_variable = selected("[cluster.a]", &[(&setting.variable(), text)], &none);
        assert_eq!(by_variable, in_file, "{}", setting.variable());
        let flag = Overrides {
            set: vec![(setting.name.to_owned(), Secret::new(text))],
            ..none
        };
        assert_eq!(
            selected("[cluster.a]", &[], &flag),
            in_file,
            "--set {}",
            setting.name
        );
    }
}

#[test]
fn names_of_settings_and_variables_are_unique_and_documented() {
    let by_variable: BTreeMap<String, &str> = SETTINGS.iter().map(|s| (s.variable(), s.name)).collect();
    assert_eq!(by_variable.len(), SETTINGS.len());
    assert_eq!(by_variable["PGKEEP_KEEP__WINDOW"], "keep.window");
    assert_eq!(by_variable["PGKEEP_IDENTITY_FILE"], "identity_file");
    for setting in SETTINGS {
        let texts = [setting.doc, setting.form, setting.default];
        assert!(
            texts.iter().all(|text| !text.is_empty() && !text.contains('|')),
            "{setting:?}"
        );
        let inner = format!("{}.", setting.name);
        assert!(
            SETTINGS.iter().all(|other| !other.name.starts_with(&inner)),
            "{setting:?} is a table too"
        );
    }
}

#[test]
fn the_documentation_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let expected = reference_markdown();
    if std::env::var_os("PGKEEP_TEST_UPDATE_DOCS").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/configuration.md is not what the table of settings says; `PGKEEP_TEST_UPDATE_DOCS=1 cargo test -p \
         pgkeep-config` writes it"
    );
}

#[test]
fn flags_stand_over_variables_over_the_file_and_lists_are_replaced() {
    let text = "[cluster.a]\nrepository = \"file:///file\"\nkeep = { daily = 1, weekly = 1 }\nidentity_file = \"/f\"";
    let pairs = [
        ("PGKEEP_REPOSITORY", "file:///v1,file:///v2"),
        ("PGKEEP_KEEP__DAILY", "2"),
    ];
    let none = Overrides::default();
    let cluster = selected(text, &pairs, &none);
    assert_eq!(cluster.repository, ["file:///v1", "file:///v2"]);
    assert_eq!((cluster.keep.daily, cluster.keep.weekly), (2, 1));
    assert_eq!(cluster.identity_file.as_deref(), Some(Path::new("/f")));
    let overrides = Overrides {
        connection: Some(Secret::new("host=flag")),
        repository: vec!["file:///flag,with,commas".to_owned()],
        recipients: vec![RECIPIENT.to_owned()],
        encryption: Some("age".to_owned()),
        identity_file: Some("/flag".into()),
        pg_bin: Some("/bin".into()),
        jobs: Some(3),
        compression_level: Some(9),
        upload_limit: Some("1MB/s".to_owned()),
        keep_window: Some("2w".to_owned()),
        keep_daily: Some(3),
        keep_weekly: Some(6),
        keep_monthly: Some(4),
        keep_yearly: Some(5),
        s3_endpoint: Some("http://127.0.0.1:1".to_owned()),
        s3_region: Some("eu".to_owned()),
        set: vec![("s3.profile".to_owned(), Secret::new("p"))],
    };
    let pairs = [("PGKEEP_ENCRYPTION", "none"), ("PGKEEP_KEEP__DAILY", "2")];
    let cluster = selected(text, &pairs, &overrides);
    assert_eq!(cluster.connection.unwrap().expose(), "host=flag");
    assert_eq!(cluster.repository, ["file:///flag,with,commas"]);
    assert_eq!(cluster.recipients, [RECIPIENT]);
    assert_eq!(cluster.encryption, EncryptionMode::Age);
    assert_eq!(cluster.identity_file.as_deref(), Some(Path::new("/flag")));
    assert_eq!(cluster.pg_bin.as_deref(), Some(Path::new("/bin")));
    // Of what does something: base backups aren't made yet.
    assert_eq!((cluster.dump.jobs, cluster.backup.jobs), (Some(3), None));
    assert_eq!(
        (cluster.dump.compression_level, cluster.backup.compression_level),
        (Some(9), None)
    );
    assert_eq!(cluster.limits.upload_bytes_per_second, Some(ByteCount(1_000_000)));
    assert_eq!(cluster.keep.window, Some(SignedDuration::from_hours(14 * 24)));
    let keep = cluster.keep;
    assert_eq!((keep.daily, keep.weekly, keep.monthly, keep.yearly), (3, 6, 4, 5));
    assert_eq!(cluster.s3.endpoint.as_deref(), Some("http://127.0.0.1:1"));
    assert_eq!(
        (cluster.s3.region.as_deref(), cluster.s3.profile.as_deref()),
        (Some("eu"), Some("p"))
    );
}

#[test]
fn a_key_file_that_a_flag_names_stands_over_a_key_in_the_environment() {
    let pairs = [
        ("PGKEEP_IDENTITY", "AGE-SECRET-KEY-1X"),
        ("PGKEEP_IDENTITY_FILE", "/variable"),
    ];
    let by_flag = Overrides {
        identity_file: Some("/flag".into()),
        ..Overrides::default()
    };
    let by_set = Overrides {
        set: vec![("identity_file".to_owned(), Secret::new("/flag"))],
        ..Overrides::default()
    };
    for overrides in [by_flag, by_set] {
        let cluster = selected("", &pairs, &overrides);
        assert_eq!(cluster.identity_file.as_deref(), Some(Path::new("/flag")));
        assert!(cluster.identity.is_none(), "the flag has no effect");
    }
    let cluster = selected("", &pairs, &Overrides::default());
    assert!(cluster.identity.is_some());
}

#[test]
fn without_a_file_variables_and_flags_say_everything() {
    let none = Overrides::default();
    let pairs = [
        ("PGKEEP_CONNECTION", "host=db"),
        ("PGKEEP_REPOSITORY", "file:///b"),
        ("PGKEEP_IDENTITY", "AGE-SECRET-KEY-1X"),
    ];
    let (name, cluster) = from_variables(&pairs).select(None, &none).unwrap();
    assert_eq!(name, "main");
    assert_eq!(cluster.repositories().unwrap(), ["file:///b"]);
    assert_eq!(cluster.identity.unwrap().expose(), "AGE-SECRET-KEY-1X");
    let named = from_variables(&[("PGKEEP_CLUSTER", " x ")]);
    assert_eq!(named.select(None, &none).unwrap().0, "x");
    assert_eq!(named.select(Some("y"), &none).unwrap().0, "y");
    // As `${PGKEEP_CLUSTER:-}` in a compose file leaves them.
    let empty = from_variables(&[("PGKEEP_CLUSTER", ""), ("PGKEEP_DUMP__JOBS", " ")]);
    assert_eq!(empty.select(None, &none).unwrap().0, "main");

    let error = from_variables(&[])
        .select(None, &none)
        .unwrap()
        .1
        .repositories()
        .unwrap_err();
    assert_eq!(error.to_string(), "no repository is configured");
    assert!(error.hint().unwrap().as_str().contains("PGKEEP_REPOSITORY"));
}

#[test]
fn values_are_read_as_people_write_them() {
    let cluster = selected(
        "[cluster.a]\nlimits = { memory = 1048576, upload_bytes_per_second = 1_000 }\nkeep.window = \"36 hours\"\n\
         dump = { databases = [\"all\"], format = \"plain\", schedule = \"@daily\", jobs = 0x10 }",
        &[],
        &Overrides::default(),
    );
    assert_eq!(cluster.limits.memory, Some(ByteCount(1 << 20)));
    assert_eq!(cluster.limits.upload_bytes_per_second, Some(ByteCount(1000)));
    assert_eq!(cluster.keep.window, Some(SignedDuration::from_hours(36)));
    assert_eq!(cluster.dump.databases, Databases::Named(vec!["all".to_owned()]));
    assert_eq!(
        (cluster.dump.format, cluster.dump.jobs),
        (DumpFormat::Plain, Some(16))
    );
    for (text, expected) in [("yes", true), ("off", false), ("1", true), ("FALSE", false)] {
        assert_eq!(
            selected("", &[("PGKEEP_STREAM", text)], &Overrides::default()).stream,
            expected,
            "{text}"
        );
    }
}
