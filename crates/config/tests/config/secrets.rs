use std::fs;
use std::os::unix::fs::PermissionsExt;

use pgkeep_base::{Classified, Secret};
use pgkeep_config::{Overrides, SETTINGS, Warning, load};

use crate::{file, from_variables, load_text, no_variables, selected};

const SECRET: &str = "hunter2";

#[test]
fn secrets_are_in_no_error() {
    for text in [
        // Broken TOML in the line of the password, and after it.
        "[cluster.a]\nconnection = \"postgres://u:hunter2@h/d",
        "[cluster.a]\nconnection = \"password=hunter2\" x",
        "[cluster.a]\nconnection = password=hunter2",
        "[cluster.a]\nconnection = 'password=hunter2'\nconnection = 'password=hunter2'",
        "[cluster.a]\nconnection = [\"password=hunter2\"]",
        "[cluster.a]\ns3.secret_access_key = [\"hunter2\"]",
        "[cluster.a]\nrepository = \"s3://key:hunter2@bucket\"",
        "[cluster.a]\nrepository = \"az://c?sig=hunter2\"",
        "[cluster.a]\nrecipients = \"AGE-SECRET-KEY-1HUNTER2\"",
        "[cluster.a]\nrecipients = \"hunter2\"",
    ] {
        let error = load_text(text, &[]).map(|_| ()).unwrap_err();
        let shown = format!("{error} {error:?} {:?}", error.hint()).to_lowercase();
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

#[test]
fn debug_shows_no_secret() {
    let pairs = [
        ("PGKEEP_CONNECTION", "password=hunter2"),
        ("PGKEEP_IDENTITY", "hunter2"),
        ("PGKEEP_S3__SECRET_ACCESS_KEY", "hunter2"),
        ("PGKEEP_AZURE__SAS_TOKEN", "hunter2"),
    ];
    let config = from_variables(&pairs);
    let shown = format!(
        "{config:?} {:?}",
        config.select(None, &Overrides::default()).unwrap()
    );
    assert!(!shown.contains(SECRET), "{shown}");
    let secrets: Vec<_> = SETTINGS.iter().filter(|setting| setting.secret).collect();
    assert_eq!(secrets.len(), 6);
    for setting in secrets {
        let cluster = selected(
            "[cluster.a]",
            &[(&setting.variable(), SECRET)],
            &Overrides::default(),
        );
        assert!(!format!("{cluster:?}").contains(SECRET), "{setting:?}");
    }
    let overrides = Overrides {
        connection: Some(Secret::new("password=hunter2")),
        set: vec![("connection".to_owned(), Secret::new("password=hunter2"))],
        ..Overrides::default()
    };
    assert!(!format!("{overrides:?}").contains(SECRET));
}

#[test]
fn a_file_with_a_password_that_everybody_may_read_is_warned_of() {
    for (line, mode, warned) in [
        ("connection = \"postgres://u:p@h/d\"", 0o644, true),
        ("connection = \"host=h password=p\"", 0o604, true),
        ("s3.secret_access_key = \"p\"", 0o644, true),
        ("connection = \"postgres://u@h:5432/d\"", 0o644, false),
        ("connection = \"postgres://u:p@h/d\"", 0o640, false),
    ] {
        let (_folder, path) = file(format!("[cluster.a]\n{line}"));
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let warnings = load(Some(&path), &no_variables).unwrap().warnings;
        let expected = warned.then(|| Warning::SecretsReadable {
            path: path.clone(),
            mode,
        });
        assert_eq!(
            warnings,
            expected.into_iter().collect::<Vec<_>>(),
            "{line} {mode:o}"
        );
    }
    let warning = Warning::SecretsReadable {
        path: "/etc/x".into(),
        mode: 0o644,
    };
    assert_eq!(
        warning.to_string(),
        "/etc/x holds a password or a key and everybody may read it (mode 0644); `chmod o-rwx /etc/x` closes it"
    );
}
