//! What is given by flags, written into a file and read from there, means the same.

use pgkeep_base::Secret;
use pgkeep_config::{Cluster, Overrides, SETTINGS, Setting, Written};
use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::{RECIPIENT, from_variables, selected};

/// Values of each setting, as `--set` and variables give them.
fn values(setting: Setting) -> BoxedStrategy<String> {
    let list = |item: &'static str| {
        // No item twice: a list of repositories may not have one.
        let items = prop::collection::btree_set(item, 1..4);
        let joined = |items: BTreeSet<String>| items.into_iter().collect::<Vec<_>>().join(", ");
        items.prop_map(joined).boxed()
    };
    let number = |range: std::ops::RangeInclusive<u32>| range.prop_map(|number| number.to_string()).boxed();
    let one_of =
        |choices: &'static [&'static str]| prop::sample::select(choices).prop_map(str::to_owned).boxed();
    match setting.name {
        // They end with a letter: spaces and slashes at the end say nothing.
        "repository" => list("(file:///srv|s3://bucket)/[a-z0-9 '\"]{0,7}[a-z]"),
        "recipients" => one_of(&[RECIPIENT, "age1x, age1y"]),
        "encryption" => one_of(&["age"]),
        "timezone" => one_of(&["Europe/Zurich", "UTC", "America/New_York"]),
        "dump.databases" => prop_oneof![one_of(&["all"]), list("[a-z\"'\\\\ \u{7f}é]{1,8}[a-z]")].boxed(),
        "wal.slot" => one_of(&["pgkeep", "slot_2", "5"]),
        "backup.reader" => one_of(&["auto", "local", "replication"]),
        "wal.at_limit" => one_of(&["release", "hold"]),
        "dump.format" => one_of(&["plain", "repository", "custom", "directory"]),
        "dump.row_format" => one_of(&["auto", "text"]),
        _ if setting.form.starts_with("list") => list("[a-z0-9\"'.*\\\\]{1,12}"),
        _ if setting.form.contains("`true`") => {
            one_of(&["true", "false", "yes", "no", "on", "off", "1", "0"])
        }
        _ if setting.form.contains("cron") => one_of(&["0 2 * * *", "@daily", "0 2,14 * * 1-5"]),
        _ if setting.form.contains("duration") => one_of(&["30d", "12h", "1d 12h"]),
        _ if setting.form.contains("rate") => one_of(&["20MB/s", "1000000"]),
        _ if setting.form.contains("size") => one_of(&["256MiB", "268435456"]),
        _ if setting.form.contains("256") => number(1..=256),
        _ if setting.form.contains("19") => number(1..=19),
        _ if setting.form == "number" => number(0..=1000),
        // Texts that look like something else, too.
        _ => prop_oneof![
            "[a-z0-9/:.,=#'\"\\\\\u{7f}\u{1}\n é]{0,20}[a-z0-9]",
            one_of(&[
                "true",
                "5",
                "1.5",
                "2026-11-22",
                "[1]",
                "{ a = 1 }",
                "a\nstream = true"
            ]),
        ]
        .boxed(),
    }
}

fn given() -> impl Strategy<Value = Vec<(Setting, String)>> {
    let some = prop::sample::subsequence(SETTINGS, 0..=SETTINGS.len()).prop_shuffle();
    some.prop_flat_map(|settings| {
        let each = settings
            .into_iter()
            .map(|setting| values(setting).prop_map(move |value| (setting, value)));
        each.collect::<Vec<_>>()
    })
}

fn by_flags(given: &[(Setting, String)]) -> Cluster {
    let set = given
        .iter()
        .map(|(setting, value)| (setting.name.to_owned(), Secret::new(value)));
    let overrides = Overrides {
        set: set.collect(),
        ..Overrides::default()
    };
    from_variables(&[]).select(None, &overrides).unwrap().1
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_written_is_what_was_given(given in given()) {
        let mut written = Written::default();
        written.put("dump.databases", "all", "");
        written.put("keep.daily", "7", "what stays");
        let mut all = by_flags(&[]);
        all.keep.daily = 7;
        let given_daily = given.iter().any(|(setting, _)| setting.name == "keep.daily");
        for (setting, value) in &given {
            written.put(setting.name, value, "");
        }
        let mut expected = by_flags(&given);
        if !given_daily {
            expected.keep.daily = all.keep.daily;
        }
        let text = written.text("odd.name");
        let found = selected(&text, &[], &Overrides::default());
        prop_assert_eq!(found, expected, "{}", text);
    }
}

#[test]
fn tables_stand_on_one_line_as_long_as_it_is_short() {
    let mut written = Written::default();
    written.put("connection", "host=/run dbname=\"odd\"", "");
    written.put("dump.databases", "all", "");
    written.put("dump.schedule", "0 2 * * *", "by 'pgkeep run'");
    written.put("keep.window", "30d", "what stays");
    written.put("dump.jobs", "4", "");
    written.put("pg_bin", "/usr/lib", "");
    written.put("keep.window", "10d", "");
    written.put_list("recipients", &["age1x".to_owned()], "public");
    assert_eq!(
        written.text("main"),
        "[cluster.main]\n\
         connection = 'host=/run dbname=\"odd\"'\n\
         pg_bin     = \"/usr/lib\"\n\
         recipients = [\"age1x\"]   # public\n\
         dump       = { databases = \"all\", schedule = \"0 2 * * *\", jobs = 4 }   # by 'pgkeep run'\n\
         keep       = { window = \"10d\" }   # what stays\n"
    );
    written.put(
        "dump.exclude_tables",
        "public.a_long_name, public.another_long_name",
        "",
    );
    assert_eq!(
        written.text("a.b").lines().skip(4).collect::<Vec<_>>(),
        [
            "dump.databases      = \"all\"",
            "dump.schedule       = \"0 2 * * *\"   # by 'pgkeep run'",
            "dump.jobs           = 4",
            "dump.exclude_tables = [\"public.a_long_name\", \"public.another_long_name\"]",
            "keep                = { window = \"10d\" }   # what stays",
        ]
    );
}
