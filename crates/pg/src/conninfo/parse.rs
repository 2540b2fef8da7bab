//! The two spellings of a connection string: `key=value` and URI, as `fe-connect.c` reads them.

use std::collections::BTreeMap;

use pgkeep_base::nearest;

use super::ConninfoError;
use super::keywords::{self, Keyword, Support};

pub(crate) type Settings = BTreeMap<&'static str, String>;

/// Longer text is no connection string.
const LENGTH_MAX: usize = 64 * 1024;

/// Parses either spelling.
pub(crate) fn parse(text: &str) -> Result<Settings, ConninfoError> {
    if text.len() > LENGTH_MAX {
        return Err(ConninfoError::Syntax(format!(
            "it is longer than {LENGTH_MAX} bytes"
        )));
    }
    if text.contains('\0') {
        return Err(ConninfoError::Syntax("it holds a NUL character".to_owned()));
    }
    match text
        .strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
    {
        Some(rest) => parse_uri(rest),
        None => match other_scheme(text) {
            Some(scheme) => Err(ConninfoError::UnknownScheme {
                scheme: scheme.to_owned(),
                nearest: nearest(scheme, SCHEMES),
            }),
            None => parse_pairs(text),
        },
    }
}

const SCHEMES: [&str; 2] = ["postgres", "postgresql"];

/// The scheme of a URI that isn't PostgreSQL's. In keywords and values an equals sign comes first.
fn other_scheme(text: &str) -> Option<&str> {
    // Longer words aren't schemes, and needn't be repeated.
    const LENGTH_MAX: usize = 20;
    let (scheme, _) = text.split_once("://")?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    (scheme.len() <= LENGTH_MAX
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(fits))
    .then_some(scheme)
}

/// Finds the keyword, or says which one may have been meant. `shown`: may the name be repeated in the message? It
/// may not once a password has been read, because an unquoted blank in a password makes its rest look like a keyword.
fn lookup(name: &str, shown: bool) -> Result<&'static Keyword, ConninfoError> {
    let Some(keyword) = keywords::find(name) else {
        return Err(ConninfoError::UnknownKeyword {
            name: shown.then(|| name.to_owned()),
            nearest: keywords::nearest(name),
        });
    };
    if keyword.support == Support::Refused {
        return Err(ConninfoError::Unsupported(keyword.name));
    }
    Ok(keyword)
}

/// `conninfo_parse`: blanks between pairs, blanks around `=`, single quotes, backslash escapes.
fn parse_pairs(text: &str) -> Result<Settings, ConninfoError> {
    let mut settings = Settings::new();
    let mut rest = text.trim_start_matches(is_blank);
    let mut secret_seen = false;
    while !rest.is_empty() {
        let name_end = rest.find(|c| c == '=' || is_blank(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(name_end);
        let Some(value_text) = after.trim_start_matches(is_blank).strip_prefix('=') else {
            let position = text.chars().count() - rest.chars().count() + 1;
            return Err(ConninfoError::Syntax(format!(
                "a '=' is missing after the word at character {position}: write keyword=value, and quote values with \
                 blanks, as in password='two words'"
            )));
        };
        let keyword = lookup(name, !secret_seen)?;
        secret_seen |= keyword.secret;
        let value_text = value_text.trim_start_matches(is_blank);
        let (value, after) = parse_value(value_text, keyword.name)?;
        if !keyword.secret && !value_text.starts_with('\'') {
            refuse_separator(keyword.name, &value)?;
        }
        settings.insert(keyword.name, value);
        rest = after.trim_start_matches(is_blank);
    }
    Ok(settings)
}

/// `host=a,port=1` is one host of a strange name to libpq, and nobody means that.
fn refuse_separator(keyword: &str, value: &str) -> Result<(), ConninfoError> {
    // What is in `options` is the server's.
    if keyword == "options" {
        return Ok(());
    }
    for (place, separator) in value.match_indices([',', ';']) {
        let after = value.get(place + 1..).unwrap_or_default();
        let Some((name, _)) = after.split_once('=') else {
            return Ok(());
        };
        if let Some(next) = keywords::find(name) {
            return Err(ConninfoError::Syntax(format!(
                "'{separator}{}=' stands in the value of '{keyword}': settings are separated by blanks, as in host=a port=5432",
                next.name
            )));
        }
    }
    Ok(())
}

/// C's `isspace` in the C locale.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// One value, quoted or not, and the text after it.
fn parse_value<'a>(text: &'a str, keyword: &str) -> Result<(String, &'a str), ConninfoError> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices();
    if quoted {
        characters.next();
    }
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' => {
                if let Some((_, escaped)) = characters.next() {
                    value.push(escaped);
                }
            }
            '\'' if quoted => return Ok((value, text.get(index + 1..).unwrap_or_default())),
            blank if !quoted && is_blank(blank) => return Ok((value, text.get(index..).unwrap_or_default())),
            other => value.push(other),
        }
    }
    if quoted {
        return Err(ConninfoError::Syntax(format!(
            "the quoted value of '{keyword}' has no closing quote"
        )));
    }
    Ok((value, ""))
}

const PERCENT_ADVICE: &str = "in a URI, write the characters @ / : ? # % of a user name, password or database name as \
                              %40 %2F %3A %3F %23 %25";

/// `conninfo_uri_parse_options`, without the scheme.
fn parse_uri(text: &str) -> Result<Settings, ConninfoError> {
    let mut settings = Settings::new();
    let mut rest = text;
    let mut secret_seen = false;
    if let Some(end) = text.find(['@', '/']).filter(|end| text[*end..].starts_with('@')) {
        let (user, password) = match text[..end].split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (&text[..end], None),
        };
        secret_seen = password.is_some();
        store_nonempty(&mut settings, "user", user)?;
        store_nonempty(&mut settings, "password", password.unwrap_or_default())?;
        rest = &text[end + 1..];
    }
    let (netloc, tail) = parse_netloc(rest, &mut settings)?;
    let (path, query) = match tail.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (tail, None),
    };
    let database = path.strip_prefix('/').unwrap_or(path);
    if netloc.contains('@') || database.contains('@') {
        // libpq would take it for a host or database name; here it could only be the rest of a password.
        return Err(ConninfoError::Syntax(format!(
            "there is an '@' too many: {PERCENT_ADVICE}"
        )));
    }
    store_nonempty(&mut settings, "dbname", database)?;
    if let Some(query) = query {
        // With an @ in it, the query may be the rest of a password, too.
        parse_query(query, secret_seen || query.contains('@'), &mut settings)?;
    }
    Ok(settings)
}

/// Reads `host:port,host:port...` and returns its text and what follows, which begins with `/` or `?`.
fn parse_netloc<'a>(text: &'a str, settings: &mut Settings) -> Result<(&'a str, &'a str), ConninfoError> {
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    let mut rest = text;
    loop {
        let (host, after) = match rest.strip_prefix('[') {
            Some(inner) => bracketed_address(inner)?,
            None => rest.split_at(rest.find([':', '/', '?', ',']).unwrap_or(rest.len())),
        };
        let (port, after) = match after.strip_prefix(':') {
            Some(port) => port.split_at(port.find(['/', '?', ',']).unwrap_or(port.len())),
            None => ("", after),
        };
        hosts.push(host);
        ports.push(port);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None => {
                rest = after;
                break;
            }
        }
    }
    let (hosts, ports) = (hosts.join(","), ports.join(","));
    // A port that is none can be the rest of a password with a '/' in it, so it is not repeated.
    if !decode(&ports)?
        .split(',')
        .all(|port| port.trim().bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Err(ConninfoError::Syntax(format!(
            "a port is not a number; {PERCENT_ADVICE}"
        )));
    }
    store_nonempty(settings, "host", &hosts)?;
    store_nonempty(settings, "port", &ports)?;
    Ok(text.split_at(text.len() - rest.len()))
}

/// An IPv6 address and what follows its bracket.
fn bracketed_address(inner: &str) -> Result<(&str, &str), ConninfoError> {
    let error = |text: &str| Err(ConninfoError::Syntax(text.to_owned()));
    let Some((address, after)) = inner.split_once(']') else {
        return error("the ']' of an IPv6 address is missing");
    };
    if address.is_empty() {
        return error("the IPv6 address between [ and ] is empty");
    }
    if !after.is_empty() && !after.starts_with([':', '/', '?', ',']) {
        return error("after the ']' of an IPv6 address only :port, a comma, / or ? may follow");
    }
    Ok((address, after))
}

/// `conninfo_uri_parse_params`.
fn parse_query(query: &str, mut secret_seen: bool, settings: &mut Settings) -> Result<(), ConninfoError> {
    if query.is_empty() {
        return Ok(());
    }
    for pair in query.strip_suffix('&').unwrap_or(query).split('&') {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(ConninfoError::Syntax(
                "a parameter after the '?' has no '='".to_owned(),
            ));
        };
        if value.contains('=') {
            return Err(ConninfoError::Syntax(
                "a parameter after the '?' has more than one '='; write the second one as %3D".to_owned(),
            ));
        }
        let (name, value) = (decode(name)?, decode(value)?);
        // What JDBC calls it.
        if name == "ssl" && value == "true" {
            settings.insert("sslmode", "require".to_owned());
            continue;
        }
        let keyword = lookup(&name, !secret_seen)?;
        secret_seen |= keyword.secret;
        settings.insert(keyword.name, value);
    }
    Ok(())
}

fn store_nonempty(settings: &mut Settings, name: &'static str, encoded: &str) -> Result<(), ConninfoError> {
    if !encoded.is_empty() {
        settings.insert(name, decode(encoded)?);
    }
    Ok(())
}

/// `conninfo_uri_decode`: percent-encoding; `%00` is refused.
fn decode(encoded: &str) -> Result<String, ConninfoError> {
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
        match digit()
            .zip(digit())
            .and_then(|(high, low)| u8::try_from(high * 16 + low).ok())
        {
            None => {
                return Err(ConninfoError::Syntax(
                    "a '%' is not followed by two hexadecimal digits; write a literal % as %25".to_owned(),
                ));
            }
            Some(0) => return Err(ConninfoError::Syntax("%00 is not allowed".to_owned())),
            Some(byte) => decoded.push(byte),
        }
    }
    String::from_utf8(decoded)
        .map_err(|_| ConninfoError::Syntax("percent-encoded text is not UTF-8".to_owned()))
}
