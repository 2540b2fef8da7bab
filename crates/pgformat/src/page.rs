use pgkeep_base::{Classified, RetryClass};

use crate::Lsn;

/// `N_SUMS`, `FNV_PRIME` and `checksumBaseOffsets` of `storage/checksum_impl.h`.
const SUMS: usize = 32;
const PRIME: u32 = 16_777_619;
const BASE_OFFSETS: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];
/// What one round takes: a number for each sum.
const ROUND_BYTES: usize = SUMS * 4;
/// `BLCKSZ` may be 1 KiB to 32 KiB.
const PAGE_BYTES: std::ops::RangeInclusive<usize> = 1024..=32 * 1024;

/// The beginning of a page (`PageHeaderData`, `storage/bufpage.h`), as far as checksums need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// The end of the record that changed it last (`pd_lsn`).
    pub lsn: Lsn,
    /// `pd_checksum`.
    pub checksum: u16,
    /// `pd_upper`: where the free space ends; 0 in a page that was never set up.
    pub upper: u16,
}

impl PageHeader {
    /// Reads it from a page's first bytes.
    ///
    /// # Errors
    /// There are fewer than 16 bytes.
    pub fn parse(page: &[u8]) -> Result<Self, PageBytesError> {
        let header: &[u8; 16] = page.first_chunk().ok_or(PageBytesError(page.len()))?;
        let [h0, h1, h2, h3, l0, l1, l2, l3, c0, c1, _, _, _, _, u0, u1] = *header;
        // PageXLogRecPtr: two numbers, the higher one first.
        let high = u64::from(u32::from_le_bytes([h0, h1, h2, h3]));
        let low = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
        Ok(Self {
            lsn: Lsn::new(high << 32 | low),
            checksum: u16::from_le_bytes([c0, c1]),
            upper: u16::from_le_bytes([u0, u1]),
        })
    }

    /// `PageIsNew`: added to its file, but never set up; it has no checksum.
    pub fn is_new(&self) -> bool {
        self.upper == 0
    }
}

/// No page has this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes are no page: pages have powers of two from 1 KiB to 32 KiB")]
pub struct PageBytesError(usize);

impl Classified for PageBytesError {
    fn retry_class(&self) -> RetryClass {
        RetryClass::Permanent
    }
}

/// What a page's checksum says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageVerdict {
    /// Never set up: there is nothing to compare.
    New,
    /// The checksum is right.
    Right,
    /// The page isn't what was written, or stands in another place, or was read while it was being written.
    Wrong {
        /// What stands in the page.
        stored: u16,
        /// What its contents give.
        reckoned: u16,
    },
}

/// The checksum of a page (`pg_checksum_page`, `storage/checksum_impl.h`). `block` is its number in the relation, counted
/// through all of its files: that of its first page in `16384.2` is twice the pages of a file.
///
/// # Errors
/// No page has this size.
pub fn page_checksum(page: &[u8], block: u32) -> Result<u16, PageBytesError> {
    let wrong_size = PageBytesError(page.len());
    if !page.len().is_power_of_two() || !PAGE_BYTES.contains(&page.len()) {
        return Err(wrong_size);
    }
    let (first, rest) = page.split_first_chunk::<ROUND_BYTES>().ok_or(wrong_size)?;
    // The checksum itself counts as 0.
    let mut first = *first;
    first[8] = 0;
    first[9] = 0;
    let mut sums = BASE_OFFSETS;
    add_round(&mut sums, &first);
    for round in rest.as_chunks::<ROUND_BYTES>().0 {
        add_round(&mut sums, round);
    }
    for _ in 0..2 {
        add_round(&mut sums, &[0; ROUND_BYTES]);
    }
    let folded = sums.iter().fold(0, |result, sum| result ^ sum) ^ block;
    // One more, so that no checksum is 0; the remainder is at most 65,534.
    Ok(u16::try_from(folded % 65_535)
        .unwrap_or_default()
        .saturating_add(1))
}

/// `CHECKSUM_COMP` for each of the sums; plain enough for the compiler to do many at once.
#[inline]
fn add_round(sums: &mut [u32; SUMS], round: &[u8; ROUND_BYTES]) {
    for (sum, value) in sums.iter_mut().zip(round.as_chunks::<4>().0) {
        let mixed = *sum ^ u32::from_le_bytes(*value);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

/// Compares a page with its checksum, as `pg_checksums --check` does (`scan_file`, `bin/pg_checksums/pg_checksums.c`).
///
/// # Errors
/// No page has this size.
pub fn verify_page(page: &[u8], block: u32) -> Result<PageVerdict, PageBytesError> {
    let header = PageHeader::parse(page)?;
    let reckoned = page_checksum(page, block)?;
    Ok(if header.is_new() {
        PageVerdict::New
    } else if header.checksum == reckoned {
        PageVerdict::Right
    } else {
        PageVerdict::Wrong {
            stored: header.checksum,
            reckoned,
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_header_is_read_from_its_places() {
        let mut page = vec![0; 8192];
        page[..16].copy_from_slice(&[
            0x16, 0, 0, 0, 0x48, 0xD8, 0x74, 0xB3, 0x34, 0x12, 0, 0, 0, 0, 0, 0x20,
        ]);
        let header = PageHeader::parse(&page).unwrap();
        assert_eq!(header.lsn.to_string(), "16/B374D848");
        assert_eq!(
            (header.checksum, header.upper, header.is_new()),
            (0x1234, 8192, false)
        );
        assert!(PageHeader::parse(&page[..15]).is_err());
    }

    #[test]
    fn only_pages_have_checksums() {
        for bytes in [0, 16, 512, 1000, 8191, 8193, 12_288, 65_536] {
            assert_eq!(page_checksum(&vec![1; bytes], 0), Err(PageBytesError(bytes)));
        }
        assert_eq!(verify_page(&[0; 8192], 5), Ok(PageVerdict::New));
    }

    proptest! {
        /// A changed bit changes the sum it belongs to for certain; what is folded to 16 bits may agree by accident, once in
        /// 65,536.
        #[test]
        fn a_page_that_has_its_checksum_is_right_and_in_no_other_place(
            mut page in prop::collection::vec(any::<u8>(), 8192), block in 0..u32::MAX,
        ) {
            page[15] |= 1;
            let checksum = page_checksum(&page, block).unwrap();
            prop_assert_ne!(checksum, 0);
            page[8..10].copy_from_slice(&checksum.to_le_bytes());
            prop_assert_eq!(verify_page(&page, block), Ok(PageVerdict::Right));
            // The next block differs in the lowest bits, so the remainder does too.
            let elsewhere = verify_page(&page, block ^ 1).unwrap();
            let is_wrong = matches!(elsewhere, PageVerdict::Wrong { .. });
            prop_assert!(is_wrong);
        }
    }
}
