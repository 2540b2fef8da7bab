//! What PostgreSQL's programs say, without what must not be printed.

/// pg_restore repeats the statement that failed behind these words, up to its next message.
const STATEMENT: &str = "Command was: ";
/// The server's excerpt of a statement in which it found an error.
const EXCERPT: &str = "LINE ";
/// Statements that may hold a password.
const WITH_SECRETS: [&str; 5] = ["USER MAPPING", "SUBSCRIPTION", "SERVER", "ROLE", "USER"];
/// What stands in the place of a statement's rest.
const LEFT_OUT: &str = "... [the rest is not shown: it may hold a password]";

/// The messages with statements that may hold passwords cut after their first words. `cut` says that the beginning of
/// the text is missing, so that it may begin in the middle of one.
pub(super) fn without_secrets(text: &str, cut: bool) -> String {
    let mut kept: Vec<String> = Vec::new();
    let mut hidden = cut;
    for line in text.lines() {
        if is_message(line) || line.starts_with(STATEMENT) {
            hidden = false;
        }
        if hidden {
            continue;
        }
        let statement = line.strip_prefix(STATEMENT).or_else(|| {
            let (_, rest) = line.strip_prefix(EXCERPT)?.split_once(": ")?;
            Some(rest)
        });
        match statement.and_then(first_words) {
            Some(words) => {
                let before = line.len() - statement.unwrap_or_default().len();
                kept.push(format!(
                    "{}{words} {LEFT_OUT}",
                    line.get(..before).unwrap_or_default()
                ));
                hidden = true;
            }
            None => kept.push(line.to_owned()),
        }
    }
    kept.join("\n")
}

/// `pg_restore: error: ...`
fn is_message(line: &str) -> bool {
    line.split_once(": ").is_some_and(|(program, _)| {
        program.starts_with("pg_")
            && program
                .chars()
                .all(|character| character.is_ascii_lowercase() || character == '_')
    })
}

/// `CREATE USER MAPPING`, if the statement is one that may hold a password.
fn first_words(statement: &str) -> Option<String> {
    let mut words = statement.split_ascii_whitespace();
    let verb = words.next().filter(|verb| matches!(*verb, "CREATE" | "ALTER"))?;
    let rest: Vec<&str> = words.collect();
    let rest = rest.join(" ");
    let kind = WITH_SECRETS.into_iter().find(|kind| rest.starts_with(kind))?;
    Some(format!("{verb} {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPING: &str = "\
pg_restore: error: could not execute query: ERROR:  role \"x\" does not exist
Command was: CREATE USER MAPPING FOR \"x\" SERVER s OPTIONS (
    password 'hunter2',
    \"user\" 'u'
);


pg_restore: error: could not execute query: ERROR:  relation \"a\" exists
Command was: CREATE TABLE public.a (
    i integer
);";

    #[test]
    fn statements_with_passwords_are_cut_and_others_are_not() {
        let shown = without_secrets(MAPPING, false);
        assert!(!shown.contains("hunter2") && !shown.contains("'u'"), "{shown}");
        for kept in [
            "role \"x\" does not exist",
            "Command was: CREATE USER MAPPING ... [the rest",
            "relation \"a\" exists",
            "Command was: CREATE TABLE public.a (\n    i integer\n);",
        ] {
            assert!(shown.contains(kept), "{shown}");
        }
    }

    #[test]
    fn a_text_without_its_beginning_begins_with_the_next_message() {
        let shown = without_secrets("password 'hunter2'\n);\npg_restore: warning: x", true);
        assert_eq!(shown, "pg_restore: warning: x");
        let whole = "password file is missing\nsecond line";
        assert_eq!(without_secrets(whole, false), whole);
    }

    #[test]
    fn excerpts_are_cut_too() {
        let shown = without_secrets(
            "psql: x\nERROR:  syntax error\nLINE 1: ALTER ROLE a PASSWORD 'hunter2' x\n              ^\npg_dump: y",
            false,
        );
        assert!(
            !shown.contains("hunter2") && shown.contains("LINE 1: ALTER ROLE ..."),
            "{shown}"
        );
        assert!(shown.ends_with("pg_dump: y"), "{shown}");
    }
}
