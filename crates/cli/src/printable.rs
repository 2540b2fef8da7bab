//! Names from databases and messages from servers may hold anything. Whatever of it a terminal would act on is shown as
//! `\x1b`, `\n`, `\t`; with `--json` it is exact, by JSON's own escapes.

use std::borrow::Cow;
use std::fmt::Write as _;

use anstyle::Style;

use crate::output::{ACCENT, BOLD, DIM};

/// The styles that texts come with.
const STYLES: [Style; 3] = [ACCENT, BOLD, DIM];

/// Control characters, and those that turn the direction of what follows, which makes a text look like another.
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_escaped(text: &mut String, c: char) {
    // Writing to a String can't fail.
    let _ = match c {
        '\n' => write!(text, "\\n"),
        '\r' => write!(text, "\\r"),
        '\t' => write!(text, "\\t"),
        c if u32::from(c) <= 0xff => write!(text, "\\x{:02x}", u32::from(c)),
        c => write!(text, "\\u{{{:x}}}", u32::from(c)),
    };
}

/// A text from outside that stands in one line: a name, a cell of a table.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(acts) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::new();
    for c in text.chars() {
        if acts(c) {
            push_escaped(&mut escaped, c);
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// A whole text on its way to the terminal: its line feeds and our own styles stay. The last guard, for names that
/// stand in sentences.
pub fn lines(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| acts(c) && c != '\n') {
        return Cow::Borrowed(text);
    }
    let mut ours: Vec<String> = STYLES.iter().map(ToString::to_string).collect();
    ours.push(format!("{:#}", ACCENT));
    let (mut escaped, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        let style = ours.iter().find(|style| rest.starts_with(style.as_str()));
        let length = style.map_or(c.len_utf8(), String::len);
        let (next, after) = rest.split_at(length);
        if style.is_some() || c == '\n' || !acts(c) {
            escaped.push_str(next);
        } else {
            push_escaped(&mut escaped, c);
        }
        rest = after;
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::styled;

    #[test]
    fn what_a_terminal_acts_on_is_shown() {
        assert_eq!(one_line("größe 日本 \\x1b"), "größe 日本 \\x1b");
        assert_eq!(
            one_line("a\nb\tc\rd\u{1b}[2Je\u{7}\u{7f}\u{9b}\u{202e}f"),
            "a\\nb\\tc\\rd\\x1b[2Je\\x07\\x7f\\x9b\\u{202e}f"
        );
    }

    #[test]
    fn line_feeds_and_our_own_styles_stay() {
        let text = format!("\n{} a\u{1b}[31mb\n", styled(BOLD, "x\u{1b}[2Jy"));
        let shown = lines(&text);
        assert_eq!(
            anstream::adapter::strip_str(&shown).to_string(),
            "\nx\\x1b[2Jy a\\x1b[31mb\n"
        );
        assert!(shown.starts_with(&format!("\n{BOLD}x")), "{shown:?}");
    }
}
