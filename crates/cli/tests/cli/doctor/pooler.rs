//! A pooler in transaction mode, as small as can be: each transaction goes to another session of the server.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{is_gone, problem};
use crate::support::{Place, server};

const READY: u8 = b'Z';

/// A message with its tag, and without it the first one of a connection.
fn message(stream: &mut TcpStream, tagged: bool) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; if tagged { 5 } else { 4 }];
    stream.read_exact(&mut bytes)?;
    let length = u32::from_be_bytes(bytes[bytes.len() - 4..].try_into().unwrap());
    let start = bytes.len();
    bytes.resize(start + length as usize - 4, 0);
    stream.read_exact(&mut bytes[start..])?;
    Ok(bytes)
}

/// Everything up to ReadyForQuery, and the status of the transaction.
fn answer(server: &mut TcpStream) -> std::io::Result<(Vec<u8>, u8)> {
    let mut all = Vec::new();
    loop {
        let next = message(server, true)?;
        all.extend_from_slice(&next);
        if next[0] == READY {
            return Ok((all, next[5]));
        }
    }
}

/// Serves one client. The server trusts, so that nothing is asked before it is ready.
fn serve(mut client: TcpStream, port: u16, per_transaction: bool) -> std::io::Result<()> {
    let mut startup = message(&mut client, false)?;
    if startup.len() == 8 {
        // SSLRequest
        client.write_all(b"N")?;
        startup = message(&mut client, false)?;
    }
    let mut servers = Vec::new();
    for place in 0..2 {
        let mut server = TcpStream::connect(("127.0.0.1", port))?;
        server.write_all(&startup)?;
        let (mut greeting, _) = answer(&mut server)?;
        if place == 0 {
            // A pooler has process ids of its own: BackendKeyData is 'K', its length, and the id.
            let key = greeting
                .windows(5)
                .position(|bytes| bytes == [b'K', 0, 0, 0, 12])
                .unwrap();
            greeting[key + 5..key + 9].copy_from_slice(&77_777_777_u32.to_be_bytes());
            client.write_all(&greeting)?;
        }
        servers.push(server);
    }
    let (mut current, mut status) = (0, b'I');
    loop {
        let query = message(&mut client, true)?;
        if query[0] == b'X' {
            return Ok(());
        }
        if status == b'I' && per_transaction {
            current = 1 - current;
        }
        servers[current].write_all(&query)?;
        let (text, now) = answer(&mut servers[current])?;
        status = now;
        client.write_all(&text)?;
    }
}

/// Listens until it is dropped.
struct Pooler {
    port: u16,
    ended: Arc<AtomicBool>,
}

impl Pooler {
    fn start(server: u16, per_transaction: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::spawn(move || serve(client, server, per_transaction));
            }
        });
        Self { port, ended }
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

#[test]
fn a_pooler_by_transaction_is_found_and_one_by_session_is_let_be() {
    let cluster = server();
    let place = Place::in_memory();
    place.configure(&cluster, &place.repository_url(), None);
    let through = |pooler: &Pooler| {
        format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            pooler.port
        )
    };
    let says = "gives each transaction another session of the server";

    let by_transaction = Pooler::start(cluster.port(), true);
    let found = problem(
        &place,
        &["--connection", &through(&by_transaction)],
        "error",
        says,
    );
    let direct = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        cluster.port()
    );
    assert!(found.mend.contains(&format!("'{direct}'")), "{found:?}");
    is_gone(&place, &["--connection", &direct], says);

    let by_session = Pooler::start(cluster.port(), false);
    let args = ["doctor", "--connection", &through(&by_session)];
    let told = place.run(&args).stdout;
    assert!(
        told.contains("stands before the server") && !told.contains(says),
        "{told}"
    );
}
