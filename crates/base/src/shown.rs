//! Names and texts from outside within sentences: whatever of them a terminal would act on is shown by an escape.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Control characters, and those that turn the direction of what follows, which makes a text look like another.
pub fn acts_on_terminal(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Adds such a character as `\n`, `\t`, `\x1b`, `\u{202e}`.
pub fn push_escaped(text: &mut String, c: char) {
    // Writing to a String can't fail.
    let _ = match c {
        '\n' => write!(text, "\\n"),
        '\r' => write!(text, "\\r"),
        '\t' => write!(text, "\\t"),
        c if u32::from(c) <= 0xff => write!(text, "\\x{:02x}", u32::from(c)),
        c => write!(text, "\\u{{{:x}}}", u32::from(c)),
    };
}

/// A text in one line: a name, a cell of a table.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts_on_terminal) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::new();
    for c in text.chars() {
        if acts_on_terminal(c) {
            push_escaped(&mut escaped, c);
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Names one after the other: `app, postgres, 'a, b'`. Those that could be taken for several are quoted.
pub fn list_names<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let names = names.into_iter().map(|name| shown_name(name.as_ref()));
    names.collect::<Vec<_>>().join(", ")
}

/// A name as a word of its own: quoted where it could be taken for several, or for an option.
pub fn shown_name(name: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-.$*".contains(c);
    if !name.is_empty() && !name.starts_with('-') && name.chars().all(is_plain) {
        return name.to_owned();
    }
    format!("'{}'", one_line(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_shown() {
        assert_eq!(one_line("größe 日本 \\x1b"), "größe 日本 \\x1b");
        assert_eq!(
            one_line("a\nb\tc\rd\u{1b}[2Je\u{7}\u{7f}\u{9b}\u{202e}f"),
            "a\\nb\\tc\\rd\\x1b[2Je\\x07\\x7f\\x9b\\u{202e}f"
        );
    }

    #[test]
    fn names_in_a_list_are_told_apart() {
        assert_eq!(
            list_names(["app", "größe-1", "a, b", "no\nsuch", "", "--x"]),
            "app, größe-1, 'a, b', 'no\\nsuch', '', '--x'"
        );
    }
}
