use std::sync::Arc;

use bytes::Bytes;

use crate::PgError;

/// One row of a result, in PostgreSQL's text format.
#[derive(Debug, Clone)]
pub struct Row {
    columns: Arc<[String]>,
    body: Bytes,
    /// Start and end of each value in `body`; `None` is NULL.
    values: Vec<Option<(u32, u32)>>,
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

impl Row {
    /// Reads the body of a `DataRow`. All values must be UTF-8, which a server with `client_encoding` UTF8 sends
    /// unless the database is SQL_ASCII.
    pub(crate) fn from_body(columns: &Arc<[String]>, body: &[u8]) -> Result<Self, PgError> {
        let broken = || PgError::protocol("a DataRow is broken");
        let count = usize::from(u16::from_be_bytes(take(body, 0).ok_or_else(broken)?));
        let mut values = Vec::with_capacity(count);
        let mut at = 2_usize;
        for index in 0..count {
            let length = i32::from_be_bytes(take(body, at).ok_or_else(broken)?);
            at += 4;
            let Ok(length) = usize::try_from(length) else {
                values.push(None);
                continue;
            };
            let end = at.checked_add(length).ok_or_else(broken)?;
            let value = body.get(at..end).ok_or_else(broken)?;
            if std::str::from_utf8(value).is_err() {
                return Err(PgError::Value {
                    index,
                    name: columns.get(index).cloned(),
                    expected: "UTF-8",
                });
            }
            let range = u32::try_from(at)
                .ok()
                .zip(u32::try_from(end).ok())
                .ok_or_else(broken)?;
            values.push(Some(range));
            at = end;
        }
        if at != body.len() {
            return Err(broken());
        }
        Ok(Self {
            columns: Arc::clone(columns),
            body: Bytes::copy_from_slice(body),
            values,
        })
    }

    /// How many columns it has.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Has it no column at all?
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// How much memory it holds, about.
    pub(crate) fn bytes(&self) -> usize {
        self.body.len() + self.values.len() * size_of::<Option<(u32, u32)>>() + size_of::<Self>()
    }

    /// A value (column from 0) as text; `None` is NULL or a column that doesn't exist.
    pub fn text(&self, index: usize) -> Option<&str> {
        let (start, end) = self.values.get(index).copied().flatten()?;
        let bytes = self
            .body
            .get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)?;
        std::str::from_utf8(bytes).ok()
    }

    /// A value (column from 0) as a Rust type.
    ///
    /// # Errors
    /// [`PgError::Value`]: there is no such column, it is NULL and `T` is no `Option`, or its text is no `T`.
    pub fn get<T: FromText>(&self, index: usize) -> Result<T, PgError> {
        let error = |expected| PgError::Value {
            index,
            name: self.columns.get(index).cloned(),
            expected,
        };
        if index >= self.values.len() {
            return Err(error("there"));
        }
        T::from_text(self.text(index)).ok_or_else(|| error(T::EXPECTED))
    }
}

/// Reads the names out of the body of a `RowDescription`.
pub(crate) fn column_names(body: &[u8]) -> Result<Arc<[String]>, PgError> {
    let broken = || PgError::protocol("a RowDescription is broken");
    /// Table, column number, type, size, modifier, format.
    const FIXED_BYTES: usize = 4 + 2 + 4 + 2 + 4 + 2;
    let count = usize::from(u16::from_be_bytes(take(body, 0).ok_or_else(broken)?));
    let mut names = Vec::with_capacity(count);
    let mut rest = body.get(2..).unwrap_or_default();
    for _ in 0..count {
        let end = rest.iter().position(|byte| *byte == 0).ok_or_else(broken)?;
        let (name, after) = rest.split_at(end);
        names.push(String::from_utf8_lossy(name).into_owned());
        rest = after.get(1 + FIXED_BYTES..).ok_or_else(broken)?;
    }
    if !rest.is_empty() {
        return Err(broken());
    }
    Ok(names.into())
}

/// A type that [`Row::get`] can make of PostgreSQL's text format.
pub trait FromText: Sized {
    /// For the error: "column 2 is not ...".
    const EXPECTED: &'static str;

    /// The value, or `None` if the text is none; `None` as text is NULL.
    fn from_text(text: Option<&str>) -> Option<Self>;
}

impl FromText for String {
    const EXPECTED: &'static str = "a text";
    fn from_text(text: Option<&str>) -> Option<Self> {
        text.map(str::to_owned)
    }
}

impl FromText for bool {
    const EXPECTED: &'static str = "a boolean";
    fn from_text(text: Option<&str>) -> Option<Self> {
        match text? {
            "t" => Some(true),
            "f" => Some(false),
            _ => None,
        }
    }
}

impl<T: FromText> FromText for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;
    fn from_text(text: Option<&str>) -> Option<Self> {
        match text {
            None => Some(None),
            Some(_) => T::from_text(text).map(Some),
        }
    }
}

macro_rules! from_text_number {
    ($($number:ty => $expected:literal),* $(,)?) => {$(
        impl FromText for $number {
            const EXPECTED: &'static str = $expected;
            fn from_text(text: Option<&str>) -> Option<Self> {
                text?.parse().ok()
            }
        }
    )*};
}

from_text_number! {
    i16 => "a smallint",
    i32 => "an integer",
    i64 => "a bigint",
    u32 => "an oid (an unsigned 32-bit number)",
    u64 => "an unsigned 64-bit number",
    f64 => "a double precision number",
}
