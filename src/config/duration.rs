//! Durations as people write them.

use std::time::Duration;

/// Limit of all durations. A longer one is a typing error.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// Parses `60s`, `100ms`, `1m 30s`, or a bare number of seconds, at most 366 days.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err("a duration cannot be negative".to_owned());
    }
    let seconds = text.parse::<f64>().map(Duration::try_from_secs_f64);
    let parsed = match seconds {
        Ok(Ok(duration)) => duration,
        Ok(Err(_)) => return Err("that is longer than 366 days".to_owned()),
        Err(_) => humantime::parse_duration(text)
            .map_err(|_| "not a duration; write it as in 500ms, 60s, 2m or 1h".to_owned())?,
    };
    if parsed > MAX_DURATION { Err("that is longer than 366 days".to_owned()) } else { Ok(parsed) }
}

/// Formats a duration for people, to the millisecond: `60s`, `100ms`, `1m 30s`. From 10 s on without fractions.
pub fn show(duration: Duration) -> String {
    let millis = duration.as_millis() as u64;
    if (1_000..10_000).contains(&millis) && !millis.is_multiple_of(1_000) {
        return format!("{:.1}s", millis as f64 / 1_000.0);
    }
    let rounded = if millis >= 10_000 { Duration::from_secs(millis / 1_000) } else { Duration::from_millis(millis) };
    humantime::format_duration(rounded).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        let millis = |text| parse(text).map(|duration| duration.as_millis());
        assert_eq!(millis("60s"), Ok(60_000));
        assert_eq!(millis("1m 30s"), Ok(90_000));
        assert_eq!(millis("0"), Ok(0));
        assert_eq!(millis("0s"), Ok(0));
        assert_eq!(millis("0.5"), Ok(500));
        assert_eq!(millis(" 5 "), Ok(5_000));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "x", "5x", "-1", "-1s", "1e308", "1e30", "NaN", "inf", "367d", "99999999999999999999s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_read_well() {
        let shown = |millis| show(Duration::from_millis(millis));
        assert_eq!(shown(0), "0s");
        assert_eq!(shown(250), "250ms");
        assert_eq!(shown(1_000), "1s");
        assert_eq!(shown(2_345), "2.3s");
        assert_eq!(shown(90_700), "1m 30s");
    }
}
