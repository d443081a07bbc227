use serde_json::Value;

use super::*;
use crate::operators::upsert::{State, Upsert};
use crate::reject::Reject;

#[derive(Clone, Debug, PartialEq)]
struct Note {
    key: Text,
    text: Text,
}

impl SourceRow for Note {
    const FIELDS: &'static [&'static str] = &["text"];

    fn from_fields(
        key: Text,
        fields: &[Field<'_>],
        _: Option<Text>,
        paths: &[String],
        _: &Message<'_>,
    ) -> Result<Self, String> {
        Ok(Note {
            key,
            text: required_text(&paths[0], &fields[0])?,
        })
    }
}

type Told = Vec<RowChange<Note>>;

fn format(envelope: Envelope) -> Format {
    Format::new::<Note>(envelope)
}

fn decode_with(decoder: &mut Decoder, key: Option<&str>, value: Option<&[u8]>) -> Told {
    let message = Message {
        key: key.map(str::as_bytes),
        value,
        headers: NO_HEADERS,
        origin: "notes/0",
        offset: Some(7),
        received: Timestamp(5),
    };
    let mut told = Vec::new();
    decoder.decode(&message, &mut told).unwrap();
    told
}

fn decode_note(envelope: Envelope, key: Option<&str>, value: Option<&[u8]>) -> Told {
    decode_with(&mut Decoder::new(format(envelope)), key, value)
}

fn debezium(key: &str, value: &str) -> Told {
    decode_note(Envelope::Debezium, Some(key), Some(value.as_bytes()))
}

fn note(key: &str, text: &str) -> Told {
    let row = Note {
        key: key.into(),
        text: text.into(),
    };
    vec![Upsert::row(key.into(), Ok(row))]
}

fn gone(key: &str) -> Told {
    vec![Upsert::gone(key.into())]
}

fn reason(told: Told) -> String {
    match told.as_slice() {
        [
            Upsert {
                state: State::Row(Err(reject)),
                ..
            },
        ] => reject.reason.to_string(),
        other => panic!("expected a reject, found {other:?}"),
    }
}

#[test]
fn events_with_and_without_the_schema_part_are_equal() {
    let event =
        r#"{"before":null,"after":{"id":1,"text":"caf\u00e9"},"source":{"lsn":[1,{}]},"op":"c"}"#;
    let wrapped = format!(r#"{{"schema":{{"type":"struct"}},"payload":{event}}}"#);
    assert_eq!(debezium(r#"{"id":1}"#, event), note("1", "café"));
    assert_eq!(
        debezium(r#"{"schema":{},"payload":{"id":1}}"#, &wrapped),
        note("1", "café")
    );
}

#[test]
fn deletes_and_tombstones_remove_the_row_of_their_key() {
    let gone = gone("1");
    assert_eq!(
        debezium(
            r#"{"id":1}"#,
            r#"{"before":{"text":""},"after":null,"op":"d"}"#
        ),
        gone
    );
    assert_eq!(
        decode_note(Envelope::Debezium, Some(r#"{"id":1}"#), None),
        gone
    );
    assert_eq!(decode_note(Envelope::Debezium, None, None), []);
}

#[test]
fn keys_of_one_column_are_its_value_and_of_several_an_object() {
    let text = |key| debezium(key, r#"{"op":"d"}"#).remove(0).key.to_string();
    assert_eq!(text(r#"{"id":"a b"}"#), "a b");
    assert_eq!(text("17"), "17");
    assert_eq!(text("plain"), "plain");
    assert_eq!(text("2009-04-06"), "2009-04-06");
    assert_eq!(text(r#"{"a":1,"b":"x"}"#), r#"{"a":1,"b":"x"}"#);
    assert_eq!(decode_note(Envelope::Upsert, Some("17"), None), gone("17"));
}

#[test]
fn what_cannot_be_used_says_why_and_keeps_its_place() {
    let event = |after: &str| debezium("1", &format!(r#"{{"op":"u","after":{after}}}"#));
    assert_eq!(
        reason(event("{}")),
        "field \"after.text\": expected a string, found nothing"
    );
    assert_eq!(
        reason(event(r#"{"text":5}"#)),
        "field \"after.text\": expected a string, found a whole number"
    );
    assert_eq!(
        reason(event(r#"{"text":[{}]}"#)),
        "field \"after.text\": expected a string, found an array"
    );
    assert_eq!(reason(event("null")), "field \"after\": expected an object");
    assert_eq!(
        reason(debezium("1", r#"{"op":"x"}"#)),
        "field \"op\": unknown operation \"x\""
    );
    assert_eq!(
        reason(debezium("1", "{}")),
        "field \"op\": missing; is this a Debezium event?"
    );
    assert!(reason(debezium("1", "{\"op\":")).starts_with("not a JSON object: "));
    assert!(reason(debezium("1", "[]")).starts_with("not a JSON object: "));
    let invalid = decode_note(Envelope::Upsert, Some("1"), Some(b"{\"text\":\"\xff\"}"));
    assert_eq!(reason(invalid), "not UTF-8 at byte 9");
    let keyless = decode_note(
        Envelope::Debezium,
        None,
        Some(b"{\"op\":\"c\",\"after\":{}}"),
    );
    assert!(reason(keyless).starts_with("the message has no key"));
}

#[test]
fn a_message_without_a_key_is_rejected_under_its_position() {
    let message = Message {
        key: Some(b"\xff"),
        value: None,
        headers: NO_HEADERS,
        origin: "t/0",
        offset: Some(1),
        received: Timestamp(0),
    };
    let mut told: Told = Vec::new();
    Decoder::new(format(Envelope::Debezium))
        .decode(&message, &mut told)
        .unwrap();
    let [
        Upsert {
            key,
            state: State::Row(Err(reject)),
            ..
        },
    ] = told.as_slice()
    else {
        panic!("expected a reject");
    };
    assert_eq!(
        (&**key, &*reject.reason, &*reject.raw),
        ("t/0/1", "the key is not UTF-8", &b"\xff"[..])
    );
}

#[test]
fn other_formats_tell_the_same_rows() {
    let told =
        |envelope, key, value: &str| decode_note(envelope, Some(key), Some(value.as_bytes()));
    let flattened = |value| told(Envelope::Flattened, r#"{"id":1}"#, value);
    assert_eq!(
        flattened(r#"{"id":1,"text":"a","__deleted":"false","__op":"c"}"#),
        note("1", "a")
    );
    assert_eq!(
        flattened(r#"{"schema":{},"payload":{"text":"a"}}"#),
        note("1", "a")
    );
    assert_eq!(
        flattened(r#"{"id":1,"text":"","__deleted":"true"}"#),
        gone("1")
    );
    assert_eq!(
        flattened(r#"{"id":1,"text":"","__deleted":true}"#),
        gone("1")
    );
    assert_eq!(
        decode_note(Envelope::Flattened, Some(r#"{"id":1}"#), None),
        gone("1")
    );
    assert_eq!(
        told(Envelope::Upsert, "k", r#"{"text":"a"}"#),
        note("k", "a")
    );
    assert_eq!(told(Envelope::Upsert, "k", "null"), gone("k"));
    assert_eq!(
        told(Envelope::Append, "k", r#"{"text":"a"}"#),
        note("notes/0/7", "a")
    );
    assert_eq!(decode_note(Envelope::Append, Some("k"), None), []);
}

#[test]
fn columns_may_be_named_otherwise_and_make_the_key() {
    let by_columns = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned());
        Decoder::new(Format {
            columns: vec!["body".to_owned()],
            key_columns: names.collect(),
            ..format(Envelope::Debezium)
        })
    };
    let event = |op: &str, before: &str, after: &str| {
        format!(r#"{{"op":"{op}","before":{before},"after":{after}}}"#)
    };
    let told =
        |decoder: &mut Decoder, event: &str| decode_with(decoder, None, Some(event.as_bytes()));
    let mut one = by_columns(&["id"]);
    let insert = event("c", "null", r#"{"id":7,"body":"a"}"#);
    assert_eq!(told(&mut one, &insert), note("7", "a"));
    let delete = event("d", r#"{"id":7,"body":""}"#, "null");
    assert_eq!(told(&mut one, &delete), gone("7"));
    // A tombstone comes after, with a key that is not ours.
    assert_eq!(decode_with(&mut one, Some("1"), None), []);
    let moved = event("u", r#"{"id":7,"body":"a"}"#, r#"{"id":8,"body":"a"}"#);
    assert_eq!(told(&mut one, &moved), [gone("7"), note("8", "a")].concat());
    let mut two = by_columns(&["id", "place"]);
    let insert = event("c", "null", r#"{"place":"x","id":7,"body":"a"}"#);
    assert_eq!(
        told(&mut two, &insert),
        note(r#"{"id":7,"place":"x"}"#, "a")
    );
    let lacking = event("c", "null", r#"{"id":7,"body":"a"}"#);
    assert_eq!(
        reason(told(&mut two, &lacking)),
        "key column \"place\": expected a value, found nothing"
    );
}

#[test]
fn keys_of_several_topics_are_told_apart() {
    let several = Format {
        several_topics: true,
        ..format(Envelope::Debezium)
    };
    let mut decoder = Decoder::new(several);
    let told = decode_with(&mut decoder, Some(r#"{"id":1}"#), None);
    assert_eq!(told, gone("notes/1"));
    let told = decode_with(
        &mut decoder,
        None,
        Some(br#"{"op":"t","source":{"lsn":9}}"#),
    );
    let truncated = Upsert {
        key: "notes/".into(),
        at: 9,
        state: State::Truncated(0),
    };
    assert_eq!(told, [truncated]);
}

#[test]
fn a_reject_is_tried_again_by_another_rule() {
    let named = |column: &str, key: &[&str], several_topics| Format {
        columns: vec![column.to_owned()],
        key_columns: key.iter().map(|name| (*name).to_owned()).collect(),
        several_topics,
        ..format(Envelope::Debezium)
    };
    let event = r#"{"op":"c","after":{"id":7,"body":"a"}}"#;
    let refused = |format, key| {
        let told = decode_with(&mut Decoder::new(format), key, Some(event.as_bytes()));
        match told.into_iter().next().unwrap().state {
            State::Row(Err(reject)) => *reject,
            other => panic!("expected a reject, found {other:?}"),
        }
    };
    let retried = |format, reject: &Reject| Retry::new(format).row::<Note>(reject);
    let row = |key: &str| Note {
        key: key.into(),
        text: "a".into(),
    };
    for (several, key) in [(false, "7"), (true, "notes/7")] {
        let reject = refused(named("text", &[], several), Some(r#"{"id":7}"#));
        assert_eq!(retried(named("text", &[], several), &reject), None);
        let healed = retried(named("body", &[], several), &reject);
        assert_eq!(healed, Some(Upsert::row(key.into(), Ok(row(key)))));
    }
    let keyless = refused(named("body", &[], false), None);
    let healed = retried(named("body", &["id"], false), &keyless);
    assert_eq!(healed, Some(Upsert::row("7".into(), Ok(row("7")))));
}

#[test]
fn what_says_nothing_of_rows_is_passed_over() {
    let message = r#"{"op":"m","message":{"prefix":"x","content":""},"source":{"lsn":9}}"#;
    assert_eq!(debezium("1", message), []);
}

#[test]
fn a_value_that_was_not_sent_is_to_be_completed() {
    let told = debezium(
        "1",
        r#"{"op":"u","after":{"text":"__debezium_unavailable_value"}}"#,
    );
    let [
        Upsert {
            state: State::Patch(patch),
            ..
        },
    ] = told.as_slice()
    else {
        panic!("expected a patch, found {told:?}");
    };
    assert_eq!(patch.absent, 1);
    let reason = &patch.otherwise.as_ref().unwrap_err().reason;
    assert!(reason.contains("replica identity full"), "{reason}");
}

#[test]
fn a_connector_that_repeats_itself_is_not_heard_twice() {
    let mut decoder = Decoder::new(format(Envelope::Debezium));
    let mut heard = |key: &str, op: &str, commit: &str, lsn: i64, at: i64| {
        let sequence = Value::from(format!("[{commit},\"{lsn}\"]"));
        let event = format!(
            r#"{{"op":"{op}","after":{{"text":"a"}},"source":{{"lsn":{lsn},"ts_ms":{at},"sequence":{sequence}}}}}"#
        );
        !decode_with(&mut decoder, Some(key), Some(event.as_bytes())).is_empty()
    };
    assert!(heard("1", "c", "null", 10, 5));
    // Of two transactions the one that was committed later may have begun earlier in the log.
    assert!(heard("2", "c", "\"20\"", 30, 6));
    assert!(heard("3", "c", "\"40\"", 15, 7));
    // A change of a key is two events at one place.
    assert!(heard("3", "d", "\"40\"", 16, 7));
    assert!(heard("4", "c", "\"40\"", 16, 7));
    for (key, op, commit, lsn, at) in [
        ("2", "c", "\"20\"", 30, 6),
        ("3", "c", "\"40\"", 15, 7),
        ("3", "d", "\"40\"", 16, 7),
        ("4", "c", "\"40\"", 16, 7),
    ] {
        assert!(!heard(key, op, commit, lsn, at), "{key} {op}");
    }
    assert!(heard("5", "c", "\"40\"", 17, 7));
    // A snapshot tells what is, whenever it was changed.
    assert!(heard("1", "r", "null", 9, 8));
    // A database that was put back to a backup goes on from an earlier place, at a later time.
    assert!(heard("6", "c", "\"11\"", 12, 9));
    assert!(heard("7", "c", "\"11\"", 13, 9));
}
