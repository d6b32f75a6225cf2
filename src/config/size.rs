//! Sizes as people write them.

/// Parses a number of bytes, as in 65536, 512K, 1.5G or 2GiB; K, M, G and T are powers of 1024.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text[number.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(NO_SIZE.to_owned()),
    };
    let number = number.trim_end();
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(|| NO_SIZE.to_owned());
    }
    let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let bytes = number.parse::<f64>().ok().filter(|_| plain && shift > 0).map(|part| part * (1_u64 << shift) as f64);
    bytes.filter(|bytes| *bytes < u64::MAX as f64).map(|bytes| bytes as u64).ok_or_else(|| NO_SIZE.to_owned())
}

const NO_SIZE: &str = "it is not a size; write it as in 65536, 512K, 300M or 2G";

/// Writes a size for people to read: `512 KiB`, `1.5 GiB`.
pub fn show(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let unit = units.iter().zip(1..5).rev().find(|(_, power)| bytes >> (10 * power) > 0);
    match unit {
        None => format!("{bytes} bytes"),
        Some((unit, power)) => {
            let number = format!("{:.1}", bytes as f64 / f64::from(1_u32 << 10).powi(power));
            format!("{} {unit}", number.strip_suffix(".0").unwrap_or(&number))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        let read = [("0", 0), ("4096", 4096), ("512K", 512 << 10), ("1.5g", 3 << 29), ("2 GiB", 2 << 30), ("7B", 7)];
        for (text, bytes) in read {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "-1", "x", "1X", "M", "1.5", "1e9", "inf", "NaNK", "99999999999T", "18446744073709551616"] {
            assert!(parse(text).is_err(), "{text}");
        }
        let shown = [0, 1023, 1024, 3 << 29, 300 << 20, u64::MAX].map(show);
        assert_eq!(shown, ["0 bytes", "1023 bytes", "1 KiB", "1.5 GiB", "300 MiB", "16777216 TiB"]);
    }
}
