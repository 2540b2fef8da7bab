//! Names from databases and messages from servers may hold anything. Whatever of it a terminal would act on is shown as
//! `\x1b`, `\n`, `\t`; with `--json` it is exact, by JSON's own escapes.

use std::borrow::Cow;

use anstyle::Style;
pub use pgkeep_base::one_line;
use pgkeep_base::{acts_on_terminal as acts, push_escaped};

use crate::output::{ACCENT, BOLD, DIM};

/// The styles that texts come with.
const STYLES: [Style; 3] = [ACCENT, BOLD, DIM];

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
