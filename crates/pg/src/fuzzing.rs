//! What the fuzz targets of fuzz/ do with outside bytes: each must read or refuse them, and may not panic, hang or show a
//! secret. The tests run the committed corpus through it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "here a panic is how a defect is reported"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pgkeep_base::Classified;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::conninfo::{PassFile, parse_service};
use crate::error::ServerError;
use crate::replication::{base_message, wal_message};
use crate::row::{Row, column_names};
use crate::session::{Session, affected_rows, parameter_status};
use crate::stream::{Address, Stream};
use crate::wire::{CopyStep, Wire};
use crate::{Conninfo, Environment, PgError, Target, script, startup};

/// More doesn't fit into a socket's buffer, and nobody reads at the other end.
const SERVER_BYTES_MAX: usize = 64 * 1024;
/// Stands for a password in texts that may be repeated in messages.
const SECRET: &str = "hunter2";

fn run<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}

/// Our end of a connection whose server says only this, and takes what it is sent.
async fn connection(data: &[u8]) -> (UnixStream, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(data).await.unwrap();
    theirs.shutdown().await.unwrap();
    (ours, theirs)
}

fn cut(data: &[u8]) -> &[u8] {
    data.get(..SERVER_BYTES_MAX).unwrap_or(data)
}

fn read_body(body: &[u8]) {
    let error = ServerError::from_body(body);
    let _ = (error.to_string(), PgError::Server(Box::new(error)).hint());
    let _ = parameter_status(body);
    let _ = affected_rows(body);
    let _ = (base_message(body).is_some(), wal_message(body).is_some());
    let columns = column_names(body).unwrap_or_else(|_| Arc::new([]));
    let Ok(row) = Row::from_body(&columns, body) else {
        return;
    };
    for index in 0..=row.len() {
        let _ = (
            row.text(index),
            row.get::<i64>(index),
            row.get::<Option<bool>>(index),
        );
    }
}

/// Frames, the bodies of messages, and the data of COPY. The first byte is how much data a reader wants at once.
pub fn wire(data: &[u8]) {
    let Some((wanted, data)) = cut(data).split_first() else {
        return;
    };
    run(async {
        let (ours, _theirs) = connection(data).await;
        let mut wire = Wire::new(Stream::Unix(ours));
        wire.authenticated();
        while let Ok(frame) = wire.next_frame().await {
            read_body(wire.body(frame));
        }
        let (ours, _theirs) = connection(data).await;
        let mut wire = Wire::new(Stream::Unix(ours));
        wire.authenticated();
        let (mut copied, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let going = match wire.append_copy_data(&mut buffer, usize::from(*wanted) + 1) {
                Err(_) => false,
                Ok(CopyStep::Enough) => {
                    copied.append(&mut buffer);
                    true
                }
                Ok(CopyStep::NeedMore) => wire.fill().await.is_ok(),
                Ok(CopyStep::Direct(missing)) => wire.read_direct(&mut buffer, missing).await.is_ok(),
                Ok(CopyStep::Other) => wire.next_frame().await.is_ok(),
            };
            if !going {
                break;
            }
        }
        copied.append(&mut buffer);
        assert!(copied.starts_with(&copied_simply(data)), "data of COPY is lost");
    });
}

/// The data of the whole CopyData messages, read in the simplest way.
fn copied_simply(mut data: &[u8]) -> Vec<u8> {
    let mut copied = Vec::new();
    while let Some((tag, rest)) = data.split_first()
        && let Some((length, rest)) = rest.split_first_chunk::<4>()
        && let Ok(length) = usize::try_from(u32::from_be_bytes(*length))
        && let Some(body) = length.checked_sub(4).and_then(|length| rest.get(..length))
    {
        if *tag == b'd' {
            copied.extend_from_slice(body);
        }
        data = rest.get(body.len()..).unwrap_or_default();
    }
    copied
}

/// A whole session against a server that sends anything. The first byte says whether it lets the client in at once.
pub fn session(data: &[u8]) {
    let Some((first, data)) = cut(data).split_first() else {
        return;
    };
    let mut says = Vec::new();
    if first % 2 == 1 {
        // AuthenticationOk, ReadyForQuery.
        says.extend_from_slice(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I");
    }
    says.extend_from_slice(data);
    run(async {
        let (ours, _theirs) = connection(&says).await;
        let conninfo = Conninfo::parse("host=/nowhere user=joe password=hunter2 connect_timeout=2").unwrap();
        let target = conninfo.resolve(&Environment::empty()).unwrap();
        let host = target.hosts.first().unwrap();
        let address = Address::Socket(PathBuf::from("/nowhere"));
        let stream = Stream::Unix(ours);
        match startup::begin_session(stream, &target, host, &address, false).await {
            Ok(mut session) => {
                let _ = session.server_version_num();
                talk(&mut session, first / 2).await;
                let _ = (session.take_notices(), session.is_broken());
                session.close().await;
            }
            Err(error) => {
                // A server may say the word by itself.
                let said = String::from_utf8_lossy(&says).contains(SECRET);
                assert!(said || !format!("{error} {:?}", error.hint()).contains(SECRET));
            }
        }
    });
}

async fn talk(session: &mut Session, order: u8) {
    for step in 0..4_u8 {
        match order.wrapping_add(step) % 4 {
            0 => drop(session.query("SELECT 1").await),
            1 => drop(session.query_params("SELECT $1", &[Some("x"), None]).await),
            2 => {
                if let Ok(mut copy) = session.copy_out("COPY t TO STDOUT").await {
                    let mut buffer = Vec::new();
                    while let Ok(true) = copy.read_into(&mut buffer, 100).await {
                        buffer.clear();
                    }
                    let _ = copy.finish().await;
                }
            }
            _ => {
                if let Ok(mut copy) = session.copy_in("COPY t FROM STDIN").await {
                    let _ = match copy.send(b"1\n").await {
                        Ok(()) => copy.finish().await.map(drop),
                        Err(_) => copy.abort("refused").await,
                    };
                }
            }
        }
    }
}

fn shown(target: &Target) -> String {
    let environment = target.libpq_environment();
    let _ = target.with_database("x").endpoint();
    format!("{target} {target:?} {environment:?}")
}

/// Connection strings.
pub fn conninfo(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let environment = Environment::new(|_| None, None, Some("me".to_owned()));
    match Conninfo::parse(&text) {
        Ok(conninfo) => {
            let again = conninfo.to_string();
            if !again.contains("[secret]") && again.len() < 32 * 1024 {
                assert_eq!(Conninfo::parse(&again).as_ref(), Ok(&conninfo));
            }
            let _ = conninfo.with_database("x");
            resolved(&conninfo, &environment);
        }
        Err(error) => drop((error.to_string(), error.hint())),
    }
    if text.to_lowercase().contains(SECRET) {
        return;
    }
    // The password stands by itself here, so nothing may show it.
    for own in [
        format!("postgresql://user:{SECRET}@{text}"),
        format!("password={SECRET} {text}"),
        format!("password='{SECRET}' {text}"),
        format!("password={SECRET}{text}"),
    ] {
        let said = match Conninfo::parse(&own) {
            Ok(conninfo) => format!("{conninfo} {:?}", resolved(&conninfo, &environment)),
            Err(error) => format!("{error} {:?}", error.hint()),
        };
        assert!(!said.contains(SECRET), "{said}");
    }
    // Here it may be part of another value, which may be shown, but then the text is no error.
    let (before, after) = text.split_at(text.floor_char_boundary(text.len() / 2));
    for within in [
        format!("postgresql://user:{before}{SECRET}{after}@host/database"),
        format!("{text} password={SECRET}"),
    ] {
        if let Err(error) = Conninfo::parse(&within) {
            assert!(!error.to_string().contains(SECRET), "{error}");
        }
    }
}

/// Without files, of which a machine may have any.
fn resolved(conninfo: &Conninfo, environment: &Environment) -> Option<String> {
    if ["service", "servicefile", "passfile"]
        .iter()
        .any(|name| conninfo.setting(name).is_some())
    {
        return None;
    }
    Some(match conninfo.resolve(environment) {
        Ok(target) => shown(&target),
        Err(error) => format!("{error} {:?}", error.hint()),
    })
}

/// Service files and password files.
pub fn files(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(error) = parse_service("main", Path::new("/service"), &text) {
        let _ = (error.to_string(), error.hint());
    }
    let file = PassFile::parse(Path::new("/passfile"), &text);
    let _ = file.find("host", 5432, "database", "user");
}

/// Scripts.
pub fn script(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let pieces: Vec<_> = script::pieces(&text).collect();
    assert!(pieces.len() <= text.len());
    let settled = !text.to_lowercase().contains("standard_conforming_strings");
    for piece in pieces {
        match piece {
            Ok(script::Piece::Statement(statement)) if settled => {
                assert_eq!(script::statements(statement), Ok(vec![statement]));
            }
            Ok(_) => {}
            Err(error) => assert!(error.line <= text.lines().count().max(1), "{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its name and what it does.
    type FuzzTarget = (&'static str, fn(&[u8]));

    #[test]
    fn the_corpus_of_the_fuzzers_is_read_or_refused() {
        let targets: [FuzzTarget; 5] = [
            ("wire", wire),
            ("session", session),
            ("conninfo", conninfo),
            ("files", files),
            ("script", script),
        ];
        for (name, target) in targets {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../fuzz/corpus")
                .join(name);
            let entries: Vec<_> = std::fs::read_dir(&folder).unwrap().map(Result::unwrap).collect();
            assert!(!entries.is_empty(), "{}", folder.display());
            for entry in entries {
                target(&std::fs::read(entry.path()).unwrap());
            }
        }
    }
}
