//! What stands in CopyData: pure, any bytes are read or refused.

use bytes::{BufMut, BytesMut};
use pgkeep_pgformat::{Lsn, Timeline};

use super::result::RawRow;

/// A message of BASE_BACKUP's copy (`backup/basebackup_copy.c`).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BaseMessage<'a> {
    /// `n`: the archive's name, and the tablespace's directory, empty for the data directory.
    Archive(&'a str, &'a [u8]),
    /// `m`: what follows is the manifest.
    Manifest,
    /// `d`: the next bytes of the archive or the manifest.
    Data(&'a [u8]),
    /// `p`: so many bytes were done.
    Progress(u64),
}

pub(crate) fn base_message(body: &[u8]) -> Option<BaseMessage<'_>> {
    let (kind, rest) = body.split_first()?;
    match kind {
        b'd' => Some(BaseMessage::Data(rest)),
        b'n' => {
            let mut parts = rest.strip_suffix(&[0])?.split(|byte| *byte == 0);
            let (name, path) = parts.next().zip(parts.next())?;
            let name = std::str::from_utf8(name).ok()?;
            parts.next().is_none().then_some(BaseMessage::Archive(name, path))
        }
        b'm' => rest.is_empty().then_some(BaseMessage::Manifest),
        b'p' => match <[u8; 8]>::try_from(rest) {
            Ok(bytes) => Some(BaseMessage::Progress(u64::from_be_bytes(bytes))),
            Err(_) => None,
        },
        _ => None,
    }
}

/// A message of START_REPLICATION's copy (documentation, "Streaming Replication Protocol").
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WalMessage<'a> {
    /// `w`, XLogData.
    Data {
        start: Lsn,
        end: Lsn,
        time: i64,
        bytes: &'a [u8],
    },
    /// `k`, primary keepalive.
    Keepalive {
        end: Lsn,
        time: i64,
        reply_requested: bool,
    },
}

pub(crate) fn wal_message(body: &[u8]) -> Option<WalMessage<'_>> {
    let (kind, rest) = body.split_first()?;
    let (first, rest) = rest.split_first_chunk::<8>()?;
    let (second, rest) = rest.split_first_chunk::<8>()?;
    let first = Lsn::new(u64::from_be_bytes(*first));
    match kind {
        b'w' => {
            let (time, bytes) = rest.split_first_chunk::<8>()?;
            Some(WalMessage::Data {
                start: first,
                end: Lsn::new(u64::from_be_bytes(*second)),
                time: i64::from_be_bytes(*time),
                bytes,
            })
        }
        b'k' => match rest {
            [reply] => Some(WalMessage::Keepalive {
                end: first,
                time: i64::from_be_bytes(*second),
                reply_requested: *reply != 0,
            }),
            _ => None,
        },
        _ => None,
    }
}

/// Appends a CopyData with `r`, the standby's status.
pub(super) fn put_status(output: &mut BytesMut, written: Lsn, flushed: Lsn, time: i64, ask: bool) {
    output.put_u8(b'd');
    output.put_u32(4 + 1 + 8 * 4 + 1);
    output.put_u8(b'r');
    output.put_u64(written.as_u64());
    output.put_u64(flushed.as_u64());
    // Nothing is applied: a position here would be believed by synchronous_commit = remote_apply.
    output.put_u64(Lsn::INVALID.as_u64());
    output.put_i64(time);
    output.put_u8(u8::from(ask));
}

pub(super) fn lsn_and_timeline(row: &RawRow, lsn: usize, timeline: usize) -> Option<(Lsn, Timeline)> {
    row.parsed(lsn).zip(row.parsed(timeline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_or_refused() {
        assert_eq!(
            base_message(b"n16384.tar\0/srv/a\0"),
            Some(BaseMessage::Archive("16384.tar", b"/srv/a"))
        );
        assert_eq!(
            base_message(b"nbase.tar\0\0"),
            Some(BaseMessage::Archive("base.tar", b""))
        );
        assert_eq!(base_message(b"dxyz"), Some(BaseMessage::Data(b"xyz")));
        assert_eq!(base_message(b"d"), Some(BaseMessage::Data(b"")));
        assert_eq!(
            base_message(b"p\0\0\0\0\0\0\x01\0"),
            Some(BaseMessage::Progress(256))
        );
        for wrong in [
            &b""[..],
            b"n",
            b"na\0",
            b"na\0b",
            b"na\0b\0c\0",
            b"n\xff\0\0",
            b"m1",
            b"p123",
            b"z",
        ] {
            assert_eq!(base_message(wrong), None, "{wrong:?}");
        }
        let mut data = vec![b'w'];
        data.extend([
            0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5,
        ]);
        data.extend(b"wal");
        let (start, end) = ("1/2".parse().unwrap(), "1/9".parse().unwrap());
        assert_eq!(
            wal_message(&data),
            Some(WalMessage::Data {
                start,
                end,
                time: 5,
                bytes: b"wal"
            })
        );
        let mut keepalive = vec![b'k'];
        keepalive.extend([0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 1]);
        let expected = WalMessage::Keepalive {
            end,
            time: 5,
            reply_requested: true,
        };
        assert_eq!(wal_message(&keepalive), Some(expected));
        for wrong in [&data[..24], &keepalive[..17], b"", b"k", b"x12345678123456781"] {
            assert_eq!(wal_message(wrong), None, "{wrong:?}");
        }
    }
}
