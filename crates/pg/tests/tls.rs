//! TLS in every sslmode, and authentication, against real servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pgkeep_base::{Classified, RetryClass};
use pgkeep_pg::{Conninfo, Environment, PasswordSource, PgError, Session};
use pgkeep_testkit::{Missing, require};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use support::certificates::{Root, encrypted, install, params, tls_reason, tls_server, write};
use support::{TestServer, binaries, resolve};

#[tokio::test]
async fn every_sslmode_with_and_without_root_certificates() {
    let (root, stranger) = (Root::new("root"), Root::new("stranger"));
    let (certificate, key) = root.sign(params("x", &["localhost", "127.0.0.1"], false));
    let server = tls_server(&certificate, &key, &[]).await;
    server.hba("host all all 127.0.0.1/32 trust").await;
    let good = write(&server.directory.path().join("root.crt"), &root.certificate.pem());
    let bad = write(
        &server.directory.path().join("bad.crt"),
        &stranger.certificate.pem(),
    );
    let target = |mode: &str, root: Option<&Path>| {
        let root = root
            .map(|path| format!("sslrootcert={}", path.display()))
            .unwrap_or_default();
        server.tcp(&format!("user=postgres sslmode={mode} {root}"))
    };
    for (mode, expected) in [
        ("disable", false),
        ("allow", false),
        ("prefer", true),
        ("require", true),
    ] {
        assert_eq!(encrypted(&target(mode, None)).await.unwrap(), expected, "{mode}");
        assert_eq!(
            encrypted(&target(mode, Some(&good))).await.unwrap(),
            expected,
            "{mode}"
        );
    }
    for mode in ["verify-ca", "verify-full"] {
        assert!(encrypted(&target(mode, Some(&good))).await.unwrap(), "{mode}");
        // No root certificate: nothing to verify by.
        let missing = tls_reason(encrypted(&target(mode, Some(Path::new("/nonexistent")))).await);
        assert!(
            missing.contains("root certificate file /nonexistent doesn't exist"),
            "{missing}"
        );
    }
    // The wrong root: also with require, because libpq verifies whenever there is one. prefer goes on without TLS.
    for mode in ["require", "verify-ca", "verify-full"] {
        let reason = tls_reason(encrypted(&target(mode, Some(&bad))).await);
        assert!(reason.contains("certificate is not accepted"), "{reason}");
    }
    assert!(!encrypted(&target("prefer", Some(&bad))).await.unwrap());
    // The socket has no TLS, whatever is asked.
    let socket = resolve(&format!(
        "host={} port={} user=postgres sslmode=verify-full sslrootcert={}",
        server.server.socket_directory().display(),
        server.server.port(),
        good.display()
    ));
    assert!(!encrypted(&socket).await.unwrap());
    // A server without TLS.
    let mut plain = TestServer::new(support::major()).await;
    plain.start(&[]).await;
    plain.hba("host all all 127.0.0.1/32 trust").await;
    assert!(
        !encrypted(&plain.tcp("user=postgres sslmode=prefer"))
            .await
            .unwrap()
    );
    let reason = tls_reason(encrypted(&plain.tcp("user=postgres sslmode=require")).await);
    assert!(reason.contains("doesn't support it"), "{reason}");
}

#[tokio::test]
async fn names_are_verified_by_verify_full_only() {
    let root = Root::new("root");
    let server_for = |common_name: &'static str, names: &'static [&'static str]| {
        root.sign(params(common_name, names, false))
    };
    let (certificate, key) = server_for("localhost", &["db.example.org"]);
    let server = tls_server(&certificate, &key, &[]).await;
    server.hba("host all all 127.0.0.1/32 trust").await;
    let roots = write(&server.directory.path().join("root.crt"), &root.certificate.pem());
    let port = server.server.port();
    let target = |host: &str, mode: &str| {
        resolve(&format!(
            "host={host} hostaddr=127.0.0.1 port={port} user=postgres sslmode={mode} sslrootcert={}",
            roots.display()
        ))
    };
    assert!(encrypted(&target("localhost", "verify-ca")).await.unwrap());
    assert!(encrypted(&target("db.example.org", "verify-full")).await.unwrap());
    // The common name doesn't count beside alternative names.
    let reason = tls_reason(encrypted(&target("localhost", "verify-full")).await);
    assert!(reason.contains("not valid for name"), "{reason}");
    assert!(encrypted(&target("a_b", "require")).await.unwrap());

    // Without alternative names, it does, as in libpq; wildcards stand for one label.
    for (common_name, host, good) in [
        ("localhost", "localhost", true),
        ("LocalHost", "localhost", true),
        ("localhost", "127.0.0.1", false),
        ("127.0.0.1", "127.0.0.1", true),
        ("*.example.org", "db.example.org", true),
        ("*.example.org", "a.db.example.org", false),
        ("*.example.org", "example.org", false),
    ] {
        let (certificate, key) = server_for(common_name, &[]);
        install(&server, &certificate, &key).await;
        server.hba("host all all 127.0.0.1/32 trust").await;
        let result = encrypted(&target(host, "verify-full")).await;
        match result {
            Ok(_) => assert!(good, "{common_name} for {host}"),
            Err(error) => assert!(!good, "{common_name} for {host}: {error}"),
        }
    }
}

/// PostgreSQL's documented recipe: one self-signed certificate, which is a CA, is the server's and the clients' root.
#[tokio::test]
async fn the_self_signed_certificate_of_the_documentation_is_accepted() {
    let key = KeyPair::generate().unwrap();
    let certificate = params("localhost", &[], true).self_signed(&key).unwrap().pem();
    let server = tls_server(&certificate, &key.serialize_pem(), &[]).await;
    server.hba("host all all 127.0.0.1/32 trust").await;
    let roots = write(&server.directory.path().join("root.crt"), &certificate);
    let target = |mode: &str, host: &str| {
        resolve(&format!(
            "host={host} hostaddr=127.0.0.1 port={} user=postgres sslmode={mode} sslrootcert={}",
            server.server.port(),
            roots.display()
        ))
    };
    assert!(encrypted(&target("verify-ca", "whatever")).await.unwrap());
    assert!(encrypted(&target("verify-full", "localhost")).await.unwrap());
    let reason = tls_reason(encrypted(&target("verify-full", "whatever")).await);
    assert!(
        reason.contains("it is for 'localhost', not for 'whatever'"),
        "{reason}"
    );
    // Another one of the same name isn't.
    let other = params("localhost", &[], true)
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap()
        .pem();
    write(&roots, &other);
    tls_reason(encrypted(&target("verify-ca", "localhost")).await);
    // Nor is a CA that another one signed: rustls refuses it where libpq doesn't, and the advice says so.
    let root = Root::new("root");
    let (certificate, ca_key) = root.sign(params("localhost", &[], true));
    install(&server, &certificate, &ca_key).await;
    server.hba("host all all 127.0.0.1/32 trust").await;
    write(&roots, &root.certificate.pem());
    let error = encrypted(&target("verify-ca", "localhost")).await.unwrap_err();
    assert!(
        error.hint().unwrap().as_str().contains("certificate of a CA"),
        "{error}"
    );
    write(&roots, &certificate);
    assert!(encrypted(&target("verify-full", "localhost")).await.unwrap());
    // Nor is an expired one.
    let mut expired = params("localhost", &[], true);
    expired.not_after = date_time_ymd(2020, 1, 1);
    let certificate = expired.self_signed(&key).unwrap().pem();
    install(&server, &certificate, &key.serialize_pem()).await;
    server.hba("host all all 127.0.0.1/32 trust").await;
    write(&roots, &certificate);
    tls_reason(encrypted(&target("verify-ca", "localhost")).await);
    assert!(
        encrypted(&server.tcp("user=postgres sslmode=require"))
            .await
            .unwrap()
    );
}

/// The openssl commands of PostgreSQL's documentation ("Creating Certificates"): OpenSSL 3.0 makes X.509 version 1.
#[tokio::test]
async fn a_version_1_certificate_of_openssl_is_accepted_as_by_libpq() {
    let directory = tempfile::tempdir().unwrap();
    let openssl = |arguments: &str| {
        let status = std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(directory.path())
            .stderr(std::process::Stdio::null())
            .status();
        status.is_ok_and(|status| status.success())
    };
    let found = openssl("version").then_some(());
    require!(found.ok_or(Missing("the program openssl".to_owned())));
    let list = write(
        &directory.path().join("list.crl"),
        &Root::new("root").revocation_list(&[], 2090),
    );
    for algorithm in ["rsa:2048", "ec -pkeyopt ec_paramgen_curve:P-256"] {
        assert!(openssl(&format!(
            "req -new -x509 -days 10 -nodes -newkey {algorithm} -out root.crt -keyout root.key -subj /CN=root"
        )));
        assert!(openssl(&format!(
            "req -new -nodes -newkey {algorithm} -out s.csr -keyout s.key -subj /CN=localhost"
        )));
        assert!(openssl(
            "x509 -req -in s.csr -days 10 -CA root.crt -CAkey root.key -CAcreateserial -out s.crt"
        ));
        assert!(openssl(
            "req -new -x509 -days 10 -nodes -out other.crt -keyout other.key -subj /CN=root"
        ));
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        for version in ["TLSv1.2", "TLSv1.3"] {
            let server = tls_server(
                &read("s.crt"),
                &read("s.key"),
                &[("ssl_max_protocol_version", version)],
            )
            .await;
            server.hba("host all all 127.0.0.1/32 trust").await;
            let target = |mode: &str, root: &str| {
                let root = directory.path().join(root);
                resolve(&format!(
                    "host=localhost hostaddr=127.0.0.1 port={} user=postgres sslmode={mode} sslrootcert={}",
                    server.server.port(),
                    root.display()
                ))
            };
            assert!(encrypted(&target("require", "none")).await.unwrap());
            assert!(encrypted(&target("verify-ca", "root.crt")).await.unwrap());
            assert!(encrypted(&target("verify-full", "root.crt")).await.unwrap());
            // Nothing compares it with a list.
            let crl = format!("root.crt sslcrl={}", list.display());
            tls_reason(encrypted(&target("verify-ca", &crl)).await);
            // The same name, another key.
            tls_reason(encrypted(&target("verify-ca", "other.crt")).await);
        }
    }
}

#[tokio::test]
async fn passwords_by_every_method_and_channel_binding() {
    let root = Root::new("root");
    let (certificate, key) = root.sign(params("localhost", &["127.0.0.1"], false));
    let server = tls_server(&certificate, &key, &[]).await;
    let mut session = server.session().await;
    session
        .execute(
            "CREATE ROLE scram LOGIN PASSWORD 'p@ss wörd'; SET password_encryption = 'md5';
             CREATE ROLE md5 LOGIN PASSWORD 'p@ss wörd'",
        )
        .await
        .unwrap();
    server
        .hba("host all scram 127.0.0.1/32 scram-sha-256\nhost all md5 127.0.0.1/32 md5\nhost all clear 127.0.0.1/32 password")
        .await;
    session
        .execute("RESET password_encryption; CREATE ROLE clear LOGIN PASSWORD 'p@ss wörd'")
        .await
        .unwrap();
    let target = |user: &str, more: &str| {
        server.tcp(&format!(
            "user={user} dbname=postgres password='p@ss wörd' {more}"
        ))
    };
    for user in ["scram", "md5", "clear"] {
        assert!(!encrypted(&target(user, "sslmode=disable")).await.unwrap());
        assert!(encrypted(&target(user, "sslmode=require")).await.unwrap());
    }
    // Channel binding is really used: with require only SCRAM over TLS does it.
    assert!(
        encrypted(&target("scram", "channel_binding=require sslmode=require"))
            .await
            .unwrap()
    );
    assert!(
        encrypted(&target("scram", "channel_binding=disable sslmode=require"))
            .await
            .unwrap()
    );
    for (user, mode) in [("scram", "disable"), ("md5", "require"), ("clear", "require")] {
        let error = encrypted(&target(user, &format!("channel_binding=require sslmode={mode}")))
            .await
            .unwrap_err();
        assert!(matches!(error, PgError::Authentication(_)), "{error}");
    }
    // require_auth.
    assert!(
        encrypted(&target("scram", "require_auth=scram-sha-256"))
            .await
            .unwrap()
    );
    assert!(encrypted(&target("md5", "require_auth=!password")).await.unwrap());
    for (user, methods) in [
        ("md5", "scram-sha-256"),
        ("clear", "!password,!md5"),
        ("clear", "none"),
    ] {
        let error = encrypted(&target(user, &format!("require_auth={methods}")))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("require_auth"), "{error}");
    }
    for user in ["scram", "md5", "clear"] {
        wrong_password(&server, user).await;
    }
}

async fn wrong_password(server: &TestServer, user: &str) {
    let error = Session::connect(&server.tcp(&format!("user={user} dbname=postgres password=hunter2")))
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate(), Some("28P01"), "{error}");
    assert_eq!(error.retry_class(), RetryClass::Permanent);
    let hint = error.hint().unwrap();
    assert_eq!(
        hint.as_str(),
        "the password that was sent came from the connection string: correct it there"
    );
    assert!(!format!("{error} {error:?} {hint}").contains("hunter2"));
    // None at all.
    let error = Session::connect(&server.tcp(&format!("user={user} dbname=postgres")))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("asks for a password, and there is none"),
        "{error}"
    );
    assert!(error.hint().unwrap().as_str().contains(".pgpass"));
    // From a password file: the line is named, not what is in it.
    let path = server.directory.path().join("pgpass");
    write(&path, "# comment\n*:*:*:*:hunter2\n");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let conninfo = format!(
        "host=127.0.0.1 port={} user={user} dbname=postgres",
        server.server.port()
    );
    let passfile = path.display().to_string();
    let environment = Environment::new(
        move |name| (name == "PGPASSFILE").then(|| passfile.clone()),
        None,
        None,
    );
    let target = Conninfo::parse(&conninfo).unwrap().resolve(&environment).unwrap();
    let error = Session::connect(&target).await.unwrap_err();
    let PgError::Authentication(authentication) = &error else {
        panic!("{error}")
    };
    assert_eq!(
        authentication.password_source,
        Some(PasswordSource::PassFile {
            path: path.clone(),
            line: 2
        })
    );
    // Readable by others, it is ignored.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let target = Conninfo::parse(&conninfo).unwrap().resolve(&environment).unwrap();
    assert!(
        Session::connect(&target)
            .await
            .unwrap_err()
            .to_string()
            .contains("there is none")
    );
}

#[tokio::test]
async fn what_pg_hba_conf_wants_is_told_and_sslmode_follows_it() {
    let root = Root::new("root");
    let (certificate, key) = root.sign(params("localhost", &["127.0.0.1"], false));
    let server = tls_server(&certificate, &key, &[]).await;
    server.hba("hostssl all all 127.0.0.1/32 trust").await;
    assert!(
        encrypted(&server.tcp("user=postgres sslmode=allow"))
            .await
            .unwrap()
    );
    let error = encrypted(&server.tcp("user=postgres sslmode=disable"))
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate(), Some("28000"));
    assert!(
        error.hint().unwrap().as_str().contains("sslmode=require"),
        "{error}"
    );
    server.hba("hostnossl all all 127.0.0.1/32 trust").await;
    assert!(
        !encrypted(&server.tcp("user=postgres sslmode=prefer"))
            .await
            .unwrap()
    );
    let error = encrypted(&server.tcp("user=postgres sslmode=require"))
        .await
        .unwrap_err();
    assert!(error.hint().unwrap().as_str().contains("pg_hba.conf"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_lets_in_and_cancel_and_copy_work_over_tls() {
    let root = Root::new("root");
    let (certificate, key) = root.sign(params("localhost", &["127.0.0.1"], false));
    let mut server = TestServer::new(support::major()).await;
    install(&server, &certificate, &key).await;
    let directory = server.directory.path().to_owned();
    let roots = write(&directory.join("root.crt"), &root.certificate.pem());
    server
        .start(&[("ssl", "on"), ("ssl_ca_file", roots.to_str().unwrap())])
        .await;
    server.admin("CREATE ROLE joe LOGIN SUPERUSER").await;
    server.hba("hostssl all joe 127.0.0.1/32 cert").await;
    let mut client = params("joe", &[], false);
    client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (certificate, key) = root.sign(client);
    let certificate = write(&directory.join("joe.crt"), &certificate);
    let key = write(&directory.join("joe.key"), &key);
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let conninfo = format!(
        "user=joe dbname=postgres sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
        roots.display(),
        certificate.display(),
        key.display()
    );
    let reason = tls_reason(encrypted(&server.tcp(&conninfo)).await);
    assert!(reason.contains("group or world access"), "{reason}");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    assert!(encrypted(&server.tcp(&conninfo)).await.unwrap());
    let without = format!(
        "user=joe dbname=postgres sslmode=verify-full sslrootcert={}",
        roots.display()
    );
    assert!(encrypted(&server.tcp(&without)).await.is_err());

    let mut session = Session::connect(&server.tcp(&conninfo)).await.unwrap();
    session.execute("CREATE TABLE a AS SELECT i, repeat('x', i % 3000) FROM generate_series(1, 50000) i; CREATE TABLE b (LIKE a)").await.unwrap();
    let mut copy = session.copy_out("COPY a TO STDOUT").await.unwrap();
    let mut data = Vec::new();
    while copy.read_into(&mut data, usize::MAX).await.unwrap() {}
    assert_eq!(copy.finish().await.unwrap(), 50_000);
    let mut copy = session.copy_in("COPY b FROM STDIN").await.unwrap();
    copy.send(&data).await.unwrap();
    assert_eq!(copy.finish().await.unwrap(), 50_000);
    let same = "SELECT NOT EXISTS (TABLE a EXCEPT ALL TABLE b) AND NOT EXISTS (TABLE b EXCEPT ALL TABLE a)";
    assert_eq!(session.query(same).await.unwrap()[0].text(0), Some("t"));
    session.set_statement_deadline(Some(std::time::Duration::from_millis(300)));
    let error = session.query("SELECT pg_sleep(600)").await.unwrap_err();
    assert!(
        matches!(error, PgError::Deadline { cancelled: true, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn direct_negotiation_needs_a_server_that_has_it() {
    let root = Root::new("root");
    let (certificate, key) = root.sign(params("localhost", &["127.0.0.1"], false));
    for major in [16, 17, 18]
        .into_iter()
        .filter(|major| binaries(*major).is_some())
    {
        let mut server = TestServer::new(major).await;
        install(&server, &certificate, &key).await;
        server.start(&[("ssl", "on")]).await;
        server.hba("host all all 127.0.0.1/32 trust").await;
        let result =
            encrypted(&server.tcp("user=postgres sslmode=require sslnegotiation=direct connect_timeout=5"))
                .await;
        if major >= 17 {
            assert!(result.unwrap());
        } else {
            assert!(result.is_err());
        }
    }
}
