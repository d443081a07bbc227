//! Avro's binary form, read against the schema that it was written with.
//!
//! A datum is a deserializer of `serde`, as JSON is: the same seeds pick the same parts from either.
//! What carries no meaning as bytes is told as text: timestamps, dates and decimals as people write
//! them, bytes in base 64, as connectors do in JSON. The meaning comes from `logicalType`, or from
//! the name that Kafka Connect gives to a type (`connect.name`).
//!
//! Encoding and names follow the specification, <https://avro.apache.org/docs/1.12.0/specification/>,
//! sections "Binary encoding" and "Names". There is no reader's schema: fields are found by name, and
//! what a row lacks is missing, so none of the rules of resolution are needed.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use foldhash::{HashMap, HashMapExt};
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

use super::meaning::{Meaning, decimal_text, variable_decimal_text};

/// How deep a datum may be nested: enough for any row, too little for the stack to overflow.
const DEEPEST: usize = 100;

/// A schema, with all types that it names.
#[derive(Clone, Debug)]
pub struct Schema {
    types: Vec<Type>,
    root: TypeNumber,
}

/// The place of a type among those of its schema; types may hold themselves.
type TypeNumber = usize;

#[derive(Clone, Debug)]
enum Type {
    Null,
    Boolean,
    /// `int` and `long`, which are written alike.
    Integer,
    Float,
    Double,
    Bytes,
    Text,
    Fixed(usize),
    Enum(Vec<String>),
    Array(TypeNumber),
    Map(TypeNumber),
    Union(Vec<TypeNumber>),
    Record(Vec<(String, TypeNumber)>),
    /// A whole number over a power of ten, of so many bytes if that is fixed.
    Decimal {
        size: Option<usize>,
        scale: usize,
    },
    /// The same as a record of its scale and its bytes.
    VariableDecimal,
    /// A whole number that counts from some time on.
    Count(Meaning),
}

impl Schema {
    /// Parses a schema, and before it those that it refers to, each after what it refers to itself.
    ///
    /// # Errors
    /// Says what is wrong, or which name is not known.
    pub fn parse(schema: &str, references: &[String]) -> Result<Self, String> {
        let mut parser = Parser {
            types: Vec::new(),
            named: HashMap::new(),
        };
        for reference in references {
            parser.text(reference)?;
        }
        let root = parser.text(schema)?;
        let types = parser.types;
        Ok(Self { types, root })
    }

    /// Reads a datum of this schema.
    ///
    /// # Errors
    /// If the bytes are not such a datum, or the seed wants another type.
    pub(super) fn read<'a, S: DeserializeSeed<'a>>(
        &'a self,
        bytes: &'a [u8],
        seed: S,
    ) -> Result<S::Value, String> {
        let mut input = Input { bytes, depth: 0 };
        let datum = Datum {
            schema: self,
            of: self.root,
            input: &mut input,
        };
        let value = seed.deserialize(datum);
        let value =
            value.map_err(|error| format!("not as its Avro schema says: {}", error.reason))?;
        match input.bytes.len() {
            0 => Ok(value),
            left => Err(format!(
                "not as its Avro schema says: {left} bytes are left"
            )),
        }
    }
}

struct Parser {
    types: Vec<Type>,
    /// Types by their full names.
    named: HashMap<String, TypeNumber>,
}

impl Parser {
    fn text(&mut self, schema: &str) -> Result<TypeNumber, String> {
        let schema: Value = serde_json::from_str(schema)
            .map_err(|error| format!("the Avro schema is not JSON: {error}"))?;
        self.schema(&schema, "")
    }

    fn add(&mut self, of: Type) -> TypeNumber {
        self.types.push(of);
        self.types.len() - 1
    }

    fn schema(&mut self, schema: &Value, namespace: &str) -> Result<TypeNumber, String> {
        match schema {
            Value::String(name) => self.by_name(name, schema, namespace),
            Value::Array(branches) => {
                let branches = branches.iter().map(|branch| self.schema(branch, namespace));
                let branches = branches.collect::<Result<_, _>>()?;
                Ok(self.add(Type::Union(branches)))
            }
            Value::Object(object) => match object.get("type") {
                Some(Value::String(name)) => self.by_name(name, schema, namespace),
                Some(nested) => self.schema(nested, namespace),
                None => Err("the Avro schema has a type without \"type\"".to_owned()),
            },
            _ => Err(format!("the Avro schema has {schema} for a type")),
        }
    }

    fn by_name(
        &mut self,
        name: &str,
        schema: &Value,
        namespace: &str,
    ) -> Result<TypeNumber, String> {
        let simple = match name {
            "null" => Type::Null,
            "boolean" => Type::Boolean,
            "int" | "long" => integer(schema),
            "float" => Type::Float,
            "double" => Type::Double,
            "bytes" => decimal(schema, None).unwrap_or(Type::Bytes),
            "string" => Type::Text,
            "array" => Type::Array(self.schema(&schema["items"], namespace)?),
            "map" => Type::Map(self.schema(&schema["values"], namespace)?),
            "record" | "error" | "enum" | "fixed" => return self.define(name, schema, namespace),
            name => return self.known(name, namespace),
        };
        Ok(self.add(simple))
    }

    /// A type that was defined before.
    fn known(&self, name: &str, namespace: &str) -> Result<TypeNumber, String> {
        let found = self.named.get(&full_name(name, namespace));
        let found = found.or_else(|| self.named.get(name));
        found
            .copied()
            .ok_or_else(|| format!("the Avro schema names an unknown type \"{name}\""))
    }

    fn define(
        &mut self,
        kind: &str,
        schema: &Value,
        namespace: &str,
    ) -> Result<TypeNumber, String> {
        let name = schema["name"].as_str();
        let name = name.ok_or_else(|| format!("the Avro schema has a {kind} without a name"))?;
        let full = full_name(name, schema["namespace"].as_str().unwrap_or(namespace));
        // A record may hold itself, so it has its place before its fields are known.
        let place = self.add(Type::Null);
        self.named.insert(full.clone(), place);
        let namespace = full.rsplit_once('.').map_or("", |(namespace, _)| namespace);
        let lacking = |what: &str| format!("the Avro schema's {kind} \"{name}\" has no {what}");
        self.types[place] = match kind {
            "enum" => {
                let symbols = schema["symbols"].as_array();
                let symbols = symbols.ok_or_else(|| lacking("symbols"))?.iter();
                let symbols = symbols.map(|symbol| symbol.as_str().unwrap_or_default().to_owned());
                Type::Enum(symbols.collect())
            }
            "fixed" => {
                let size = schema["size"].as_u64().ok_or_else(|| lacking("size"))? as usize;
                decimal(schema, Some(size)).unwrap_or(Type::Fixed(size))
            }
            _ if meaning(schema) == "io.debezium.data.VariableScaleDecimal" => {
                Type::VariableDecimal
            }
            _ => {
                let fields = schema["fields"].as_array();
                let fields = fields.ok_or_else(|| lacking("fields"))?.iter();
                let fields = fields.map(|field| {
                    let name = field["name"].as_str();
                    let name = name.ok_or_else(|| lacking("name for a field"))?;
                    Ok((name.to_owned(), self.schema(&field["type"], namespace)?))
                });
                Type::Record(fields.collect::<Result<_, String>>()?)
            }
        };
        Ok(place)
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    match name.contains('.') || namespace.is_empty() {
        true => name.to_owned(),
        false => format!("{namespace}.{name}"),
    }
}

/// What a type means beyond how it is written.
fn meaning(schema: &Value) -> &str {
    let named = |attribute: &str| schema.get(attribute).and_then(Value::as_str);
    named("logicalType")
        .or_else(|| named("connect.name"))
        .unwrap_or_default()
}

fn integer(schema: &Value) -> Type {
    match Meaning::of(meaning(schema), None) {
        Some(Meaning::VariableDecimal) | None => Type::Integer,
        Some(counted) => Type::Count(counted),
    }
}

fn decimal(schema: &Value, size: Option<usize>) -> Option<Type> {
    let name = meaning(schema);
    let scale = match name {
        // Avro's own has none for 0.
        "decimal" => usize::try_from(schema["scale"].as_u64().unwrap_or(0)).ok(),
        _ => {
            let scale = schema["connect.parameters"]["scale"].as_str();
            scale.and_then(|scale| scale.parse().ok())
        }
    };
    match Meaning::of(name, scale)? {
        Meaning::Decimal { scale } => Some(Type::Decimal { size, scale }),
        _ => None,
    }
}

/// What is left of a datum.
struct Input<'a> {
    bytes: &'a [u8],
    depth: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(count)
            .ok_or_else(Malformed::ends)?;
        self.bytes = rest;
        Ok(taken)
    }

    /// A whole number: seven bits a byte, the lowest first, the sign in the lowest bit of all.
    fn integer(&mut self) -> Result<i64, Malformed> {
        let mut encoded = 0_u64;
        for (place, byte) in self.bytes.iter().enumerate().take(10) {
            encoded |= u64::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[place + 1..];
                return Ok((encoded >> 1) as i64 ^ -((encoded & 1) as i64));
            }
        }
        match self.bytes.len() {
            0..10 => Err(Malformed::ends()),
            _ => Err(Malformed::new("a number is longer than 64 bits")),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.integer()?;
        let length = usize::try_from(length).map_err(|_| Malformed::new("a length is negative"))?;
        self.take(length)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed::new("a string is not UTF-8"))
    }

    fn boolean(&mut self) -> Result<bool, Malformed> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Malformed::new("a boolean is neither 0 nor 1")),
        }
    }

    fn float(&mut self) -> Result<f64, Malformed> {
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed::ends())?;
        Ok(f64::from(f32::from_le_bytes(bytes)))
    }

    fn double(&mut self) -> Result<f64, Malformed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed::ends())?;
        Ok(f64::from_le_bytes(bytes))
    }

    /// A place among so many.
    fn place<T>(&mut self, among: &'a [T]) -> Result<&'a T, Malformed> {
        let place = usize::try_from(self.integer()?).ok();
        place
            .and_then(|place| among.get(place))
            .ok_or_else(|| Malformed::new("it names a branch or symbol that there is not"))
    }
}

/// One value of a datum, to be read next.
struct Datum<'a, 'i> {
    schema: &'a Schema,
    of: TypeNumber,
    input: &'i mut Input<'a>,
}

impl<'a> Datum<'a, '_> {
    fn inner(&mut self, of: TypeNumber) -> Datum<'a, '_> {
        Datum {
            schema: self.schema,
            of,
            input: self.input,
        }
    }

    /// Passes over the value.
    fn skip(mut self) -> Result<(), Malformed> {
        let schema = self.schema;
        self.deepen()?;
        match &schema.types[self.of] {
            Type::Null => {}
            Type::Boolean => drop(self.input.take(1)?),
            Type::Integer | Type::Enum(_) | Type::Count(_) => {
                self.input.integer()?;
            }
            Type::Float => drop(self.input.take(4)?),
            Type::Double => drop(self.input.take(8)?),
            Type::Bytes | Type::Text | Type::Decimal { size: None, .. } => {
                self.input.bytes()?;
            }
            Type::Fixed(size)
            | Type::Decimal {
                size: Some(size), ..
            } => drop(self.input.take(*size)?),
            Type::VariableDecimal => {
                self.input.integer()?;
                self.input.bytes()?;
            }
            Type::Union(branches) => {
                let branch = *self.input.place(branches)?;
                self.inner(branch).skip()?;
            }
            Type::Record(fields) => {
                for (_, field) in fields {
                    self.inner(*field).skip()?;
                }
            }
            Type::Array(of) => {
                let mut items = Items::default();
                while items.next(self.input)? {
                    self.inner(*of).skip()?;
                }
            }
            Type::Map(of) => {
                let mut items = Items::default();
                while items.next(self.input)? {
                    self.input.bytes()?;
                    self.inner(*of).skip()?;
                }
            }
        }
        self.input.depth -= 1;
        Ok(())
    }

    fn deepen(&mut self) -> Result<(), Malformed> {
        self.input.depth += 1;
        match self.input.depth > DEEPEST {
            true => Err(Malformed::new("it is nested too deeply")),
            false => Ok(()),
        }
    }

    fn visit<V: Visitor<'a>>(&mut self, visitor: V) -> Result<V::Value, Malformed> {
        let (schema, input) = (self.schema, &mut *self.input);
        match &schema.types[self.of] {
            Type::Null => visitor.visit_unit(),
            Type::Boolean => visitor.visit_bool(input.boolean()?),
            Type::Integer => visitor.visit_i64(input.integer()?),
            Type::Float => visitor.visit_f64(input.float()?),
            Type::Double => visitor.visit_f64(input.double()?),
            Type::Text => visitor.visit_borrowed_str(input.text()?),
            Type::Enum(symbols) => visitor.visit_borrowed_str(input.place(symbols)?),
            Type::Bytes => visitor.visit_string(BASE64_STANDARD.encode(input.bytes()?)),
            Type::Fixed(size) => visitor.visit_string(BASE64_STANDARD.encode(input.take(*size)?)),
            Type::Decimal { size, scale } => {
                let bytes = match size {
                    Some(size) => input.take(*size)?,
                    None => input.bytes()?,
                };
                visitor.visit_string(decimal_text(bytes, *scale))
            }
            Type::VariableDecimal => {
                let scale = usize::try_from(input.integer()?).unwrap_or(usize::MAX);
                let text = variable_decimal_text(input.bytes()?, scale);
                visitor.visit_string(text.ok_or_else(|| Malformed::new("a scale is too large"))?)
            }
            Type::Count(meaning) => {
                let count = input.integer()?;
                match meaning.of_count(count) {
                    Some(text) => visitor.visit_string(text),
                    None => visitor.visit_i64(count),
                }
            }
            Type::Union(branches) => {
                let branch = *input.place(branches)?;
                self.inner(branch).deserialize_any(visitor)
            }
            Type::Record(fields) => visitor.visit_map(Fields {
                datum: self,
                fields: fields.iter(),
                value: 0,
            }),
            Type::Array(of) => visitor.visit_seq(Entries {
                items: Items::default(),
                of: *of,
                datum: self,
            }),
            Type::Map(of) => visitor.visit_map(Entries {
                items: Items::default(),
                of: *of,
                datum: self,
            }),
        }
    }
}

impl<'de> Deserializer<'de> for Datum<'de, '_> {
    type Error = Malformed;

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Malformed> {
        self.deepen()?;
        let value = self.visit(visitor)?;
        self.input.depth -= 1;
        Ok(value)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Malformed> {
        self.skip()?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}

struct Fields<'a, 'd, 'i> {
    datum: &'d mut Datum<'a, 'i>,
    fields: std::slice::Iter<'a, (String, TypeNumber)>,
    /// The type of the value whose name was told last.
    value: TypeNumber,
}

impl<'a> MapAccess<'a> for Fields<'a, '_, '_> {
    type Error = Malformed;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Malformed> {
        let Some((name, of)) = self.fields.next() else {
            return Ok(None);
        };
        self.value = *of;
        seed.deserialize(BorrowedStrDeserializer::new(name))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Malformed> {
        seed.deserialize(self.datum.inner(self.value))
    }
}

/// The items of an array or map: blocks, each after its number of items, until one of none.
#[derive(Default)]
struct Items {
    left: usize,
}

impl Items {
    fn next(&mut self, input: &mut Input<'_>) -> Result<bool, Malformed> {
        if self.left == 0 {
            let count = input.integer()?;
            if count < 0 {
                // Its length in bytes follows, for those who want to skip the block.
                input.integer()?;
            }
            self.left = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
            if self.left > input.bytes.len() {
                return Err(Malformed::ends());
            }
            if count == 0 {
                return Ok(false);
            }
        }
        self.left -= 1;
        Ok(true)
    }
}

struct Entries<'a, 'd, 'i> {
    datum: &'d mut Datum<'a, 'i>,
    of: TypeNumber,
    items: Items,
}

impl<'a> SeqAccess<'a> for Entries<'a, '_, '_> {
    type Error = Malformed;

    fn next_element_seed<T: DeserializeSeed<'a>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Malformed> {
        match self.items.next(self.datum.input)? {
            true => seed.deserialize(self.datum.inner(self.of)).map(Some),
            false => Ok(None),
        }
    }
}

impl<'a> MapAccess<'a> for Entries<'a, '_, '_> {
    type Error = Malformed;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Malformed> {
        if !self.items.next(self.datum.input)? {
            return Ok(None);
        }
        let name = self.datum.input.text()?;
        seed.deserialize(BorrowedStrDeserializer::new(name))
            .map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Malformed> {
        seed.deserialize(self.datum.inner(self.of))
    }
}

/// Why bytes are no datum of their schema.
#[derive(Debug)]
struct Malformed {
    reason: String,
}

impl Malformed {
    fn new(reason: &str) -> Self {
        let reason = reason.to_owned();
        Self { reason }
    }

    fn ends() -> Self {
        Self::new("it ends too early")
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)
    }
}

impl std::error::Error for Malformed {}

impl serde::de::Error for Malformed {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self::new(&reason.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use serde_json::json;

    use super::*;

    fn read(schema: &Value, references: &[Value], bytes: &[u8]) -> Result<Value, String> {
        let references: Vec<_> = references.iter().map(Value::to_string).collect();
        let schema = Schema::parse(&schema.to_string(), &references)?;
        schema.read(bytes, PhantomData::<Value>)
    }

    fn value(schema: Value, bytes: &[u8]) -> Value {
        read(&schema, &[], bytes).unwrap()
    }

    fn number(number: i64) -> Vec<u8> {
        let mut encoded = ((number << 1) ^ (number >> 63)) as u64;
        let mut bytes = Vec::new();
        while encoded > 0x7f {
            bytes.push(encoded as u8 | 0x80);
            encoded >>= 7;
        }
        bytes.push(encoded as u8);
        bytes
    }

    #[test]
    fn plain_values_are_read() {
        // The specification's own examples, and the ends of the range.
        for (count, bytes) in [
            (0, &[0][..]),
            (-1, &[1]),
            (1, &[2]),
            (-64, &[0x7f]),
            (64, &[0x80, 1]),
        ] {
            assert_eq!(number(count), bytes);
            assert_eq!(value(json!("long"), bytes), json!(count));
        }
        for count in [i64::MIN, i64::MAX, 1 << 40] {
            assert_eq!(value(json!("int"), &number(count)), json!(count));
        }
        assert_eq!(value(json!("string"), b"\x06foo"), json!("foo"));
        assert_eq!(value(json!("bytes"), b"\x06foo"), json!("Zm9v"));
        assert_eq!(value(json!("boolean"), &[1]), json!(true));
        assert_eq!(value(json!("double"), &1.5_f64.to_le_bytes()), json!(1.5));
        assert_eq!(value(json!(["null", "string"]), &[0]), Value::Null);
        let suit = json!({"type": "enum", "name": "Suit", "symbols": ["SPADES", "HEARTS"]});
        assert_eq!(value(suit, &[2]), json!("HEARTS"));
    }

    #[test]
    fn records_arrays_and_maps_are_read_in_blocks_of_either_kind() {
        let schema = json!({"type": "record", "name": "a.Row", "fields": [
            {"name": "many", "type": {"type": "array", "items": "long"}},
            {"name": "named", "type": {"type": "map", "values": ["null", "string"]}},
            {"name": "next", "type": ["null", "Row"]},
        ]});
        let inner = [0, 0, 0];
        // Two items; then one more in a block that tells its length.
        let many = [4, 2, 4, 1, 2, 6, 0];
        let named = [2, 2, b'k', 2, 2, b'v', 0];
        let bytes = [&many[..], &named, &[2], &inner].concat();
        let expected = json!({"many": [1, 2, 3], "named": {"k": "v"},
                              "next": {"many": [], "named": {}, "next": null}});
        assert_eq!(value(schema.clone(), &bytes), expected);
        let schema = Schema::parse(&schema.to_string(), &[]).unwrap();
        // What is passed over is passed over to its very end.
        schema
            .read(&bytes, PhantomData::<serde::de::IgnoredAny>)
            .unwrap();
    }

    #[test]
    fn what_is_more_than_bytes_is_told_as_people_write_it() {
        let long = |name: &str| json!({"type": "long", "logicalType": name});
        let connect = |name: &str| json!({"type": "long", "connect.name": name});
        let second = 1_239_056_385;
        for (schema, count, text) in [
            (
                long("timestamp-millis"),
                second * 1_000,
                "2009-04-06T22:19:45Z",
            ),
            (
                long("local-timestamp-micros"),
                second * 1_000_000 + 5,
                "2009-04-06T22:19:45.000005Z",
            ),
            (
                connect("io.debezium.time.MicroTimestamp"),
                -1,
                "1969-12-31T23:59:59.999999Z",
            ),
            (
                connect("io.debezium.time.NanoTimestamp"),
                second * 1_000_000_000,
                "2009-04-06T22:19:45Z",
            ),
            (
                connect("org.apache.kafka.connect.data.Timestamp"),
                0,
                "1970-01-01T00:00:00Z",
            ),
            (
                json!({"type": "int", "logicalType": "date"}),
                14_340,
                "2009-04-06Z",
            ),
            (
                json!({"type": "int", "connect.name": "io.debezium.time.Time"}),
                45_296_789,
                "12:34:56.789",
            ),
        ] {
            assert_eq!(value(schema, &number(count)), json!(text));
        }
        let infinity = connect("io.debezium.time.MicroTimestamp");
        assert_eq!(value(infinity, &number(i64::MAX)), json!(i64::MAX));
        let decimal =
            |scale: u64| json!({"type": "bytes", "logicalType": "decimal", "scale": scale});
        for (bytes, scale, text) in [
            (&[2, 5][..], 0, "5"),
            (&[2, 5], 2, "0.05"),
            (&[4, 0x30, 0x39], 2, "123.45"),
            (&[2, 0xff], 1, "-0.1"),
            (&[0], 2, "0.00"),
        ] {
            assert_eq!(value(decimal(scale), bytes), json!(text));
        }
        let connect = json!({"type": "bytes", "connect.name": "org.apache.kafka.connect.data.Decimal",
                             "connect.parameters": {"scale": "3"}});
        assert_eq!(value(connect, &[2, 5]), json!("0.005"));
        let variable = json!({"type": "record", "name": "V", "fields": [
            {"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}],
            "connect.name": "io.debezium.data.VariableScaleDecimal"});
        assert_eq!(value(variable, &[4, 4, 0x30, 0x39]), json!("123.45"));
    }

    #[test]
    fn names_are_found_by_their_namespaces_and_in_references() {
        let place = json!({"type": "record", "name": "Place", "namespace": "x.y",
                           "fields": [{"name": "at", "type": "int"}]});
        let row = json!({"type": "record", "name": "Row", "namespace": "x.z", "fields": [
            {"name": "here", "type": "x.y.Place"}, {"name": "there", "type": ["null", "x.y.Place"]}]});
        let found = read(&row, &[place], &[2, 2, 4]).unwrap();
        assert_eq!(found, json!({"here": {"at": 1}, "there": {"at": 2}}));
        let error = read(&row, &[], &[]).unwrap_err();
        assert_eq!(error, "the Avro schema names an unknown type \"x.y.Place\"");
    }

    #[test]
    fn bytes_that_are_no_such_datum_are_refused() {
        let error = |schema: Value, bytes: &[u8]| read(&schema, &[], bytes).unwrap_err();
        let ends = "not as its Avro schema says: it ends too early";
        assert_eq!(error(json!("string"), &[8, b'a']), ends);
        assert_eq!(error(json!("long"), &[0x80]), ends);
        assert_eq!(error(json!("double"), &[1]), ends);
        assert_eq!(
            error(json!({"type": "array", "items": "null"}), &number(i64::MAX)),
            ends
        );
        assert!(error(json!("string"), &[1]).contains("negative"));
        assert!(error(json!("string"), &[2, 0xff]).contains("UTF-8"));
        assert!(error(json!("long"), &[0xff; 11]).contains("64 bits"));
        assert!(error(json!("null"), &[1]).contains("1 bytes are left"));
        assert!(error(json!(["null"]), &[2]).contains("branch"));
        assert!(error(json!("boolean"), &[2]).contains("neither"));
        let deep = json!({"type": "record", "name": "R", "fields": [{"name": "r", "type": ["null", "R"]}]});
        assert!(error(deep, &[2; 1_000]).contains("deep"));
    }
}
