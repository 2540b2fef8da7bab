//! Names that a terminal would act on.

use crate::support::{Place, server};

#[test]
fn names_with_control_characters_are_escaped_but_in_json() {
    let cluster = server();
    let (database, table) = ("a\u{1b}[2J\tb", "t\nerror: forged\u{1b}]0;x\u{7}");
    let quoted = pgkeep_base::quote_identifier(database);
    cluster.psql("postgres", &format!("CREATE DATABASE {quoted}"));
    let create = format!(
        "CREATE TABLE {} AS SELECT 1 AS n",
        pgkeep_base::quote_identifier(table)
    );
    cluster.psql(database, &create);
    let place = Place::with(&cluster, None);
    let (shown, shown_table) = ("a\\x1b[2J\\tb", "public.t\\nerror: forged\\x1b]0;x\\x07");
    for command in [
        &["dump"][..],
        &["list"],
        &["show"],
        &["show", "--tables"],
        &["restore", "--dry-run"],
        &["dump", "-d", "a\u{1b}[2J"],
    ] {
        let done = place.run(command);
        let told = format!("{}{}", done.stdout, done.stderr);
        assert!(told.contains(shown) || command.len() == 3, "{command:?}: {told}");
        assert!(
            !told.chars().any(|c| c.is_control() && c != '\n'),
            "{command:?}: {told:?}"
        );
        assert_eq!(done.code, if command.len() == 3 { 2 } else { 0 }, "{told}");
    }
    let tables = place.run(&["show", "--tables"]).expect(0).stdout;
    assert!(tables.contains(shown_table), "{tables}");
    let missing = place.run(&["dump", "-d", "a\u{1b}[2J"]).expect(2).stderr;
    assert!(missing.contains("there is no database 'a\\x1b[2J'"), "{missing}");
    let json = place.run(&["show", "--json"]).expect(0).json();
    let databases = json["manifest"]["databases"].as_array().unwrap();
    let odd = databases.iter().find(|found| found["name"] == database).unwrap();
    assert_eq!(odd["relations"][0]["name"], table);
    place.run(&["verify"]).expect(0);
}
