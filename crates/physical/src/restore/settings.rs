//! What the restored server is told: pure texts.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pgkeep_pgformat::{Lsn, Timeline};

use super::STAGING;

const BEGIN: &str =
    "# pgkeep restore: begin. The server recovers by these; take them out when it is what you wanted";
const END: &str = "# pgkeep restore: end";
/// How the lines begin that mark the block, whoever wrote it.
const MARKS: [&str; 2] = ["# pgkeep restore: begin", "# pgkeep restore: end"];

/// The name of the script in the directory of staged WAL.
pub const SCRIPT_NAME: &str = "fetch";
/// The names of all staged files, one a line.
pub const LIST_NAME: &str = "list";
/// Is there when all is staged.
pub const COMPLETE_NAME: &str = "complete";

/// What recovery is told to stop at; where it isn't, it ends with the WAL that it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopAt {
    /// `recovery_target = 'immediate'`
    Consistent,
    /// Before the first record at or behind a position.
    Lsn(Lsn),
    /// After the last transaction that ended by then.
    Time(Timestamp),
    /// With the end of a transaction.
    Transaction(u64),
    /// At a restore point.
    Name(String),
    /// With the WAL.
    EndOfWal,
}

/// The script that PostgreSQL calls for each file of WAL (documentation, `restore_command`). Its exit status is 1 for what
/// isn't there, and above 125 for all else: that ends recovery with an error, while anything lower would pass for the end of
/// the WAL (`RestoreArchivedFile`, `access/transam/xlogarchive.c`).
pub const SCRIPT: &str = r#"#!/bin/sh
# PostgreSQL's restore_command, made by pgkeep: gives the server the WAL that was staged beside this file.
# 1: there is no such WAL. 255: something is wrong, and recovery must not take it for the end of the WAL.
here=${0%/*}
[ -e "$here/complete" ] || exit 255
case $1 in
  '' | */* | fetch | list | complete) exit 255 ;;
esac
if [ -e "$here/$1" ]; then
  cp "$here/$1" "$2" && exit 0
  exit 255
fi
grep -qxF -e "$1" "$here/list"
case $? in
  1) exit 1 ;;
  *) exit 255 ;;
esac
"#;

/// The block for `postgresql.auto.conf`. Without a timeline, recovery follows the one on which the backup was taken.
pub fn block(stop_at: &StopAt, timeline: Option<Timeline>) -> String {
    let mut lines = vec![
        BEGIN.to_owned(),
        // Relative to the data directory, in which the server runs it: the directory can be moved, into a container too.
        format!("restore_command = 'sh {STAGING}/{SCRIPT_NAME} \"%f\" \"%p\"'"),
        match timeline {
            Some(timeline) => format!("recovery_target_timeline = '{timeline}'"),
            None => "recovery_target_timeline = 'current'".to_owned(),
        },
    ];
    match stop_at {
        StopAt::Consistent => lines.push("recovery_target = 'immediate'".to_owned()),
        StopAt::Lsn(lsn) => {
            lines.push(format!("recovery_target_lsn = '{lsn}'"));
            lines.push("recovery_target_inclusive = off".to_owned());
        }
        StopAt::Time(time) => lines.push(format!("recovery_target_time = '{}'", in_utc(*time))),
        StopAt::Transaction(id) => lines.push(format!("recovery_target_xid = '{id}'")),
        StopAt::Name(name) => lines.push(format!("recovery_target_name = '{}'", quoted(name))),
        StopAt::EndOfWal => {}
    }
    lines.push("recovery_target_action = 'promote'".to_owned());
    // A copy must not archive into its origin's place.
    lines.push("archive_mode = off".to_owned());
    lines.push(END.to_owned());
    lines.join("\n") + "\n"
}

/// As a string in a file of settings (`GUC_scanstr`, `utils/misc/guc-file.l`).
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "''")
}

/// `2026-11-22 14:05:00.123456+00`
fn in_utc(time: Timestamp) -> String {
    let zoned = time.to_zoned(TimeZone::UTC);
    zoned.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// The contents of `postgresql.auto.conf` with the block at the end, without the block of an earlier restore.
pub fn with_block(contents: &str, block: &str) -> String {
    let mut kept = String::new();
    let mut inside = false;
    for line in contents.lines() {
        let is_mark = |mark: &str| line.starts_with(mark);
        if is_mark(MARKS[0]) {
            inside = true;
        } else if is_mark(MARKS[1]) {
            inside = false;
        } else if !inside {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept + block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_replaces_that_of_an_earlier_restore() {
        let first = with_block("work_mem = '1MB'", &block(&StopAt::Consistent, None));
        let time = "2026-11-22T14:05:00.5Z".parse().unwrap();
        let second = with_block(&first, &block(&StopAt::Time(time), None));
        assert!(second.starts_with("work_mem = '1MB'\n# pgkeep restore: begin"));
        assert!(
            second.contains("recovery_target_time = '2026-11-22 14:05:00.500000+00'\n"),
            "{second}"
        );
        assert!(!second.contains("immediate") && second.matches("restore_command").count() == 1);
        assert_eq!(with_block(&second, &block(&StopAt::Time(time), None)), second);
        let lsn = block(&StopAt::Lsn(Lsn::new(0x16_0000_0001)), Timeline::new(3));
        assert!(lsn.contains("recovery_target_timeline = '3'\n"), "{lsn}");
        let name = block(&StopAt::Name("it's a \\".to_owned()), None);
        assert!(name.contains("recovery_target_name = 'it''s a \\\\'\n"), "{name}");
        assert!(
            lsn.contains("recovery_target_lsn = '16/1'\nrecovery_target_inclusive = off\n"),
            "{lsn}"
        );
        assert!(!block(&StopAt::EndOfWal, None).contains("recovery_target_time ="));
    }

    #[test]
    fn the_script_tells_what_is_absent_from_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let staging = place.join(STAGING);
        std::fs::create_dir(&staging).unwrap();
        std::fs::write(staging.join(SCRIPT_NAME), SCRIPT).unwrap();
        std::fs::write(staging.join("000000010000000000000001"), "wal").unwrap();
        std::fs::write(
            staging.join(LIST_NAME),
            "000000010000000000000001\n000000010000000000000002\n",
        )
        .unwrap();
        let run = |name: &str, to: &str| {
            let mut command = std::process::Command::new("sh");
            command.arg(format!("{STAGING}/{SCRIPT_NAME}")).args([name, to]);
            command.stderr(std::process::Stdio::null()).current_dir(place);
            command.status().unwrap().code().unwrap()
        };
        assert_eq!(
            run("000000010000000000000001", "to"),
            255,
            "staging isn't complete"
        );
        std::fs::write(staging.join(COMPLETE_NAME), "").unwrap();
        assert_eq!(run("000000010000000000000001", "to"), 0);
        assert_eq!(std::fs::read(place.join("to")).unwrap(), b"wal");
        assert_eq!(run("000000010000000000000001", "nowhere/to"), 255);
        assert_eq!(run("000000010000000000000002", "to"), 255, "it was there");
        assert_eq!(run("000000010000000000000003", "to"), 1);
        assert_eq!(run("00000002.history", "to"), 1);
        assert_eq!(run("fetch", "to"), 255);
        std::fs::remove_file(staging.join(LIST_NAME)).unwrap();
        assert_eq!(run("000000010000000000000003", "to"), 255);
    }
}
