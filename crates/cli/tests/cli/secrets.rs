//! Secrets that a cluster holds in its settings. `Place` looks into all that is printed.

use crate::support::{PASSWORD, Place, server};

/// A setting that is refused, or not made at all, is named, and its value is not.
#[test]
fn values_of_settings_that_cannot_be_made_are_not_printed() {
    let cluster = server();
    cluster.psql(
        "postgres",
        &format!(
            "CREATE ROLE app_role; CREATE ROLE restorer LOGIN CREATEDB;
             ALTER ROLE ALL SET app.token TO '{PASSWORD}';
             ALTER DATABASE app SET app.key TO '{PASSWORD}';
             ALTER ROLE app_role IN DATABASE app SET app.key TO '{PASSWORD}'"
        ),
    );
    let place = Place::with(&cluster, None);
    place.dump();

    let superuser = cluster.tcp_conninfo("postgres");
    let restore = |into: &str, name: &str| {
        let args = ["restore", "--into", into, "-d", "app", "--target-database", name];
        let more = if into == superuser {
            &[][..]
        } else {
            &["--no-roles", "--no-owner"]
        };
        place.run(&[&args[..], more].concat()).expect(3).stderr
    };
    // The server has other databases, whose sessions the setting would change.
    let told = restore(&superuser, "second");
    assert!(told.contains("ALTER ROLE ALL SET \"app\".\"token\""), "{told}");
    let told = restore(&superuser.replace("user=postgres", "user=restorer"), "third");
    let shown = "ALTER ROLE \"app_role\" IN DATABASE \"third\" SET \"app\".\"key\": ERROR: permission denied";
    assert!(told.contains(shown), "{told}");
    assert!(
        told.contains("ALTER DATABASE \"third\" SET \"app\".\"key\": ERROR"),
        "{told}"
    );
}
