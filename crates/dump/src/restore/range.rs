//! The range of a hypertable that is wanted: absolute, and read once. PostgreSQL takes `yesterday` and `01/02/2026` too,
//! which mean something else tomorrow, or to another session.

use std::fmt;
use std::str::FromStr;

use jiff::civil::DateTime;
use jiff::fmt::temporal::{Pieces, PiecesOffset};
use jiff::tz::{Offset, TimeZone};
use pgkeep_base::{quote_identifier, quote_literal};
use pgkeep_timescale::Hypertable;

use crate::error::DumpError;
use crate::manifest::QualifiedName;
use crate::restore::options::HypertableRange;

/// How bounds are written.
const FORMS: &str = "write a time as 2026-11-01 or 2026-11-01T02:00:00+01:00 (without an offset it is UTC), or a number for a \
                     dimension of integers";

/// One end of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeBound {
    /// Of a dimension of integers.
    Integer(i64),
    /// Of a dimension of times.
    Time {
        /// As it was written.
        at: DateTime,
        /// The offset that was written with it.
        offset: Option<Offset>,
    },
}

impl FromStr for RangeBound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Ok(number) = text.parse() {
            return Ok(Self::Integer(number));
        }
        let no_time = |reason: String| format!("{reason}; {FORMS}");
        if text.is_empty()
            || text
                .bytes()
                .all(|byte| byte.is_ascii_alphabetic() || byte == b'-')
        {
            // yesterday, now, infinity
            return Err(no_time("it is neither an absolute time nor a number".to_owned()));
        }
        let pieces = Pieces::parse(text).map_err(|error| no_time(error.to_string()))?;
        if pieces.time_zone_annotation().is_some() {
            return Err(no_time("write the offset in place of the time zone".to_owned()));
        }
        if pieces.date().year() < 1 {
            return Err(no_time("that is before the year 1".to_owned()));
        }
        let offset = pieces.offset().map(|offset| match offset {
            PiecesOffset::Numeric(numeric) => numeric.offset(),
            _ => Offset::UTC,
        });
        Ok(Self::Time {
            at: pieces.date().to_datetime(pieces.time().unwrap_or_default()),
            offset,
        })
    }
}

impl fmt::Display for RangeBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(f, "{number}"),
            Self::Time { at, offset } => {
                write!(f, "{at}{}", offset.map(|o| o.to_string()).unwrap_or_default())
            }
        }
    }
}

impl RangeBound {
    /// The place on the line of times or numbers, to compare with another.
    fn place(self) -> Result<i64, DumpError> {
        match self {
            Self::Integer(number) => Ok(number),
            Self::Time { at, offset } => {
                let zone = TimeZone::fixed(offset.unwrap_or(Offset::UTC));
                let timestamp = zone.to_timestamp(at);
                timestamp
                    .map(|timestamp| timestamp.as_microsecond())
                    .map_err(|error| usage(format!("{self} is no time that can be used: {error}"), FORMS))
            }
        }
    }
}

fn usage(message: String, hint: &str) -> DumpError {
    DumpError::Usage {
        message,
        hint: Some(hint.to_owned()),
    }
}

impl HypertableRange {
    /// Takes what was asked for.
    ///
    /// # Errors
    /// [`DumpError::Usage`]: the range holds nothing, whatever is in the table, or its ends are of two kinds.
    pub fn new(pattern: String, from: Option<RangeBound>, to: Option<RangeBound>) -> Result<Self, DumpError> {
        if let (Some(from), Some(to)) = (from, to) {
            let mixed = matches!(from, RangeBound::Integer(_)) != matches!(to, RangeBound::Integer(_));
            if mixed {
                return Err(usage(
                    format!("of --from {from} and --to {to}, one is a time and the other a number"),
                    FORMS,
                ));
            }
            if to.place()? <= from.place()? {
                let what = if to.place()? == from.place()? {
                    "ends where it begins"
                } else {
                    "ends before it begins"
                };
                return Err(usage(
                    format!("the range of --from {from} and --to {to} {what}, and would hold no rows"),
                    "--from is the first value that is restored, --to the first one that is not: it has to be the later one",
                ));
            }
        }
        Ok(Self { pattern, from, to })
    }
}

/// A bound as the hypertable's dimension has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Edge {
    /// As TimescaleDB has it: microseconds since 1970, or the integer itself.
    internal: i64,
    /// As SQL has it, the same in every session.
    literal: String,
    /// For the user.
    shown: String,
}

/// The range of one hypertable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Range {
    column: String,
    from: Option<Edge>,
    to: Option<Edge>,
}

impl Range {
    /// What was asked for, as a range of this hypertable; all of it where no range was.
    ///
    /// # Errors
    /// [`DumpError::Usage`]: a bound is no value of its dimension.
    pub fn of(
        hypertable: &Hypertable,
        name: &QualifiedName,
        wanted: Option<&HypertableRange>,
    ) -> Result<Self, DumpError> {
        let (from, to) = wanted.map_or((None, None), |wanted| (wanted.from, wanted.to));
        if from.is_none() && to.is_none() {
            return Ok(Self::default());
        }
        let Some(dimension) = hypertable.dimensions.first() else {
            return Err(DumpError::Internal(format!("hypertable {name} has no dimension")));
        };
        let column = format!("{name}.{}", dimension.column);
        let edge = |option: &str, bound: Option<RangeBound>| {
            bound
                .map(|bound| edge(option, bound, &column, &dimension.column_type))
                .transpose()
        };
        Ok(Self {
            from: edge("--from", from)?,
            to: edge("--to", to)?,
            column: dimension.column.clone(),
        })
    }

    /// Whether it is all of the hypertable.
    pub fn is_all(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }

    /// The first value, for the user.
    pub fn from(&self) -> Option<&str> {
        self.from.as_ref().map(|edge| edge.shown.as_str())
    }

    /// The first value behind it, for the user.
    pub fn to(&self) -> Option<&str> {
        self.to.as_ref().map(|edge| edge.shown.as_str())
    }

    /// Whether something between these ends, the second excluded, may lie in it. Unknown ends may.
    pub fn touches(&self, start: Option<i64>, end: Option<i64>) -> bool {
        let before = |edge: &Edge| start.is_some_and(|start| start >= edge.internal);
        let after = |edge: &Edge| end.is_some_and(|end| end <= edge.internal);
        !self.to.as_ref().is_some_and(before) && !self.from.as_ref().is_some_and(after)
    }

    /// What stands behind `WHERE`.
    pub fn condition(&self) -> Option<String> {
        let column = quote_identifier(&self.column);
        let from = self
            .from
            .iter()
            .map(|edge| format!("{column} >= {}", edge.literal));
        let to = self.to.iter().map(|edge| format!("{column} < {}", edge.literal));
        let parts: Vec<String> = from.chain(to).collect();
        (!parts.is_empty()).then(|| parts.join(" AND "))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from(), self.to()) {
            (Some(from), Some(to)) => write!(f, "from {from} on and before {to}"),
            (Some(from), None) => write!(f, "from {from} on"),
            (None, Some(to)) => write!(f, "before {to}"),
            (None, None) => f.write_str("of all times"),
        }
    }
}

fn edge(option: &str, bound: RangeBound, column: &str, kind: &str) -> Result<Edge, DumpError> {
    let is_time = kind.starts_with("timestamp") || kind == "date";
    let has_zone = is_time && kind.contains(" with time zone");
    let is_integer = matches!(kind, "smallint" | "integer" | "bigint");
    match bound {
        RangeBound::Integer(number) if is_integer => Ok(Edge {
            internal: number,
            literal: format!("{}::pg_catalog.int8", quote_literal(&number.to_string())),
            shown: number.to_string(),
        }),
        RangeBound::Time { offset, .. } if is_time => {
            if !has_zone && offset.is_some_and(|offset| offset != Offset::UTC) {
                return Err(usage(
                    format!("{option} {bound} has an offset, and {column} ({kind}) has no time zone"),
                    "leave the offset out: such a bound means what stands in the column",
                ));
            }
            let internal = bound.place()?;
            let shown = jiff::Timestamp::from_microsecond(internal)
                .map(|at| TimeZone::UTC.to_datetime(at))
                .map_err(|error| usage(format!("{option} {bound}: {error}"), FORMS))?;
            let text = shown.strftime("%Y-%m-%d %H:%M:%S%.f").to_string();
            Ok(Edge {
                internal,
                literal: match has_zone {
                    true => format!("TIMESTAMPTZ {}", quote_literal(&format!("{text}+00"))),
                    false => format!("TIMESTAMP {}", quote_literal(&text)),
                },
                shown: match has_zone {
                    true => format!("{text} UTC"),
                    false => text,
                },
            })
        }
        _ if is_time => Err(usage(
            format!("{option} {bound} is a number, and {column} is a time ({kind})"),
            FORMS,
        )),
        _ if is_integer => Err(usage(
            format!("{option} {bound} is a time, and {column} is a number ({kind})"),
            FORMS,
        )),
        _ => Err(usage(
            format!("{option} can't be given: {column} is of type {kind}, of which ranges aren't known"),
            "restore the whole hypertable, beside the one that is there with --target-database NAME",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgkeep_timescale::Dimension;

    fn bound(text: &str) -> RangeBound {
        text.parse().unwrap()
    }

    fn range(kind: &str, from: &str, to: &str) -> Result<Range, DumpError> {
        let hypertable = Hypertable {
            dimensions: vec![Dimension {
                column: "at".to_owned(),
                column_type: kind.to_owned(),
                ..Dimension::default()
            }],
            ..Hypertable::default()
        };
        let name = QualifiedName {
            schema: "s".to_owned(),
            name: "m".to_owned(),
        };
        let wanted = HypertableRange::new("s.m".to_owned(), Some(bound(from)), Some(bound(to)))?;
        Range::of(&hypertable, &name, Some(&wanted))
    }

    #[test]
    fn what_depends_on_the_moment_or_is_no_time_is_refused() {
        for text in [
            "yesterday",
            "today",
            "now",
            "tomorrow",
            "infinity",
            "-infinity",
            "epoch",
            "allballs",
            "",
            "2026-13-45",
            "2026-02-30",
            "01/02/2026",
            "12:00",
            "2026-11-01 yesterday",
            "2026-11-01T02:00[Europe/Zurich]",
            "0000-01-01",
            "1.5",
            "99999999999999999999",
        ] {
            let refused = text.parse::<RangeBound>().unwrap_err();
            assert!(refused.contains("2026-11-01"), "{text}: {refused}");
        }
    }

    #[test]
    fn bounds_are_absolute_and_the_same_in_every_session() {
        let day = 86_400_000_000;
        for (kind, from, condition) in [
            (
                "timestamp with time zone",
                "1970-01-02T01:30:00+01:30",
                r#""at" >= TIMESTAMPTZ '1970-01-02 00:00:00+00' AND "at" < TIMESTAMPTZ '1970-01-03 00:00:00.5+00'"#,
            ),
            (
                "timestamp(3) with time zone",
                "1970-01-02",
                r#""at" >= TIMESTAMPTZ '1970-01-02 00:00:00+00' AND "at" < TIMESTAMPTZ '1970-01-03 00:00:00.5+00'"#,
            ),
            (
                "timestamp without time zone",
                "1970-01-02 00:00Z",
                r#""at" >= TIMESTAMP '1970-01-02 00:00:00' AND "at" < TIMESTAMP '1970-01-03 00:00:00.5'"#,
            ),
            (
                "date",
                "1970-01-02",
                r#""at" >= TIMESTAMP '1970-01-02 00:00:00' AND "at" < TIMESTAMP '1970-01-03 00:00:00.5'"#,
            ),
        ] {
            let range = range(kind, from, "1970-01-03 00:00:00.5").unwrap();
            assert_eq!(range.condition().as_deref(), Some(condition), "{kind}");
            for (start, end, touches) in [
                (0, day, false),
                (0, day + 1, true),
                (2 * day + 500_000, 3 * day, false),
                (2 * day, 3 * day, true),
            ] {
                assert_eq!(
                    range.touches(Some(start), Some(end)),
                    touches,
                    "{kind} {start} {end}"
                );
            }
        }
        let numbers = range("bigint", "-5", "7").unwrap();
        assert_eq!(
            numbers.condition().as_deref(),
            Some(r#""at" >= '-5'::pg_catalog.int8 AND "at" < '7'::pg_catalog.int8"#)
        );
        assert_eq!(numbers.to_string(), "from -5 on and before 7");
        let times = range("timestamp with time zone", "2026-11-01T02:00+02", "2026-11-08").unwrap();
        assert_eq!(
            times.to_string(),
            "from 2026-11-01 00:00:00 UTC on and before 2026-11-08 00:00:00 UTC"
        );
        assert!(Range::default().touches(Some(0), Some(1)) && Range::default().condition().is_none());
    }

    #[test]
    fn ranges_that_hold_nothing_or_fit_no_dimension_are_usage() {
        for (kind, from, to, text) in [
            ("date", "2026-11-08", "2026-11-01", "ends before it begins"),
            ("date", "2026-11-08", "2026-11-08", "ends where it begins"),
            (
                "timestamp with time zone",
                "2026-11-08T01:00",
                "2026-11-08T02:00+01",
                "ends where it begins",
            ),
            ("bigint", "7", "-7", "ends before it begins"),
            (
                "bigint",
                "7",
                "2026-11-01",
                "one is a time and the other a number",
            ),
            (
                "bigint",
                "2026-11-01",
                "2026-11-02",
                "s.m.at is a number (bigint)",
            ),
            ("date", "7", "8", "s.m.at is a time (date)"),
            (
                "timestamp without time zone",
                "2026-11-01T01:00+01",
                "2026-11-02",
                "has no time zone",
            ),
            ("uuid", "2026-11-01", "2026-11-02", "of type uuid"),
        ] {
            let error = range(kind, from, to).unwrap_err();
            assert!(matches!(error, DumpError::Usage { .. }), "{error}");
            assert!(error.to_string().contains(text), "{from} {to}: {error}");
        }
    }
}
