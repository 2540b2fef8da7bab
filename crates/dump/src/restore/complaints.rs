//! What pg_restore says when it fails, and what of it does no harm.

use bytes::Bytes;

/// Settings that pg_restore makes in each of its sessions from a major version on, and that older servers don't know.
/// They turn time limits off, which nobody can have set where there are none.
const NEWER_SETTINGS: [(&str, u32); 1] = [("transaction_timeout", 17)];

const ERROR_START: &str = "could not execute query: ";
const COMMAND_START: &str = "\nCommand was: ";
const COUNT_START: &str = "warning: errors ignored on restore: ";
/// What libpq says to a file that it doesn't read.
const LIBPQ_WARNING: &str = "WARNING: password file ";
/// With jobs, pg_restore counts those of its first and its last session.
const HARMLESS_COUNTED_MAX: u64 = 2;

/// `SET name = 0;`
fn setting_statement(name: &str) -> String {
    format!("SET {name} = 0;")
}

/// Settings that a program of that version makes and a server of that version refuses.
fn refused_settings(program_major: u32, server_major: u32) -> impl Iterator<Item = &'static str> {
    let refused = NEWER_SETTINGS
        .iter()
        .filter(move |(_, since)| server_major < *since && *since <= program_major);
    refused.map(|(name, _)| *name)
}

/// Whether a pg_restore of that version complains about a server of that version whatever it restores.
pub fn are_expected(program_major: u32, server_major: u32) -> bool {
    refused_settings(program_major, server_major).next().is_some()
}

/// Whether a failed pg_restore has said nothing but that the server refused those settings. Its sessions write at the
/// same time, so the beginnings of their lines may be mixed; an error's text is written in one piece.
pub fn are_harmless(stderr: &str, program_major: u32, server_major: u32) -> bool {
    let mut others = String::new();
    let mut rest = stderr;
    while let Some((before, error)) = rest.split_once(ERROR_START) {
        others.push_str(before);
        let Some((message, command)) = error.split_once(COMMAND_START) else {
            return false;
        };
        let (command, after) = command.split_once('\n').unwrap_or((command, ""));
        let about_a_setting = refused_settings(program_major, server_major)
            .any(|name| command == setting_statement(name) && message.contains(name));
        // The server's text is one error's, whatever language it is in.
        if !about_a_setting || message.contains("pg_restore:") || message.contains(ERROR_START) {
            return false;
        }
        rest = after;
    }
    others.push_str(rest);
    let others = others.replace("pg_restore:", "").replace("error:", "");
    let mut said: Vec<&str> = others
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with(LIBPQ_WARNING))
        .collect();
    let counted = said.pop().and_then(|line| line.strip_prefix(COUNT_START));
    let counted = counted.and_then(|number| number.parse().ok());
    said.is_empty() && counted.is_some_and(|number: u64| (1..=HARMLESS_COUNTED_MAX).contains(&number))
}

/// The settings of a script stand in its first lines, within so many bytes.
const HEAD_BYTES_MAX: usize = 4 << 10;

/// The beginning of a script without the settings that a server of that version refuses.
pub fn without_refused_settings(beginning: Bytes, program_major: u32, server_major: u32) -> Bytes {
    refused_settings(program_major, server_major).fold(beginning, |script, name| {
        let line = format!("\n{}\n", setting_statement(name));
        let head = script.get(..HEAD_BYTES_MAX).unwrap_or(&script);
        match memchr::memmem::find(head, line.as_bytes()) {
            Some(place) => Bytes::from([&script[..place], &script[place + line.len() - 1..]].concat()),
            None => script,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTING: &str = "could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"\n\
        Command was: SET transaction_timeout = 0;\n";

    fn harmless(stderr: &str) -> bool {
        are_harmless(stderr, 18, 16)
    }

    #[test]
    fn a_setting_that_the_server_does_not_know_is_no_failure() {
        let one = format!("pg_restore: error: {SETTING}pg_restore: warning: errors ignored on restore: 1\n");
        assert!(harmless(&one));
        let mixed = format!(
            "pg_restore: pg_restore: error: error: {SETTING}{SETTING}pg_restore: warning: errors ignored on restore: 2"
        );
        assert!(harmless(&mixed));
        assert!(harmless(&format!(
            "WARNING: password file \"/dev/null\" is not a plain file\n{mixed}"
        )));
        let german = one.replace(
            "unrecognized configuration parameter",
            "unbekannter Konfigurationsparameter",
        );
        assert!(harmless(&german));
        // Where the server knows it, or the program doesn't send it, it is a failure.
        assert!(!are_harmless(&one, 18, 17) && !are_harmless(&one, 16, 16));
        assert!(!are_expected(16, 15) && !are_expected(18, 17) && are_expected(17, 16));
    }

    #[test]
    fn anything_else_is_a_failure() {
        let other = "could not execute query: ERROR:  relation \"transaction_timeout\" does not exist\n\
            Command was: ALTER TABLE transaction_timeout ADD COLUMN x;\n";
        let count = |number| format!("pg_restore: warning: errors ignored on restore: {number}");
        for text in [
            String::new(),
            format!("WARNING: x\npg_restore: error: {SETTING}{}", count(1)),
            count(0),
            format!("pg_restore: error: {SETTING}"),
            format!("pg_restore: error: {SETTING}{}", count(3)),
            format!(
                "pg_restore: error: {SETTING}pg_restore: error: {other}{}",
                count(2)
            ),
            format!(
                "pg_restore: error: {other}pg_restore: error: {SETTING}{}",
                count(2)
            ),
            format!(
                "pg_restore: error: {SETTING}pg_restore: error: out of memory\n{}",
                count(1)
            ),
            format!("query: pg_restore: error: {SETTING}{}", count(1)),
            "pg_restore: error: could not execute query: ERROR:  transaction_timeout\npg_restore: error: x\n\
             Command was: SET transaction_timeout = 0;\npg_restore: warning: errors ignored on restore: 1"
                .to_owned(),
        ] {
            assert!(!harmless(&text), "{text}");
        }
    }

    #[test]
    fn a_script_loses_only_the_setting_at_its_head() {
        let script = "SET lock_timeout = 0;\nSET transaction_timeout = 0;\nSET x = 1;\n\nSET transaction_timeout = 0;\n";
        let kept = "SET lock_timeout = 0;\nSET x = 1;\n\nSET transaction_timeout = 0;\n";
        let without = |server| without_refused_settings(Bytes::from(script), 18, server);
        assert_eq!(without(16), kept);
        assert_eq!(without(17), script);
    }
}
