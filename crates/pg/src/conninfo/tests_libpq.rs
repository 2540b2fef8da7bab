//! The same text read by libpq itself.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use pgkeep_testkit::{Missing, require};
use proptest::prelude::*;

use super::Conninfo;

/// libpq itself (`PQconninfoParse`), asked through Python's ctypes.
struct Libpq {
    _child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

const PYTHON: &str = r#"
import ctypes, json, sys
class Option(ctypes.Structure):
    _fields_ = [(n, ctypes.c_char_p) for n in ("keyword", "envvar", "compiled", "val", "label", "dispchar")] + [("dispsize", ctypes.c_int)]
libpq = ctypes.CDLL(sys.argv[1])
libpq.PQconninfoParse.restype = ctypes.POINTER(Option)
libpq.PQconninfoParse.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)]
libpq.PQconninfoFree.argtypes = [ctypes.POINTER(Option)]
for line in sys.stdin:
    error = ctypes.c_char_p()
    options = libpq.PQconninfoParse(bytes.fromhex(line.strip()), ctypes.byref(error))
    if not options:
        print("error", flush=True)
        continue
    found, i = [], 0
    while options[i].keyword:
        if options[i].val is not None:
            found.append(options[i].keyword.hex() + "=" + options[i].val.hex())
        i += 1
    libpq.PQconninfoFree(options)
    print(" ".join(found), flush=True)
"#;

impl Libpq {
    fn start() -> Option<Self> {
        let root = std::env::var_os("PGKEEP_TEST_PG")
            .map(PathBuf::from)
            .or_else(|| {
                let cache = std::env::var_os("PGKEEP_TEST_CACHE").map(PathBuf::from);
                let home =
                    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/pgkeep-test"));
                Some(cache.or(home)?.join("postgresql"))
            })?;
        let library = [16, 17, 15].map(|major| root.join(format!("{major}/lib/libpq.so.5")));
        let library = library.into_iter().find(|path| path.exists())?;
        let mut child = Command::new("python3")
            .args(["-c", PYTHON])
            .arg(library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let (stdin, stdout) = (child.stdin.take()?, BufReader::new(child.stdout.take()?));
        Some(Self {
            _child: child,
            stdin,
            stdout,
        })
    }

    fn parse(&mut self, text: &str) -> Option<Vec<(String, String)>> {
        let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let decode = |text: &str| {
            let byte = |index| u8::from_str_radix(&text[index..index + 2], 16).unwrap();
            String::from_utf8_lossy(&(0..text.len()).step_by(2).map(byte).collect::<Vec<u8>>()).into_owned()
        };
        writeln!(self.stdin, "{}", hexadecimal(text.as_bytes())).unwrap();
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        if line.trim() == "error" {
            return None;
        }
        let pair = |pair: &str| {
            pair.split_once('=')
                .map(|(name, value)| (decode(name), decode(value)))
                .unwrap()
        };
        let mut found: Vec<_> = line.split_whitespace().map(pair).collect();
        found.sort();
        Some(found)
    }
}

/// Text that looks like a connection string, right or wrong.
fn conninfo_like() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "host",
        "user",
        "password",
        "dbname",
        "port",
        "sslmode",
        "options",
        "=",
        "=",
        "=",
        " ",
        " ",
        "'",
        "'",
        "\\",
        "a",
        "b c",
        "5432",
        "ü",
        ",",
        "\t",
        "\n",
        "x",
        "hostaddr",
        "127.0.0.1",
        "/tmp",
        "unknown",
    ]);
    let uri_piece = prop::sample::select(vec![
        "@",
        ":",
        "/",
        "?",
        "&",
        "=",
        ",",
        "[",
        "]",
        "::1",
        "%20",
        "%2F",
        "%",
        "%0",
        "user",
        "host",
        "dbname",
        "port",
        "a",
        "b",
        "5432",
        "ü",
        "host=",
        "&user=",
        "&sslmode=require",
        "ssl=true",
        "#",
        " ",
    ]);
    prop_oneof![
        prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat()),
        prop::collection::vec(uri_piece, 0..14)
            .prop_map(|pieces| format!("postgresql://{}", pieces.concat())),
    ]
}

#[test]
fn real_libpq_reads_the_same() {
    let missing = || Missing("python3 and libpq.so.5 of PGKEEP_TEST_PG".to_owned());
    let libpq = require!(Libpq::start().ok_or_else(missing));
    let libpq = Mutex::new(libpq);
    let config = ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(text in conninfo_like())| {
        let theirs = libpq.lock().unwrap().parse(&text);
        match (Conninfo::parse(&text), theirs) {
            (Ok(ours), Some(theirs)) => {
                let ours: Vec<_> = ours.settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
                prop_assert_eq!(ours, theirs);
            }
            (Err(_), None) => {}
            // What this side refuses on purpose, so that a part of a password doesn't become a name, or settings that
            // somebody separated by commas a host; and text that isn't UTF-8 once it is decoded.
            (Err(error), Some(_)) => {
                let error = error.to_string();
                prop_assert!(
                    ["'@' too many", "a port is not a number", "not UTF-8", "settings are separated by blanks"]
                        .iter()
                        .any(|refusal| error.contains(refusal)),
                    "only libpq accepts {:?}: {}", text, error
                );
            }
            (Ok(ours), None) => prop_assert!(false, "only pgkeep accepts {:?}: {}", text, ours),
        }
    });
}
