//! What Dagster put into the environment, and the place that it reads from. Every byte of it is somebody else's: sizes are
//! limited, and what isn't understood is an error that says which part.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::read::ZlibDecoder;
use serde_json::Value;

use crate::exit::Failure;

/// Where Dagster says what it wants.
const CONTEXT: &str = "DAGSTER_PIPES_CONTEXT";
/// Where it reads what the process reports.
const MESSAGES: &str = "DAGSTER_PIPES_MESSAGES";
/// A context has keys and versions of assets: far less than this.
const JSON_BYTES_MAX: u64 = 16 << 20;

const HINT: &str = "start pgkeep by PipesSubprocessClient with its own context injector and message reader; \
                    to run without reporting: env -u DAGSTER_PIPES_CONTEXT -u DAGSTER_PIPES_MESSAGES pgkeep ...";

/// The place that Dagster reads from.
#[derive(Debug)]
pub enum Channel {
    /// A file that it follows.
    File(File),
    /// The standard output that it caught.
    Stdout,
    /// The standard error that it caught.
    Stderr,
}

impl Channel {
    /// Writes one line at once: whoever follows the file sees no half of it for longer than the kernel takes.
    pub fn write(&mut self, line: &str) -> io::Result<()> {
        let line = format!("{line}\n");
        match self {
            Self::File(file) => file.write_all(line.as_bytes()),
            Self::Stdout => crate::progress::suspended(|| {
                let mut stdout = io::stdout().lock();
                stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush())
            }),
            Self::Stderr => crate::progress::suspended(|| io::stderr().lock().write_all(line.as_bytes())),
        }
    }
}

/// What Dagster wants.
#[derive(Debug)]
pub struct Invitation {
    /// Where it listens.
    pub channel: Channel,
    /// The assets it wants; none in an ordinary op.
    pub asset_keys: Vec<String>,
}

impl Invitation {
    /// Reads it; nothing where Dagster has not started the process.
    pub fn read(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<Self>, Failure> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let (context, messages) = match (set(CONTEXT), set(MESSAGES)) {
            (None, None) => return Ok(None),
            (Some(context), Some(messages)) => (context, messages),
            (Some(_), None) => return Err(wrong(MESSAGES, "it isn't set, and the other one is")),
            (None, Some(_)) => return Err(wrong(CONTEXT, "it isn't set, and the other one is")),
        };
        let context = decode(&context).and_then(|params| load_context(&params));
        let channel = decode(&messages).and_then(|params| open_channel(&params));
        Ok(Some(Self {
            asset_keys: context
                .and_then(|context| asset_keys(&context))
                .map_err(|problem| wrong(CONTEXT, &problem))?,
            channel: channel.map_err(|problem| wrong(MESSAGES, &problem))?,
        }))
    }
}

fn wrong(variable: &str, problem: &str) -> Failure {
    Failure::usage(
        format!("cannot report to Dagster: the variable {variable}: {problem}"),
        HINT,
    )
}

/// JSON, compressed by zlib, in base64.
fn decode(value: &OsString) -> Result<Value, String> {
    let compressed = value
        .to_str()
        .and_then(|text| BASE64.decode(text.trim()).ok())
        .ok_or("it is not base64")?;
    let json = read_limited(ZlibDecoder::new(compressed.as_slice()))
        .map_err(|error| format!("it cannot be decompressed: {error}"))?;
    serde_json::from_slice(&json).map_err(|error| format!("it is not JSON: {error}"))
}

fn read_limited(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = reader.take(JSON_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if read as u64 > JSON_BYTES_MAX {
        return Err(io::Error::other(format!("longer than {JSON_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// In the variable itself, or in a file that it names.
fn load_context(params: &Value) -> Result<Value, String> {
    if let Some(data) = params.get("data") {
        return Ok(data.clone());
    }
    let Some(path) = params.get("path").and_then(Value::as_str) else {
        return Err(format!(
            "the context is neither in it nor in a file that it names, but in {}",
            named(params)
        ));
    };
    let json = File::open(path)
        .and_then(read_limited)
        .map_err(|error| format!("{path}: {error}"))?;
    serde_json::from_slice(&json).map_err(|error| format!("{path} is not JSON: {error}"))
}

fn asset_keys(context: &Value) -> Result<Vec<String>, String> {
    let not_a_list = || "asset_keys is no list of texts".to_owned();
    match context.get("asset_keys") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(keys)) => keys
            .iter()
            .map(|key| key.as_str().map(str::to_owned).ok_or_else(not_a_list))
            .collect(),
        Some(_) => Err(not_a_list()),
    }
}

fn open_channel(params: &Value) -> Result<Channel, String> {
    let text = |name| params.get(name).and_then(Value::as_str);
    match (text("path"), text("stdio")) {
        // It is there already: a name that leads nowhere is found out now.
        (Some(path), _) => OpenOptions::new()
            .append(true)
            .open(path)
            .map(Channel::File)
            .map_err(|error| format!("{path}: {error}")),
        (None, Some("stdout")) => Ok(Channel::Stdout),
        (None, Some("stderr")) => Ok(Channel::Stderr),
        _ => Err(format!(
            "messages go to a file or to a standard stream, and it names {}",
            named(params)
        )),
    }
}

/// The names of what there is, without the values.
fn named(params: &Value) -> String {
    match params.as_object() {
        Some(params) if !params.is_empty() => {
            params.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
        }
        _ => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use serde_json::json;

    use super::*;

    fn encode(bytes: &[u8]) -> String {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        BASE64.encode(encoder.finish().unwrap())
    }

    fn read(context: &str, messages: &str) -> Result<Option<Invitation>, String> {
        Invitation::read(&|name| Some(if name == CONTEXT { context } else { messages }.into()))
            .map_err(|failure| failure.text())
    }

    fn params(value: &Value) -> String {
        encode(value.to_string().as_bytes())
    }

    #[test]
    fn outside_dagster_there_is_nothing_to_read() {
        assert!(read("", "").unwrap().is_none());
        assert!(Invitation::read(&|_| None).unwrap().is_none());
    }

    #[test]
    fn a_context_is_in_the_variable_or_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("context");
        std::fs::write(&path, json!({ "asset_keys": ["in/file"] }).to_string()).unwrap();
        let stderr = params(&json!({ "stdio": "stderr" }));
        for (context, keys) in [
            (json!({ "data": { "asset_keys": ["a/b"] } }), vec!["a/b"]),
            (json!({ "data": { "asset_keys": null } }), vec![]),
            (json!({ "path": path }), vec!["in/file"]),
        ] {
            let invitation = read(&params(&context), &stderr).unwrap().unwrap();
            assert_eq!(invitation.asset_keys, keys);
        }
    }

    #[test]
    fn lines_are_added_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("messages");
        std::fs::write(&path, "before\n").unwrap();
        let context = params(&json!({ "data": {} }));
        let messages = params(&json!({ "path": path, "include_stdio_in_messages": false }));
        let mut invitation = read(&context, &messages).unwrap().unwrap();
        invitation.channel.write("a").unwrap();
        invitation.channel.write("b").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\na\nb\n");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = params(&json!({ "data": {} }));
        let stdout = params(&json!({ "stdio": "stdout" }));
        let bomb = encode(&vec![b' '; JSON_BYTES_MAX as usize + 1]);
        let bucket = params(&json!({ "bucket": "b", "key_prefix": "k" }));
        let missing = params(&json!({ "path": "/nonexistent/messages" }));
        let keys = |keys: Value| params(&json!({ "data": { "asset_keys": keys } }));
        for (context, messages, variable, problem) in [
            ("%", stdout.as_str(), CONTEXT, "not base64"),
            ("AAAA", &stdout, CONTEXT, "cannot be decompressed"),
            (&bomb, &stdout, CONTEXT, "longer than"),
            (&encode(b"{"), &stdout, CONTEXT, "not JSON"),
            (&bucket, &stdout, CONTEXT, "bucket, key_prefix"),
            (&missing, &stdout, CONTEXT, "No such file"),
            (&keys(json!("a")), &stdout, CONTEXT, "no list of texts"),
            (&keys(json!([1])), &stdout, CONTEXT, "no list of texts"),
            (&good, &bucket, MESSAGES, "bucket, key_prefix"),
            (&good, &missing, MESSAGES, "No such file"),
            (&good, &params(&json!(7)), MESSAGES, "names nothing"),
            (&good, &params(&json!({ "stdio": "x" })), MESSAGES, "names stdio"),
            (&good, "", MESSAGES, "isn't set"),
            ("", &stdout, CONTEXT, "isn't set"),
        ] {
            let told = read(context, messages).unwrap_err();
            assert!(told.contains(variable) && told.contains(problem), "{told}");
        }
    }
}
