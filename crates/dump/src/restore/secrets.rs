//! Statements whose values may be secrets, and the server's answers to them.

use pgkeep_pg::PgError;

/// The class of SQLSTATE of answers that repeat a value.
const DATA_EXCEPTION: &str = "22";

/// What the server said about a statement; no more than its code where it repeats, or may repeat, the value.
pub fn answer(error: &PgError, secret: Option<&str>) -> String {
    let text = error.to_string();
    let code = error.sqlstate().unwrap_or_default();
    let told = secret.is_some_and(|secret| {
        code.starts_with(DATA_EXCEPTION) || (!secret.is_empty() && text.contains(secret))
    });
    if told {
        format!("the server refuses the value (SQLSTATE {code})")
    } else {
        text
    }
}

/// What a statement about a role is, without what it sets: `ALTER ROLE app SET work_mem`.
pub fn shown(statement: &str) -> &str {
    let words = statement.trim_start();
    if words.starts_with("GRANT ") || words.starts_with("REVOKE ") {
        return words;
    }
    let ends = [" TO ", " = ", " IS ", " WITH ", " PASSWORD ", " FROM "];
    let end = ends.iter().filter_map(|end| outside_quotes(words, end)).min();
    end.and_then(|end| words.get(..end)).unwrap_or(words)
}

/// What stands between a statement's first and last single quote.
pub fn literal(statement: &str) -> Option<&str> {
    let (_, after) = statement.split_once('\'')?;
    after.rsplit_once('\'').map(|(literal, _)| literal)
}

/// Where `needle` begins outside double quotes.
fn outside_quotes(text: &str, needle: &str) -> Option<usize> {
    let mut places = text.match_indices(needle).map(|(place, _)| place);
    places.find(|place| {
        let before = text.get(..*place).unwrap_or_default();
        before.matches('"').count().is_multiple_of(2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_statement_sets_is_not_shown() {
        for (statement, expected) in [
            (
                "ALTER ROLE app SET \"app.key\" TO 'hunter2'",
                "ALTER ROLE app SET \"app.key\"",
            ),
            (
                "ALTER ROLE ALL SET work_mem TO '1MB'",
                "ALTER ROLE ALL SET work_mem",
            ),
            (
                "ALTER ROLE \"a TO \"\" b\" IN DATABASE \"c = d\" SET x TO 'hunter2'",
                "ALTER ROLE \"a TO \"\" b\" IN DATABASE \"c = d\" SET x",
            ),
            ("ALTER ROLE app WITH LOGIN PASSWORD 'SCRAM'", "ALTER ROLE app"),
            ("COMMENT ON ROLE app IS 'x'", "COMMENT ON ROLE app"),
            ("CREATE ROLE app", "CREATE ROLE app"),
            ("GRANT a TO b WITH INHERIT TRUE", "GRANT a TO b WITH INHERIT TRUE"),
        ] {
            assert_eq!(shown(statement), expected);
        }
    }
}
