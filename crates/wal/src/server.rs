//! What a server says of itself.

use pgkeep_pg::replication::ReplicationSession;
use pgkeep_pgformat::SegmentSize;

use crate::error::WalError;

/// The size of the WAL's segments.
pub(crate) async fn segment_size(session: &mut ReplicationSession) -> Result<SegmentSize, WalError> {
    let answer = session.show("wal_segment_size").await?;
    let bytes = bytes_of(&answer).ok_or_else(|| WalError::Setting {
        setting: "wal_segment_size",
        answer: answer.clone(),
    })?;
    Ok(SegmentSize::new(bytes)?)
}

/// A size as SHOW writes it, with its unit (`convert_int_from_base_unit`, `utils/misc/guc.c`).
pub(crate) fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(bytes_of("16MB"), Some(16 << 20));
        assert_eq!(bytes_of("1GB"), Some(1 << 30));
        for strange in ["", "16", "MB", "16 MB", "-1", "16mb", "99999999999999TB"] {
            assert_eq!(bytes_of(strange), None, "{strange}");
        }
    }
}
