//! Where a message tells the number of the schema that it was written with.

use super::Headers;

/// A part of a message that has a schema of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    Key,
    Value,
}

impl Part {
    /// The header that tells the number.
    const fn header(self) -> &'static str {
        match self {
            Part::Key => "apicurio.key.contentId",
            Part::Value => "apicurio.value.contentId",
        }
    }

    /// A header with a number by which the registry's common API knows another schema, or none.
    const fn other_header(self) -> &'static str {
        match self {
            Part::Key => "apicurio.key.globalId",
            Part::Value => "apicurio.value.globalId",
        }
    }
}

/// The header in which Debezium tells the new key of a row whose key has changed.
pub(super) const NEW_KEY: &str = "__debezium.newkey";

/// The headers that a decoder may ask for.
pub const HEADERS: [&str; 5] = [
    NEW_KEY,
    Part::Key.header(),
    Part::Value.header(),
    Part::Key.other_header(),
    Part::Value.other_header(),
];

/// The number of a part's schema and the datum itself, or `None` if the part tells no number.
///
/// Apicurio's converter tells the number in a header. Confluent's wire format begins with a zero byte
/// and the number in four bytes, the highest first; Apicurio's has eight of them, the first four of
/// which are zero, as Confluent's never are.
pub(super) fn numbered<'m>(
    part: Part,
    bytes: &'m [u8],
    headers: Headers<'_>,
) -> Option<(u32, &'m [u8])> {
    // The header comes first: a datum that has one may begin with a zero byte of its own.
    if let Some(number) = in_header(part, headers) {
        return Some((number, bytes));
    }
    if headers(part.other_header()).is_some() {
        return None;
    }
    let (number, datum) = bytes.strip_prefix(&[0])?.split_first_chunk()?;
    match u32::from_be_bytes(*number) {
        0 => {
            let (number, datum) = datum.split_first_chunk()?;
            Some((u32::from_be_bytes(*number), datum))
        }
        number => Some((number, datum)),
    }
}

/// The bytes in Confluent's wire format, if their schema's number is told in a header.
pub(super) fn framed(part: Part, bytes: &[u8], headers: Headers<'_>) -> Option<Vec<u8>> {
    let number = in_header(part, headers)?;
    let number = number.to_be_bytes();
    Some([&[0], number.as_slice(), bytes].concat())
}

fn in_header(part: Part, headers: Headers<'_>) -> Option<u32> {
    let number = headers(part.header())?;
    let number = number.last_chunk::<4>()?;
    Some(u32::from_be_bytes(*number))
}
