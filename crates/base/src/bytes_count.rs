use std::fmt;
use std::str::FromStr;

/// A number of bytes, printed for people (`1.5 GiB`) and parsed from what people write (`64MiB`, `10 GB`, `512`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteCount(pub u64);

const BINARY_UNITS: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in BINARY_UNITS {
            if self.0 >= size {
                let tenths = u128::from(self.0) * 10 / u128::from(size);
                return f.pad(&format!("{}.{} {unit}", tenths / 10, tenths % 10));
            }
        }
        f.pad(&format!("{} B", self.0))
    }
}

/// The text is not a byte count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a size: write a number with a unit, such as 64MiB, 10GB or 500kB")]
pub struct ParseByteCountError(String);

impl FromStr for ByteCount {
    type Err = ParseByteCountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseByteCountError(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(error()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 = whole.parse().map_err(|_| error())?;
        let mut total = whole.checked_mul(factor).ok_or_else(error)?;
        if !fraction.is_empty() {
            let digits = fraction.get(..fraction.len().min(9)).ok_or_else(error)?;
            let value: u64 = digits.parse().map_err(|_| error())?;
            let scale = 10_u128.pow(u32::try_from(digits.len()).map_err(|_| error())?);
            let part = u128::from(value) * u128::from(factor) / scale;
            total = total
                .checked_add(u64::try_from(part).map_err(|_| error())?)
                .ok_or_else(error)?;
        }
        Ok(Self(total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_what_people_write() {
        assert_eq!(ByteCount(1536).to_string(), "1.5 KiB");
        assert_eq!(ByteCount(999).to_string(), "999 B");
        assert_eq!("1.5 GiB".parse(), Ok(ByteCount(3 << 29)));
        assert_eq!("10MB".parse(), Ok(ByteCount(10_000_000)));
        for bad in ["", "x", "1.x", "10 furlongs", "99999999999999 TiB", "-1", "."] {
            assert!(bad.parse::<ByteCount>().is_err(), "{bad}");
        }
    }
}
