//! Times as RFC 3339 in UTC, to the millisecond.

/// `2026-01-31T23:59:59.123Z` of a Unix time in milliseconds.
#[must_use]
pub fn format(ms: u64) -> String {
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (h, m, s, milli) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{milli:03}Z")
}

/// Year, month and day of a number of days since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the leap day is the last of one, in eras of 400 years.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// Days since 1970-01-01, or `None` before.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let (era, of_era) = (year / 400, year % 400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)
}

/// Reads `YYYY-MM-DD`, `YYYY-MM-DDTHH:MM[:SS[.fff]]` (`T` or a blank), followed by `Z`, nothing, or `+HH:MM`; or a
/// Unix time in milliseconds.
///
/// # Errors
/// A sentence that names the text.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is no time: YYYY-MM-DD[THH:MM[:SS[.fff]]][Z|+HH:MM], or Unix milliseconds");
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map_err(|_| wrong());
    }
    instant(text).ok_or_else(wrong)
}

fn number(text: &str, max: u64) -> Option<u64> {
    let digits = text.len() == 2 || text.len() == 4;
    (digits && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?.filter(|n| *n <= max)
}

fn instant(text: &str) -> Option<u64> {
    let (date, rest) = (text.get(..10)?, text.get(10..)?);
    let mut parts = date.split('-');
    let year = number(parts.next()?, 9999)?;
    let (month, day) = (number(parts.next()?, 12)?, number(parts.next()?, 31)?);
    let from_epoch = days(year, month.max(1), day.max(1))?;
    // The 31st of June reads back as another day.
    if parts.next().is_some() || civil(from_epoch) != (year, month, day) {
        return None;
    }
    let rest = rest.strip_prefix(['T', 't', ' ']).or(rest.is_empty().then_some("00:00"))?;
    let (clock, shift) = zone(rest)?;
    let mut parts = clock.split(':');
    let (hour, minute) = (number(parts.next()?, 23)?, number(parts.next()?, 59)?);
    let (second, fraction) = match parts.next() {
        None => ("00", ""),
        Some(s) => s.split_once('.').unwrap_or((s, "")),
    };
    if parts.next().is_some() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let milli: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    let of_day = ((hour * 60 + minute) * 60 + number(second, 60)?) * 1000 + milli;
    (from_epoch * 86_400_000 + of_day).checked_add_signed(-shift)
}

/// Splits the zone off; its distance to UTC in milliseconds.
fn zone(text: &str) -> Option<(&str, i64)> {
    if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let Some(at) = text.rfind(['+', '-']) else { return Some((text, 0)) };
    let (clock, zone) = text.split_at(at);
    let (sign, zone) = (if zone.starts_with('-') { -1 } else { 1 }, zone.get(1..)?);
    let (h, m) = zone.split_once(':')?;
    let minutes = i64::try_from(number(h, 23)? * 60 + number(m, 59)?).ok()?;
    Some((clock, sign * minutes * 60_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_are_written() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(format(ms), text);
            assert_eq!(parse(text), Ok(ms));
        }
        assert!(format(u64::MAX).ends_with('Z'));
    }

    #[test]
    fn times_come_back() {
        for ms in (0..4_200_000_000_000).step_by(86_399_017) {
            assert_eq!(parse(&format(ms)), Ok(ms));
        }
    }

    #[test]
    fn short_forms_and_zones_are_read() {
        assert_eq!(parse("2023-11-14"), Ok(1_699_920_000_000));
        assert_eq!(parse("2023-11-14 22:13"), Ok(1_699_999_980_000));
        assert_eq!(parse("2023-11-14T22:13:20"), Ok(1_700_000_000_000));
        assert_eq!(parse("2023-11-14T23:13:20.5+01:00"), Ok(1_700_000_000_500));
        assert_eq!(parse("2023-11-14T16:43:20-05:30"), Ok(1_700_000_000_000));
        assert_eq!(parse("1700000000123"), Ok(1_700_000_000_123));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for bad in [
            "",
            "now",
            "2023-11",
            "2023-13-01",
            "2023-06-31",
            "2023-02-29",
            "2023-00-10",
            "2023-11-14T",
            "2023-11-14T25:00",
            "2023-11-14T10",
            "2023-11-14T10:61",
            "2023-11-14T10:00:00.x",
            "2023-11-14x10:00",
            "2023-11-14T10:00+1",
            "1969-12-31",
            "20é3-11-14",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
