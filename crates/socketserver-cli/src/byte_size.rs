//! Numbers of bytes in text form: `64MiB`.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

const UNITS: [(&str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
            .unwrap_or((text, 0));
        let number: u64 = number
            .trim_end()
            .parse()
            .map_err(|_| "write it as 4096, 512KiB, 64MiB or 1GiB")?;
        match number.checked_mul(1 << shift) {
            Some(0) => Err("the size must be at least one byte"),
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(Self(bytes)),
            _ => Err("the size exceeds 64 bits"),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, shift): &&(&str, u32)| self.0.is_multiple_of(1 << shift);
        let (unit, shift) = UNITS.iter().find(whole).unwrap_or(&UNITS[3]);
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_and_displayed() {
        for (text, bytes) in [("1", 1), ("10B", 10), ("3KiB", 3 << 10), ("1 GiB", 1 << 30)] {
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
        for bad in [
            "",
            "MiB",
            "-1",
            "1.5MiB",
            "0",
            "64mb",
            "18446744073709551615",
            "9999999999GiB",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!(Size(64 << 20).to_string(), "64MiB");
        assert_eq!(Size(1025).to_string(), "1025B");
    }
}
