/// Quotes one SQL identifier, always with double quotes (PostgreSQL `quote_ident`, `src/backend/utils/adt/quote.c`,
/// with `quote_all_identifiers` on: always quoting is always right).
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes `schema.name`.
pub fn quote_qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_identifier(schema), quote_identifier(name))
}

/// Quotes a string literal so that it means the same with `standard_conforming_strings` on or off
/// (PostgreSQL `quote_literal`): the `E''` form where a backslash is in it.
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// Quotes one word of a shell's command (POSIX `sh`), where that is needed.
pub fn quote_for_shell(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_-./:=,@%+".contains(character);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_and_literals_survive_quotes_and_backslashes() {
        assert_eq!(quote_qualified("a\"b", "Größe x"), "\"a\"\"b\".\"Größe x\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
        assert_eq!(quote_for_shell("/a-b_c.1"), "/a-b_c.1");
        assert_eq!(quote_for_shell("it's $x"), "'it'\\''s $x'");
        assert_eq!(quote_for_shell(""), "''");
    }
}
