//! Numbers as LEB128, and reading fields one after another: what packs and records of files are made of. Pure; nothing that
//! is read makes a larger allocation than its own length.

/// The bytes aren't what they should be; why, for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub &'static str);

/// Appends a number: seven bits a byte, the lowest first, the highest bit of all bytes but the last set.
pub(crate) fn put(output: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        output.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    output.push((number & 0x7f) as u8);
}

/// A difference as a number that is small if it is near to 0: 0, -1, 1, -2, ...
pub(crate) fn zigzag(difference: i64) -> u64 {
    ((difference << 1) ^ (difference >> 63)).cast_unsigned()
}

/// The difference again.
pub(crate) fn from_zigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// Fields that are read one after another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// So many bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Broken("it is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Broken> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Broken("it is cut off"))?;
        self.0 = rest;
        Ok(*taken)
    }

    /// A number. There is one way to write it.
    pub fn varint(&mut self) -> Result<u64, Broken> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(Broken("a number is longer than it need be"));
                }
                return Ok(number);
            }
        }
        Err(Broken("a number is too large"))
    }

    /// A number of at most 32 bits.
    pub fn varint32(&mut self) -> Result<u32, Broken> {
        u32::try_from(self.varint()?).map_err(|_| Broken("a number is too large"))
    }

    /// A number of that many bytes of memory at least: one that promises more than there is left is refused before anything
    /// is set aside for it.
    pub fn count(&mut self, bytes_each: usize) -> Result<usize, Broken> {
        let count = usize::try_from(self.varint()?).map_err(|_| Broken("a number is too large"))?;
        match count.checked_mul(bytes_each) {
            Some(bytes) if bytes <= self.0.len() => Ok(count),
            _ => Err(Broken("it is cut off")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_survive_a_round_trip(number: u64, difference: i64) {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            let mut fields = Fields(&bytes);
            prop_assert_eq!((fields.varint(), fields.is_empty()), (Ok(number), true));
            prop_assert_eq!(from_zigzag(zigzag(difference)), difference);
        }

        #[test]
        fn any_bytes_are_a_number_in_one_way_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut fields = Fields(&bytes);
            if let Ok(number) = fields.varint() {
                let mut again = Vec::new();
                put(&mut again, number);
                prop_assert_eq!(&bytes[..bytes.len() - fields.0.len()], again.as_slice());
            }
        }
    }
}
