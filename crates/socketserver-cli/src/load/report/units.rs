//! Numbers in readable form.

/// Formats `1234567` as `1,234,567`.
pub(in super::super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats nanoseconds in the unit that leaves three digits.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn time(nanos: u64) -> String {
    let nanos = nanos as f64;
    let units = [("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)];
    // A value that would be rounded to 1000 is shown as 1 of the next unit.
    let fitting = units.iter().find(|(_, size)| nanos / size < 999.5);
    let (unit, size) = fitting.unwrap_or(&units[3]);
    format!("{} {unit}", three(nanos / size))
}

/// Formats bytes in the unit that leaves three digits.
pub(super) fn bytes(n: f64) -> String {
    let units = [
        ("B", 1.0),
        ("KiB", 1024.0),
        ("MiB", 1024.0 * 1024.0),
        ("GiB", 1024.0 * 1024.0 * 1024.0),
    ];
    let fitting = units.iter().find(|(_, size)| n / size < 999.5);
    let (unit, size) = fitting.unwrap_or(&units[3]);
    if *size <= 1.0 {
        return format!("{n:.0} B");
    }
    format!("{} {unit}", three(n / size))
}

fn three(n: f64) -> String {
    if n >= 99.95 || n == n.trunc() {
        format!("{n:.0}")
    } else if n >= 9.995 {
        format!("{n:.1}")
    } else {
        format!("{n:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_the_right_unit() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(thousands(n), text);
        }
        for (nanos, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1 µs"),
            (1_234, "1.23 µs"),
            (12_345, "12.3 µs"),
            (999_600, "1.00 ms"),
            (123_456_789, "123 ms"),
            (3_600_000_000_000, "3600 s"),
        ] {
            assert_eq!(time(nanos), text);
        }
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(1536.0), "1.50 KiB");
    }
}
