use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use pgkeep_base::Secret;
use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> Vec<(&'static str, String)> {
    Conninfo::parse(text)
        .unwrap_or_else(|error| panic!("{text}: {error}"))
        .settings
        .into_iter()
        .collect()
}

fn check(text: &str, expected: &[(&str, &str)]) {
    let mut expected: Vec<_> = expected
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    expected.sort();
    assert_eq!(parsed(text), expected, "{text}");
}

fn environment(variables: &[(&str, &str)], home: Option<&Path>) -> Environment {
    let variables: HashMap<String, String> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Environment::new(
        move |name| variables.get(name).cloned(),
        home.map(Path::to_owned),
        Some("osuser".to_owned()),
    )
}

fn resolve(text: &str, variables: &[(&str, &str)]) -> Result<Target, ConninfoError> {
    Conninfo::parse(text)?.resolve(&environment(variables, None))
}

/// The examples of PostgreSQL's documentation, "Connection Strings", and of its tests
/// (`src/interfaces/libpq/t/001_uri.pl`).
#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn the_documented_connection_strings() {
    check("", &[]);
    check(
        "host=localhost port=5432 dbname=mydb connect_timeout=10",
        &[
            ("host", "localhost"),
            ("port", "5432"),
            ("dbname", "mydb"),
            ("connect_timeout", "10"),
        ],
    );
    check(
        "user = 'a b' password='it\\'s \\\\' dbname=x\\ y",
        &[("user", "a b"), ("password", "it's \\"), ("dbname", "x y")],
    );
    check("dbname='' user=a user=b", &[("dbname", ""), ("user", "b")]);
    check("postgresql://", &[]);
    check("postgresql://localhost", &[("host", "localhost")]);
    check(
        "postgresql://localhost:5433",
        &[("host", "localhost"), ("port", "5433")],
    );
    check(
        "postgresql://localhost/mydb",
        &[("host", "localhost"), ("dbname", "mydb")],
    );
    check(
        "postgresql://user@localhost",
        &[("user", "user"), ("host", "localhost")],
    );
    check(
        "postgresql://user:secret@localhost",
        &[("user", "user"), ("password", "secret"), ("host", "localhost")],
    );
    check(
        "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
        &[
            ("user", "other"),
            ("host", "localhost"),
            ("dbname", "otherdb"),
            ("connect_timeout", "10"),
            ("application_name", "myapp"),
        ],
    );
    check(
        "postgresql://host1:123,host2:456/somedb?target_session_attrs=any&application_name=myapp",
        &[
            ("host", "host1,host2"),
            ("port", "123,456"),
            ("dbname", "somedb"),
            ("target_session_attrs", "any"),
            ("application_name", "myapp"),
        ],
    );
    check(
        "postgresql:///mydb?host=localhost&port=5433",
        &[("dbname", "mydb"), ("host", "localhost"), ("port", "5433")],
    );
    check(
        "postgresql://[2001:db8::1234]:55/database",
        &[("host", "2001:db8::1234"), ("port", "55"), ("dbname", "database")],
    );
    check(
        "postgresql://user@localhost:5433/mydb?options=-c%20synchronous_commit%3Doff",
        &[
            ("user", "user"),
            ("host", "localhost"),
            ("port", "5433"),
            ("dbname", "mydb"),
            ("options", "-c synchronous_commit=off"),
        ],
    );
    check(
        "postgresql://%2Fvar%2Flib%2Fpostgresql/dbname",
        &[("host", "/var/lib/postgresql"), ("dbname", "dbname")],
    );
    check("postgres:///?ssl=true", &[("sslmode", "require")]);
    check(
        "postgres://uri-user:@host",
        &[("user", "uri-user"), ("host", "host")],
    );
    check("postgres://?hostaddr=127.0.0.1", &[("hostaddr", "127.0.0.1")]);
    check(
        "postgres://a:b%3A%2F%40%3F%20@h/%25",
        &[
            ("user", "a"),
            ("password", "b:/@? "),
            ("host", "h"),
            ("dbname", "%"),
        ],
    );
    for wrong in [
        "postgresql://host/db?u%7aer=someotheruser",
        "postgresql://[::1",
        "postgresql://[]",
        "postgres://[::1]z",
        "postgresql://%",
        "postgres://@host?uzer",
        "postgres://host?zzz",
        "postgres://host?a=b=c",
        "postgres://host?user=%00",
        "postgres://host?user=%zz",
        "host",
        "host=a b",
        "host='a",
        "hots=a",
    ] {
        assert!(Conninfo::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn an_unknown_parameter_is_answered_with_the_nearest() {
    for (wrong, right) in [
        ("hots=a", "host"),
        ("pasword=a", "password"),
        ("sslmod=require", "sslmode"),
        ("database=x", "dbname"),
        ("username=x", "user"),
        ("postgres://h/d?aplication_name=x", "application_name"),
    ] {
        let error = Conninfo::parse(wrong).unwrap_err().to_string();
        assert!(error.contains(&format!("did you mean '{right}'")), "{error}");
    }
    for (wrong, right) in [
        ("postgress://u@h/d", " (did you mean 'postgres://'?)"),
        ("postgesql://u@h/d", " (did you mean 'postgresql://'?)"),
        ("mysql://u@h/d", ""),
    ] {
        let error = Conninfo::parse(wrong).unwrap_err().to_string();
        let scheme = wrong.split("://").next().unwrap();
        let expected = format!(
            "the connection string begins with '{scheme}://', and a server's with 'postgres://'{right}"
        );
        assert_eq!(error, expected);
    }
    let error = Conninfo::parse("xyzzy=1").unwrap_err().to_string();
    assert_eq!(error, "unknown connection parameter 'xyzzy'");
}

/// What people get wrong with a password in it must not come back in the message.
#[test]
fn no_error_repeats_a_password() {
    for text in [
        "host=h password=hun ter2",
        "host=h password=hun ter2=x",
        "host=h password='hunter2",
        "password=a hunter2",
        "postgres://u:hunter2/x@host/db",
        "postgres://u:12/hunter2@host/db",
        "postgres://u:x@hunter2@host/db",
        "postgres://u:hunter2%zz@host/db",
        "postgres://u:hunter2@host/db?pasword=hunter2",
        "postgres://u:a@h:hunter2/db",
        "postgres://host/db?password=a&hunter2=b",
        "postgres://host/db?password=hunter2=b",
        "postgress://u:hunter2@host/db",
        "hunter2 hunter2 hunter2://",
    ] {
        let error = match Conninfo::parse(text) {
            Err(error) => error,
            Ok(conninfo) => conninfo.resolve(&Environment::empty()).expect_err(text),
        };
        let all = format!("{error} {error:?} {:?}", error.hint());
        assert!(!all.contains("hunter2") && !all.contains("ter2"), "{text}: {all}");
    }
    let conninfo = Conninfo::parse("user=u password=hunter2 host=h").unwrap();
    let target = conninfo.resolve(&Environment::empty()).unwrap();
    let all = format!(
        "{conninfo} {conninfo:?} {target} {target:?} {:?}",
        target.libpq_environment()
    );
    assert!(!all.contains("hunter2"), "{all}");
    assert_eq!(conninfo.setting("password"), None);
}

#[test]
fn the_environment_fills_what_is_not_written() {
    let target = resolve(
        "host=h",
        &[
            ("PGUSER", "u"),
            ("PGDATABASE", "d"),
            ("PGHOST", "other"),
            ("PGPORT", "5433"),
            ("PGPASSWORD", "p"),
            ("PGSSLMODE", "require"),
            ("PGAPPNAME", "a"),
            ("PGCONNECT_TIMEOUT", "1"),
        ],
    )
    .unwrap();
    assert_eq!(target.to_string(), "database 'd' at h:5433 as 'u'");
    assert_eq!(
        target.password,
        Some((Secret::new("p"), PasswordSource::Variable("PGPASSWORD")))
    );
    assert_eq!(
        (target.sslmode, target.connect_timeout.as_secs()),
        (SslMode::Require, 2)
    );
    let target = resolve("", &[]).unwrap();
    assert_eq!(
        (target.user(), target.database(), target.hosts.len()),
        ("osuser", "osuser", 1)
    );
    assert!(matches!(&target.hosts[0].kind, HostKind::Socket(path) if path.starts_with('/')));
    assert_eq!(
        (target.sslmode, target.connect_timeout.as_secs()),
        (SslMode::Prefer, 15)
    );
    assert_eq!(
        Conninfo::default().resolve(&Environment::empty()).unwrap_err(),
        ConninfoError::NoUser
    );
    assert_eq!(
        resolve("", &[("PGREQUIRESSL", "1")]).unwrap().sslmode,
        SslMode::Require
    );
}

#[test]
fn several_hosts_and_ports() {
    let endpoint = |text| resolve(text, &[]).map(|target| target.endpoint());
    assert_eq!(
        endpoint("host=a,b,/s port=1,,3").unwrap(),
        "a:1,b:5432,/s/.s.PGSQL.3"
    );
    assert_eq!(endpoint("host=a,b port=7").unwrap(), "a:7,b:7");
    assert_eq!(endpoint("postgres://a,[::1]:9/").unwrap(), "a:5432,[::1]:9");
    assert_eq!(endpoint("hostaddr=127.0.0.1").unwrap(), "127.0.0.1:5432");
    assert_eq!(endpoint("host=@abstract").unwrap(), "@abstract/.s.PGSQL.5432");
    for wrong in [
        "host=a,b port=1,2,3",
        "host=a,b hostaddr=127.0.0.1",
        "port=0",
        "port=65536",
        "port=x",
        "hostaddr=x",
    ] {
        assert!(endpoint(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn values_that_make_no_sense_are_refused() {
    for wrong in [
        "sslmode=on",
        "target_session_attrs=master",
        "channel_binding=yes",
        "connect_timeout=soon",
        "keepalives=x",
        "sslrootcert=system sslmode=require",
        "sslnegotiation=direct",
        "gssencmode=require",
        "sslpassword=x",
        "require_auth=md5,!password",
        "require_auth=magic",
        "sslcertmode=require",
        "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
        "load_balance_hosts=yes",
    ] {
        assert!(
            matches!(resolve(wrong, &[]), Err(ConninfoError::Value { .. })),
            "{wrong}"
        );
    }
    assert_eq!(
        resolve("sslrootcert=system", &[]).unwrap().sslmode,
        SslMode::VerifyFull
    );
    assert!(matches!(
        resolve("oauth_issuer=x", &[]),
        Err(ConninfoError::Unsupported(_))
    ));
    assert!(
        resolve(
            "gssencmode=prefer krbsrvname=x client_encoding=auto sslcompression=1",
            &[]
        )
        .is_ok()
    );
}

#[test]
fn service_files_fill_in_after_the_connection_string_and_before_the_variables() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("services");
    let text = "# comment\n[one]\nhost=one.example\n\nport=7\nport=8\npassword=hunter2\n[two]\nhost=two\n[bad]\nhots=x\n[nested]\nservice=one\n";
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    let variables = [("PGSERVICEFILE", file.as_str()), ("PGPORT", "9"), ("PGUSER", "u")];
    let target = resolve("service=one", &variables).unwrap();
    assert_eq!(target.endpoint(), "one.example:7");
    assert_eq!(
        target.password.as_ref().unwrap().1,
        PasswordSource::ServiceFile(PathBuf::from(&file))
    );
    assert_eq!(
        resolve("service=one host=h", &variables).unwrap().endpoint(),
        "h:7"
    );
    assert_eq!(
        resolve(&format!("service=two servicefile={file}"), &[])
            .unwrap()
            .endpoint(),
        "two:5432"
    );
    let error = resolve("service=bad", &variables).unwrap_err().to_string();
    assert!(
        error.contains("line 11") && error.contains("did you mean 'host'"),
        "{error}"
    );
    assert!(resolve("service=nested", &variables).is_err());
    let error = resolve("service=missing", &variables).unwrap_err().to_string();
    assert!(
        error.contains("'missing' is not defined") && error.contains(&file),
        "{error}"
    );
    // In the home directory, and the system's.
    let home = directory.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join(".pg_service.conf"), "[mine]\nhost=mine\n").unwrap();
    std::fs::write(
        directory.path().join("pg_service.conf"),
        "[common]\nhost=common\n",
    )
    .unwrap();
    let system = directory.path().display().to_string();
    let environment = environment(&[("PGSYSCONFDIR", &system)], Some(&home));
    for name in ["mine", "common"] {
        let target = Conninfo::parse(&format!("service={name}"))
            .unwrap()
            .resolve(&environment)
            .unwrap();
        assert_eq!(target.endpoint(), format!("{name}:5432"));
    }
}

#[test]
fn a_password_file_follows_host_and_database() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(".pgpass");
    std::fs::write(
        &file,
        "localhost:*:*:osuser:local\na:5432:one:u:first\n*:*:two:*:second\n",
    )
    .unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let environment = environment(&[], Some(directory.path()));
    let password = |target: &Target| {
        target
            .password_for(&target.hosts[0])
            .map(|(password, _)| password.expose().to_owned())
    };
    let resolve = |text: &str| Conninfo::parse(text).unwrap().resolve(&environment).unwrap();
    let target = resolve("host=a user=u dbname=one");
    assert_eq!(password(&target).as_deref(), Some("first"));
    assert_eq!(password(&target.with_database("two")).as_deref(), Some("second"));
    assert_eq!(password(&target.with_database("three")), None);
    assert_eq!(password(&resolve("")).as_deref(), Some("local"));
    assert_eq!(password(&resolve("password=x")).as_deref(), Some("x"));
    // Child processes read the same file.
    let variables = target.libpq_environment();
    let passfile = variables.iter().find(|(name, _)| name == "PGPASSFILE").unwrap();
    assert_eq!(passfile.1.expose(), file.display().to_string());
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o604)).unwrap();
    assert_eq!(password(&resolve("host=a user=u dbname=one")), None);
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in any::<String>()) {
        for text in [text.clone(), format!("postgresql://{text}"), format!("host={text}")] {
            if let Ok(conninfo) = Conninfo::parse(&text) {
                let _ = conninfo.resolve(&Environment::empty());
            }
        }
    }

    #[test]
    fn what_is_quoted_is_read_back(values in prop::collection::vec("[^\0]{0,20}", 4)) {
        let names = ["user", "password", "dbname", "options"];
        let text = names.iter().zip(&values).map(|(name, value)| format!("{name}={}", quote_value(value))).collect::<Vec<_>>();
        let settings = Conninfo::parse(&text.join(" ")).unwrap().settings;
        for (name, value) in names.iter().zip(&values) {
            prop_assert_eq!(settings.get(name), Some(value));
        }
    }

    #[test]
    fn no_password_is_ever_in_a_message(secret in "[a-z0-9@:/?%&= ']{0,6}qqzz[a-z0-9@:/?%&= ']{0,6}", uri in any::<bool>()) {
        let text = if uri { format!("postgres://user:{secret}@host/db") } else { format!("host=h password={secret} user=u") };
        match Conninfo::parse(&text) {
            Err(error) => prop_assert!(!format!("{error} {error:?}").contains("qqzz"), "{}", error),
            Ok(conninfo) => {
                if let Err(error) = conninfo.resolve(&Environment::empty()) {
                    prop_assert!(!format!("{error} {error:?}").contains("qqzz"), "{}", error);
                }
            }
        }
    }
}

#[test]
fn settings_with_commas_between_are_told() {
    for (text, told) in [
        ("host=a,port=1", "',port=' stands in the value of 'host'"),
        (
            "host=a,b,user=u dbname=d",
            "',user=' stands in the value of 'host'",
        ),
        ("dbname=d;host=a", "';host=' stands in the value of 'dbname'"),
    ] {
        let error = Conninfo::parse(text).unwrap_err();
        assert!(error.to_string().contains(told), "{text}: {error}");
        assert!(error.to_string().contains("separated by blanks"), "{error}");
    }
    for text in [
        "host=a,b port=1,2",
        "dbname='d,host=a'",
        "options=-csearch_path=a,user=b",
        "password=x,host=y",
        "dbname=a,b=c",
    ] {
        Conninfo::parse(text).unwrap();
    }
}
