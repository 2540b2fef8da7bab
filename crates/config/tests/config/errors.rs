use pgkeep_base::{Classified, Secret};
use pgkeep_config::{ConfigError, Overrides, load, unknown_variables};

use crate::{RECIPIENT, error_of, file, from_variables, load_text, no_variables, variables};

#[test]
fn one_of_several_clusters_must_be_chosen() {
    let config = load_text("[cluster.production]\n[cluster.staging]", &[])
        .unwrap()
        .config;
    let none = Overrides::default();
    assert_eq!(config.select(Some("staging"), &none).unwrap().0, "staging");
    let error = config.select(None, &none).unwrap_err();
    assert_eq!(
        error.to_string(),
        "several clusters are configured and none was chosen: production, staging"
    );
    assert_eq!(
        error.hint().unwrap().as_str(),
        "choose one with --cluster NAME or PGKEEP_CLUSTER=NAME"
    );
    let error = config.select(Some("stagging"), &none).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--cluster: no cluster 'stagging' is configured; did you mean 'staging'?"
    );
    assert_eq!(
        error.hint().unwrap().as_str(),
        "configured are: production, staging"
    );
    let error = config.select(Some("../etc"), &none).unwrap_err();
    assert!(matches!(error, ConfigError::InvalidClusterName { .. }));
    let error = from_variables(&[("PGKEEP_CLUSTER", "Main")])
        .select(None, &none)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("PGKEEP_CLUSTER: 'Main' can't be a cluster's name"),
        "{error}"
    );
}

#[test]
fn unknown_keys_are_refused_with_their_place_and_the_nearest_known_one() {
    for (text, expected) in [
        (
            "[cluster.a]\nconection = \"x\"",
            "2:1: there is no setting 'conection'; did you mean 'connection'?",
        ),
        (
            "[cluster.a]\nkeep = { windw = \"30d\" }",
            "2:10: there is no setting 'keep.windw'; did you mean 'keep.window'?",
        ),
        (
            "[cluster.a.keep]\n\n  dialy = 1",
            "3:3: there is no setting 'keep.dialy'; did you mean 'keep.daily'?",
        ),
        (
            "[cluster.a]\nwindow = \"30d\"",
            "2:1: there is no setting 'window'; did you mean 'keep.window'?",
        ),
        (
            "[cluster.a]\ndaily = 7",
            "2:1: there is no setting 'daily'; did you mean 'keep.daily'?",
        ),
        (
            "[cluster.a]\nidentity-file = \"x\"",
            "2:1: there is no setting 'identity-file'; did you mean 'identity_file'?",
        ),
        ("[cluster.a]\nxyzzy = 1", "2:1: there is no setting 'xyzzy'"),
        (
            "[clusters.a]",
            "1:2: there is no setting 'clusters'; did you mean 'cluster'?",
        ),
        (
            "repository = \"file:///x\"",
            "1:1: there is no setting 'repository'; did you mean 'cluster.NAME.repository'?",
        ),
        (
            "[cluster.a]\nidentity = \"AGE-SECRET-KEY-1X\"",
            "2:1: there is no setting 'identity'; did you mean 'identity_file'?",
        ),
        // The first in the file, whatever the order of the alphabet.
        ("[cluster.a]\nzzz = 1\naaa = 2", "2:1: there is no setting 'zzz'"),
        // Columns count characters, and a byte-order mark or a carriage return is none.
        (
            "# ä\n[cluster.a]\nkeep = { \"ü\" = 1, oops = 2 }",
            "3:10: there is no setting 'keep.ü'",
        ),
        (
            "[cluster.a]\nkeep = { \"ü\" = 1 }\nzzz = 2",
            "2:10: there is no setting 'keep.ü'",
        ),
        ("\u{feff}[cluster.a]\r\nzzz = 1", "2:1: there is no setting 'zzz'"),
    ] {
        assert_eq!(
            error_of(text, &[], &Overrides::default()),
            format!("pgkeep.toml:{expected}")
        );
    }
    let set = |name: &str| Overrides {
        set: vec![(name.to_owned(), Secret::new("1"))],
        ..Overrides::default()
    };
    assert_eq!(
        error_of("", &[], &set("keep.windows")),
        "--set: there is no setting 'keep.windows'; did you mean 'keep.window'?"
    );
    assert_eq!(
        error_of("", &[], &set("daily")),
        "--set: there is no setting 'daily'; did you mean 'keep.daily'?"
    );
}

/// Each a line of a cluster's table, the column of the error, and its text.
const WRONG_VALUES: &[(&str, usize, &str)] = &[
    (
        "repository = 5",
        14,
        "repository must be a string or a list of strings, and is an integer",
    ),
    (
        "repository = [1]",
        14,
        "repository must be a string or a list of strings, and holds something else",
    ),
    ("repository = \"\"", 14, "repository has an empty item"),
    (
        "repository = \"backups\"",
        14,
        "repository must be a URL such as s3://bucket/prefix or file:///directory",
    ),
    (
        "repository = \"flie:///srv/b\"",
        14,
        "repository must be a URL that begins with file, s3, gs or az, and one begins with 'flie'; did you mean 'file://'?",
    ),
    (
        "repository = \"fils:/srv/b\"",
        14,
        "repository must be a URL such as s3://bucket/prefix or file:///directory; did you mean 'file://'?",
    ),
    (
        "repository = \"/srv/b\"",
        14,
        "repository must be a URL; for this directory write 'file:///srv/b'",
    ),
    (
        "repository = \"ftp://b\"",
        14,
        "repository must be a URL that begins with file, s3, gs or az, and one begins with 'ftp'",
    ),
    (
        "repository = [\"s3://b\", \"s3://b/\"]",
        14,
        "repository names 's3://b/' twice",
    ),
    (
        "encryption = \"nome\"",
        14,
        "encryption must be one of age, none; did you mean 'none'?",
    ),
    (
        "encryption = false",
        14,
        "encryption must be one of age, none, and is true or false",
    ),
    (
        "recipients = \"bob\"",
        14,
        "recipients must be public keys that begin with age1; `pgkeep key new` makes a pair",
    ),
    (
        "identity_file = \"~/key\"",
        17,
        "identity_file begins with '~', which only a shell knows; write the whole path",
    ),
    ("identity_file = \" \"", 17, "identity_file is empty"),
    ("pg_bin = \"a\\u0000b\"", 10, "pg_bin holds a zero character"),
    (
        "stream = \"true\"",
        10,
        "stream must be true or false, and is a string",
    ),
    (
        "timezone = \"Berlin\"",
        12,
        "timezone must be a time zone such as \"Europe/Berlin\", and 'Berlin' is none that this machine knows",
    ),
    (
        "keep = 7",
        8,
        "keep must be a table with any of: window, daily, weekly, monthly, yearly",
    ),
    (
        "keep.daily = -1",
        14,
        "keep.daily must be a whole number from 0 to 100000, and is -1",
    ),
    (
        "keep.daily = 1.5",
        14,
        "keep.daily must be a whole number from 0 to 100000, and is a number with a fraction",
    ),
    (
        "keep.daily = 99999999999999999999",
        14,
        "keep.daily must be a whole number from 0 to 100000",
    ),
    (
        "keep.daily = \"7\"",
        14,
        "keep.daily must be a whole number from 0 to 100000, and is a string",
    ),
    (
        "keep.window = 30",
        15,
        "keep.window must be a duration such as \"30d\" or \"12h\", and is an integer",
    ),
    (
        "keep.window = \"30\"",
        15,
        "keep.window must be a duration such as \"30d\" or \"12h\", and is '30'",
    ),
    (
        "keep.window = \"1 month\"",
        15,
        "keep.window must be a duration such as \"30d\" or \"12h\", and is '1 month'",
    ),
    (
        "keep.window = \"-1d\"",
        15,
        "keep.window must be from 0 to 1000 years, and is '-1d'",
    ),
    (
        "keep.window = \"999999w\"",
        15,
        "keep.window must be from 0 to 1000 years, and is '999999w'",
    ),
    (
        "dump.jobs = 0",
        13,
        "dump.jobs must be a whole number from 1 to 256, and is 0",
    ),
    (
        "dump.compression_level = 22",
        26,
        "dump.compression_level must be a whole number from 1 to 19, and is 22",
    ),
    (
        "dump.databases = 1",
        18,
        "dump.databases must be \"all\" or a list of names",
    ),
    (
        "dump.databases = []",
        18,
        "dump.databases is an empty list; write \"all\", or leave it out",
    ),
    (
        "dump.format = \"tar\"",
        15,
        "dump.format must be one of repository, plain, custom, directory",
    ),
    (
        "dump.schedule = \"daily\"",
        17,
        "dump.schedule must be a cron expression such as \"0 3 * * *\" or \"@daily\", and is 'daily'",
    ),
    (
        "limits.memory = \"lots\"",
        17,
        "limits.memory must be a size such as \"256MiB\", and is 'lots'",
    ),
    (
        "limits.upload_bytes_per_second = \"20 MB/h\"",
        34,
        "limits.upload_bytes_per_second must be a rate such as \"20MB/s\", and is '20 MB/h'",
    ),
    (
        "connection = 1979-05-27",
        14,
        "connection must be a string, and is a date or time",
    ),
    (
        "connection = { host = \"db\" }",
        14,
        "connection must be a string, and is a table",
    ),
];

#[test]
fn wrong_values_are_refused_with_their_place() {
    for (line, column, expected) in WRONG_VALUES {
        let found = error_of(&format!("[cluster.a]\n{line}"), &[], &Overrides::default());
        assert_eq!(found, format!("pgkeep.toml:2:{column}: {expected}"));
    }
    for (variable, value, expected) in [
        (
            "PGKEEP_STREAM",
            "maybe",
            "stream must be true or false, and is other text",
        ),
        (
            "PGKEEP_KEEP__DAILY",
            "x",
            "keep.daily must be a whole number from 0 to 100000, and is other text",
        ),
        ("PGKEEP_REPOSITORY", "file:///a,", "repository has an empty item"),
    ] {
        let found = error_of("", &[(variable, value)], &Overrides::default());
        assert_eq!(found, format!("{variable}: {expected}"));
    }
    let overrides = Overrides {
        keep_window: Some("long".to_owned()),
        ..Overrides::default()
    };
    assert_eq!(
        error_of("", &[], &overrides),
        "--keep-window: keep.window must be a duration such as \"30d\" or \"12h\", and is 'long'"
    );
    let many = format!("[cluster.a]\ndump.databases = [{}]", "\"a\",".repeat(1001));
    let error = error_of(&many, &[], &Overrides::default());
    assert_eq!(
        error,
        "pgkeep.toml:2:18: dump.databases must be \"all\" or a list of names"
    );
}

#[test]
fn the_structure_is_checked() {
    for (text, expected) in [
        (
            "cluster = 1",
            "1:11: cluster must be a table of clusters: write [cluster.NAME]",
        ),
        (
            "[cluster]\nconnection = \"x\"",
            "2:1: cluster.connection must be a table: settings stand under [cluster.NAME]",
        ),
        (
            "[cluster.\"A b\"]",
            "1:10: 'A b' can't be a cluster's name: it begins with a small letter or a digit, and up to 62 small \
             letters, digits, dots, dashes and underscores follow",
        ),
        ("[cluster.a]\nstream = true\nstream = false", "3:1: duplicate key"),
    ] {
        assert_eq!(
            error_of(text, &[], &Overrides::default()),
            format!("pgkeep.toml:{expected}")
        );
    }
    let long = "a".repeat(63);
    assert!(load_text(&format!("[cluster.{long}]\n[cluster.\"0_a-b.c\"]"), &[]).is_ok());
    let longer = "a".repeat(64);
    for bad in [longer.as_str(), "-a", ".a", "..", "a/b", "ä", ""] {
        let error = load_text(&format!("[cluster.\"{bad}\"]"), &[])
            .map(|_| ())
            .unwrap_err();
        assert!(
            matches!(error, ConfigError::InvalidClusterName { .. }),
            "{bad}: {error}"
        );
    }
}

#[test]
fn contradictions_are_refused() {
    let text = format!("[cluster.a]\nencryption = \"none\"\nrecipients = \"{RECIPIENT}\"");
    assert_eq!(
        error_of(&text, &[], &Overrides::default()),
        "encryption is \"none\", yet recipients to encrypt for are given"
    );
}

#[test]
fn files_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    let shown = missing.display().to_string();
    let error = load(Some(&missing), &no_variables).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("there is no configuration file {shown} (named by --config)")
    );
    assert!(error.hint().unwrap().as_str().contains("/etc/pgkeep/pgkeep.toml"));
    let error = load(None, &variables(&[("PGKEEP_CONFIG", &shown)])).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("there is no configuration file {shown} (named by PGKEEP_CONFIG)")
    );
    let error = load(Some(folder.path()), &no_variables).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "could not read the configuration file {}",
            folder.path().display()
        )
    );
    let (_folder, path) = file([0xff, 0xfe]);
    let error = load(Some(&path), &no_variables).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} is not a configuration file: it is not UTF-8 text",
            path.display()
        )
    );
    let (_folder, path) = file(vec![b'#'; (1 << 20) + 1]);
    let error = load(Some(&path), &no_variables).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} is not a configuration file: it is too large", path.display())
    );
}

#[test]
fn unknown_variables_are_warned_of() {
    let names = [
        "PATH",
        "PGKEEP_KEEP_WINDOW",
        "PGKEEP_TEST_X",
        "PGKEEP_REPOSITORY",
        "PGKEEP_CONFIG",
        "PGKEEP_LOG",
        "PGKEEP_XYZZY",
        "XPGKEEP_A",
    ];
    let warnings = unknown_variables(names, &["PGKEEP_LOG"]);
    let texts: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "nothing reads the variable PGKEEP_KEEP_WINDOW; did you mean 'PGKEEP_KEEP__WINDOW'?",
            "nothing reads the variable PGKEEP_XYZZY",
        ]
    );
}
