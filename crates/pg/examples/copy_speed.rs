//! How fast the client takes and gives COPY data: against a server made of one thread that does nothing else, so that
//! the limit is the socket. `cargo run --release -p pgkeep-pg --example copy_speed`
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement for people"
)]

use std::io::{BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use pgkeep_pg::{Session, Target};

const TOTAL_BYTES: usize = 4 << 30;

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], length.to_be_bytes().as_slice(), body].concat()
}

fn read_message(stream: &mut UnixStream, tag: bool) -> Vec<u8> {
    let mut header = vec![0; 4 + usize::from(tag)];
    stream.read_exact(&mut header).unwrap();
    let length: [u8; 4] = header[usize::from(tag)..].try_into().unwrap();
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap() - 4];
    stream.read_exact(&mut body).unwrap();
    body
}

/// Lets one client in, then sends or swallows `TOTAL_BYTES` of rows.
fn serve(mut stream: UnixStream, row_bytes: usize, out: bool) {
    read_message(&mut stream, false);
    let mut hello = message(b'R', &[0; 4]);
    hello.extend(message(b'K', &[0; 8]));
    hello.extend(message(b'Z', b"I"));
    stream.write_all(&hello).unwrap();
    read_message(&mut stream, true);
    if out {
        stream.write_all(&message(b'H', &[0, 0, 0])).unwrap();
        let row = message(b'd', &vec![b'x'; row_bytes]);
        let block = row.repeat((1 << 20) / row.len() + 1);
        for _ in 0..TOTAL_BYTES / block.len() {
            stream.write_all(&block).unwrap();
        }
        stream.write_all(&message(b'c', &[])).unwrap();
    } else {
        stream.write_all(&message(b'G', &[0, 0, 0])).unwrap();
        let mut reader = BufReader::with_capacity(1 << 20, &stream);
        let mut header = [0; 5];
        while header[0] != b'c' {
            reader.read_exact(&mut header).unwrap();
            let length = u32::from_be_bytes(header[1..].try_into().unwrap()) - 4;
            std::io::copy(&mut reader.by_ref().take(u64::from(length)), &mut std::io::sink()).unwrap();
        }
    }
    stream
        .write_all(&[message(b'C', b"COPY 1\0"), message(b'Z', b"I")].concat())
        .unwrap();
    // Until the client has read it.
    let _ = stream.read(&mut [0; 64]);
}

fn measure(name: &str, row_bytes: usize, out: bool) {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join(".s.PGSQL.5432")).unwrap();
    let server = std::thread::spawn(move || serve(listener.accept().unwrap().0, row_bytes, out));
    let target = Target::for_socket(directory.path(), 5432, "u", "d");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let started = Instant::now();
    let bytes = runtime.block_on(async {
        let mut session = Session::connect(&target).await.unwrap();
        let mut bytes = 0;
        if out {
            let mut copy = session.copy_out("COPY t TO STDOUT").await.unwrap();
            let mut buffer = Vec::with_capacity(5 << 20);
            loop {
                buffer.clear();
                let more = copy.read_into(&mut buffer, 4 << 20).await.unwrap();
                bytes += buffer.len();
                if !more {
                    break;
                }
            }
            copy.finish().await.unwrap();
        } else {
            let mut copy = session.copy_in("COPY t FROM STDIN").await.unwrap();
            let block = vec![b'x'; row_bytes];
            while bytes < TOTAL_BYTES {
                copy.send(&block).await.unwrap();
                bytes += block.len();
            }
            copy.finish().await.unwrap();
        }
        bytes
    });
    let seconds = started.elapsed().as_secs_f64();
    server.join().unwrap();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = bytes as f64 / seconds / 1e9;
    println!("{name}: {rate:.2} GB/s");
}

fn main() {
    measure("COPY TO, rows of 60 bytes", 60, true);
    measure("COPY TO, rows of 1 kB", 1000, true);
    measure("COPY TO, rows of 8 kB", 8000, true);
    measure("COPY TO, rows of 1 MB", 1_000_000, true);
    measure("COPY FROM, pieces of 1 kB", 1000, false);
    measure("COPY FROM, pieces of 1 MiB", 1 << 20, false);
}
