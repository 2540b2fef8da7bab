//! Revocation lists, as libpq has them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use pgkeep_base::Classified;
use pgkeep_pg::{Conninfo, Environment};
use rcgen::SerialNumber;
use support::certificates::{Root, encrypted, params, tls_server, write};
use support::resolve;

#[tokio::test]
async fn a_certificate_needs_its_issuers_list_where_there_are_lists() {
    let (root, stranger) = (Root::new("root"), Root::new("stranger"));
    let mut with_serial = params("localhost", &["localhost"], false);
    with_serial.serial_number = Some(SerialNumber::from(77_u64));
    let (certificate, key) = root.sign(with_serial);
    let server = tls_server(&certificate, &key, &[]).await;
    server.hba("host all all 127.0.0.1/32 trust").await;
    let home = server.directory.path().join(".postgresql");
    std::fs::create_dir(&home).unwrap();
    let roots = write(&home.join("root.crt"), &root.certificate.pem());
    let list = server.directory.path().join("list.crl");
    let conninfo = format!(
        "host=localhost hostaddr=127.0.0.1 port={} user=postgres sslmode=verify-full sslrootcert={}",
        server.server.port(),
        roots.display()
    );
    let named = resolve(&format!("{conninfo} sslcrl={}", list.display()));
    let of_home = || {
        let home = server.directory.path().to_owned();
        let environment = Environment::new(|_| None, Some(home), None);
        Conninfo::parse(&conninfo).unwrap().resolve(&environment).unwrap()
    };
    assert!(encrypted(&of_home()).await.unwrap(), "without a list");
    for (text, expected) in [
        (root.revocation_list(&[1], 2090), None),
        (root.revocation_list(&[1, 77], 2090), Some("was revoked")),
        (root.revocation_list(&[1], 2021), Some("present revocation list")),
        (stranger.revocation_list(&[1], 2090), Some("list of each issuer")),
    ] {
        write(&list, &text);
        write(&home.join("root.crl"), &text);
        for target in [&named, &of_home()] {
            match (encrypted(target).await, expected) {
                (Ok(_), None) => {}
                (Err(error), Some(expected)) => {
                    let hint = error.hint().map(|hint| hint.to_string()).unwrap_or_default();
                    assert!(hint.contains(expected), "{error}: {hint}");
                }
                (result, _) => panic!("{result:?}, and not {expected:?}"),
            }
        }
    }
    // libpq reads the home directory's list only where none is named.
    write(&list, &root.revocation_list(&[], 2090));
    assert!(encrypted(&named).await.unwrap());
}
