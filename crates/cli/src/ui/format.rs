//! Numbers, times and tables for people.

use jiff::Timestamp;
use jiff::tz::TimeZone;
pub use rewound::human_bytes as bytes;
use std::time::Duration;

/// A number with a comma between thousands.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 document`, `2,000 documents`.
pub fn several(n: u64, what: &str) -> String {
    let ending = if n == 1 { "" } else { "s" };
    format!("{} {what}{ending}", count(n))
}

/// How long something took or will take.
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0 => format!("{} ms", d.as_millis()),
        1..60 => format!("{:.1} s", d.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}

/// A time in the user's time zone, as `--at` takes it: to the millisecond, so that the time of a
/// point given back to `--at` means that point.
pub fn time(millis: i64) -> String {
    time_in(millis, &TimeZone::system())
}

fn time_in(millis: i64, zone: &TimeZone) -> String {
    match Timestamp::from_millisecond(millis) {
        Ok(t) => t.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        Err(_) => format!("{millis} ms"),
    }
}

/// A table: columns as wide as they must be, the given ones to the right.
pub fn table(head: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let mut widths: Vec<usize> = head.iter().map(|h| width(h)).collect();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            widths[i] = widths[i].max(width(cell));
        }
    }
    let line = |cells: &[String]| {
        let mut text = String::new();
        for (i, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[i].saturating_sub(width(cell)));
            let cell = if right.contains(&i) { format!("{pad}{cell}") } else { format!("{cell}{pad}") };
            text.push_str(if i > 0 { "  " } else { "" });
            text.push_str(&cell);
        }
        text.trim_end().to_owned()
    };
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    std::iter::once(line(&head)).chain(rows.iter().map(|r| line(r))).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), text);
        }
        assert_eq!(several(1, "document"), "1 document");
        assert_eq!(several(0, "document"), "0 documents");
        assert_eq!(duration(Duration::from_millis(12)), "12 ms");
        assert_eq!(duration(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(duration(Duration::from_secs(3725)), "1 h 02 min");
    }

    #[test]
    fn times_can_be_given_back() {
        let millis = 1_795_165_392_345;
        let text = time_in(millis, &TimeZone::UTC);
        let now = jiff::Zoned::new(Timestamp::UNIX_EPOCH, TimeZone::UTC);
        match rewound::time::At::parse(&text, &now) {
            Ok(rewound::time::At::Wall(zoned)) => assert_eq!(zoned.timestamp().as_millisecond(), millis),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["läng".into(), "1,000".into()]];
        assert_eq!(table(&["name", "n"], &[1], &rows), "name      n\na         1\nläng  1,000");
    }
}
