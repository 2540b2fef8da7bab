//! Reading the command line. clap repeats what it doesn't understand, and that may be half of a password.

use std::ffi::OsString;

use clap::Parser;

use crate::args::Cli;
use crate::exit::{DONE, USAGE};

/// What an argument has that may hold a secret, in small letters.
const SECRET_MARKS: [&str; 6] = ["password", "secret", "token", "access_key", "sig=", "://"];
/// A shorter one is part of many words.
const SECRET_BYTES_MIN: usize = 4;

/// Whether it is `pgkeep wal fetch`, whatever else is wrong with the arguments: PostgreSQL goes by its exit code.
pub fn is_wal_fetch(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut arguments = arguments.skip_while(|argument| argument != "wal");
    arguments.any(|argument| argument == "fetch")
}

/// The arguments, or how to end when help was asked for or they make no sense.
pub fn parse() -> Result<Cli, u8> {
    Cli::try_parse().map_err(|error| {
        let mut text = error.render().ansi().to_string();
        if !error.use_stderr() {
            anstream::print!("{text}");
            return DONE;
        }
        for secret in secret_parts(std::env::args_os().skip(1)) {
            text = text.replace(&secret, "[not shown]");
        }
        anstream::eprint!("{text}");
        crate::pipes::error(&anstream::adapter::strip_str(&text).to_string());
        USAGE
    })
}

/// What must not be repeated. An argument needn't be UTF-8; clap repeats it with the same marks for what isn't.
fn secret_parts(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = String> {
    arguments.filter_map(|argument| secret_part(argument.to_string_lossy().into_owned()))
}

/// What of an argument must not be repeated: all of it, or the value of `--option=value`.
fn secret_part(argument: String) -> Option<String> {
    let value = match argument.split_once('=') {
        Some((option, value)) if option.starts_with("--") => value.to_owned(),
        _ => argument,
    };
    let small = value.to_ascii_lowercase();
    let secret = SECRET_MARKS.iter().any(|mark| small.contains(mark)) && !value.starts_with('-');
    (secret && value.len() >= SECRET_BYTES_MIN).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn arguments_that_are_not_utf_8_are_read_too() {
        let arguments = [b"x\xff".to_vec(), b"password=\xff".to_vec()].map(OsString::from_vec);
        let parts: Vec<String> = secret_parts(arguments.into_iter()).collect();
        assert_eq!(parts, ["password=\u{fffd}"]);
    }

    #[test]
    fn arguments_that_may_hold_secrets_are_known() {
        let part = |text: &str| secret_part(text.to_owned());
        for (argument, secret) in [
            ("password=x", Some("password=x")),
            ("postgres://u:x@h", Some("postgres://u:x@h")),
            ("--set=s3.secret_access_key:x", Some("s3.secret_access_key:x")),
            ("AGE-SECRET-KEY-1X", Some("AGE-SECRET-KEY-1X")),
            ("--passwords", None),
            ("dump", None),
            ("host=x", None),
        ] {
            assert_eq!(part(argument).as_deref(), secret, "{argument}");
        }
    }
}
