//! Transactions of a source, held back until all of each is there.
//!
//! Debezium tells in a topic of its own which transaction has ended, and how many events of which tables
//! it had (`provide.transaction.metadata`). The events themselves come over other partitions, in any
//! interleaving. Here they queue, a queue a partition, until the end of their transaction and all of
//! its events are there; then they enter the dataflow together. Transactions are released in the order of
//! their ends, which is that of their commits, and in which each partition holds their events too.
//!
//! What belongs to no transaction, as a snapshot's rows, goes with what came before it in its partition.

use std::collections::VecDeque;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use regex::RegexSet;
use serde::Deserialize;

use crate::change::Text;
use crate::envelope::{Decoder, InTransaction, Message, NotYet, RowChange, SourceRow};
use crate::operators::checkpoint::Position;

/// How often nothing new must have been there, once a second, before a transaction is not waited for any
/// longer: some of its events may have been filtered out, or its topic begun in its midst. Longer than it
/// takes to find the topic of the ends, which is made with the first of them.
const PATIENCE: u32 = 30;

/// How many messages of one partition may wait, besides those of the transaction that is waited for.
const MOST_AHEAD: usize = 20_000;

/// How many transactions are remembered that have been released. A connector that crashed tells the
/// last ones again.
const REMEMBERED: usize = 10_000;

/// Which transactions are shown whole.
#[derive(Clone, Debug)]
pub struct TransactionTopic {
    /// The topic that tells of their ends.
    pub topic: String,
    /// The topics whose events are read.
    pub read: RegexSet,
}

impl TransactionTopic {
    /// How many events of a transaction are to be read.
    fn expected(&self, end: &End) -> usize {
        let prefix = self.topic.rsplit_once('.').map_or("", |(prefix, _)| prefix);
        let read = end.data_collections.iter().flatten().filter(|collection| {
            let table = collection.data_collection.chars().map(topic_character);
            let topic: String = prefix.chars().chain(['.']).chain(table).collect();
            self.read.is_match(&topic)
        });
        read.map(|collection| collection.event_count).sum()
    }
}

/// Characters that a topic's name cannot have are replaced by Debezium.
fn topic_character(character: char) -> char {
    match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => character,
        _ => '_',
    }
}

/// What Debezium tells of a transaction's beginning and end.
#[derive(Deserialize)]
struct End {
    status: String,
    id: String,
    /// Told at the end only.
    data_collections: Option<Vec<CollectionEvents>>,
}

#[derive(Deserialize)]
struct CollectionEvents {
    data_collection: String,
    event_count: usize,
}

/// What is held back of one source.
pub(crate) struct Transactions<R> {
    topic: TransactionTopic,
    /// What waits of each partition, in its order.
    partitions: HashMap<Text, Partition<R>>,
    /// What has come of each transaction.
    came: HashMap<Text, Came>,
    /// The transactions that have ended, in this order, with how many events each is to have.
    ended: VecDeque<(Text, usize)>,
    /// The last that were released.
    released: HashSet<Text>,
    released_in_order: VecDeque<Text>,
    /// What goes next, and how often nothing was left to read while it waited.
    next: Option<Text>,
    idle: u32,
}

/// What has come of a transaction.
#[derive(Default)]
struct Came {
    /// Its events, by their places in the log and in the transaction: a connector may repeat itself.
    events: HashSet<(i64, i64)>,
    /// Where they wait.
    partitions: HashSet<Text>,
}

struct Partition<R> {
    waiting: VecDeque<Waiting<R>>,
    /// The next offset to read, and the one up to which everything has been released.
    read_to: i64,
    released_to: i64,
    /// When the last message was written that was read.
    last_written: Option<i64>,
}

struct Waiting<R> {
    offset: i64,
    transaction: Option<Text>,
    changes: Vec<RowChange<R>>,
}

impl<R> Default for Partition<R> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            read_to: -1,
            released_to: -1,
            last_written: None,
        }
    }
}

impl<R: SourceRow> Transactions<R> {
    pub(crate) fn new(topic: TransactionTopic) -> Self {
        Self {
            topic,
            partitions: HashMap::new(),
            came: HashMap::new(),
            ended: VecDeque::new(),
            released: HashSet::new(),
            released_in_order: VecDeque::new(),
            next: None,
            idle: 0,
        }
    }

    /// Queues what a message tells.
    ///
    /// # Errors
    /// If it cannot be decoded yet.
    pub(crate) fn push(
        &mut self,
        decoder: &mut Decoder,
        message: &Message<'_>,
    ) -> Result<(), NotYet> {
        let partition = message.origin;
        let mut changes = Vec::new();
        let transaction = if message.topic() == self.topic.topic {
            decoder.tree(message)?.and_then(|marker| self.end(marker))
        } else {
            let told = decoder.decode(message, &mut changes)?;
            told.map(|event| self.came(partition, event))
        };
        let queue = self.partitions.entry(partition.into()).or_default();
        queue.waiting.push_back(Waiting {
            offset: message.offset.unwrap_or_default() as i64,
            transaction,
            changes,
        });
        Ok(())
    }

    fn came(&mut self, partition: &str, event: InTransaction) -> Text {
        if !self.released.contains(&event.transaction) {
            let came = self.came.entry(event.transaction.clone()).or_default();
            came.events.insert((event.at, event.order));
            if !came.partitions.contains(partition) {
                came.partitions.insert(partition.into());
            }
        }
        event.transaction
    }

    /// The transaction that a message of its topic ends, if it does.
    fn end(&mut self, marker: serde_json::Value) -> Option<Text> {
        let end = End::deserialize(marker).ok()?;
        let transaction = transaction_of(&end.id);
        if end.status != "END" || self.released.contains(&transaction) {
            return None;
        }
        let expected = self.topic.expected(&end);
        self.ended.push_back((transaction.clone(), expected));
        Some(transaction)
    }

    /// Moves out what is complete, in order.
    pub(crate) fn release(&mut self, changes: &mut Vec<RowChange<R>>) {
        self.release_queued(changes);
        while let Some((transaction, expected)) = self.ended.front() {
            // A connector that crashed may tell an end twice before the first is heeded.
            let released = self.released.contains(transaction);
            if !released && self.events_of(transaction) < *expected {
                return;
            }
            self.release_first();
            self.release_queued(changes);
        }
    }

    fn events_of(&self, transaction: &str) -> usize {
        self.came
            .get(transaction)
            .map_or(0, |came| came.events.len())
    }

    /// Lets the first of the transactions that have ended go.
    fn release_first(&mut self) {
        let Some((transaction, _)) = self.ended.pop_front() else {
            return;
        };
        let came = self.came.remove(&transaction).unwrap_or_default();
        for partition in &came.partitions {
            let queue = self.partitions.get(partition).map(|queue| &queue.waiting);
            let before = queue.into_iter().flatten();
            let before = before.filter_map(|waiting| waiting.transaction.clone());
            let before = before.take_while(|before| *before != transaction);
            // Ends are told in the order of commits: these would have been told of.
            let endless: Vec<Text> = before.collect();
            endless
                .into_iter()
                .for_each(|endless| self.remember(endless));
        }
        self.remember(transaction);
    }

    fn remember(&mut self, released: Text) {
        self.came.remove(&released);
        if !self.released.insert(released.clone()) {
            return;
        }
        self.released_in_order.push_back(released);
        if self.released_in_order.len() > REMEMBERED
            && let Some(oldest) = self.released_in_order.pop_front()
        {
            self.released.remove(&oldest);
        }
    }

    /// Moves out what waits for no transaction any longer.
    fn release_queued(&mut self, changes: &mut Vec<RowChange<R>>) {
        for partition in self.partitions.values_mut() {
            let goes = |waiting: &mut Waiting<R>| {
                let transaction = waiting.transaction.as_ref();
                transaction.is_none_or(|transaction| self.released.contains(transaction))
            };
            while let Some(mut waiting) = partition.waiting.pop_front_if(goes) {
                changes.append(&mut waiting.changes);
            }
        }
    }

    /// Hears that the source holds nothing more; a transaction that has waited for long is shown as it is.
    /// Returns which.
    pub(crate) fn nothing_waits(&mut self) -> Option<String> {
        let next = self.next();
        self.idle = if next.is_some() && next == self.next {
            self.idle + 1
        } else {
            0
        };
        self.next = next.clone();
        if self.idle < PATIENCE {
            return None;
        }
        let transaction = next?;
        let came = self.events_of(&transaction);
        let lacking = match self.ended.front() {
            Some((_, expected)) => format!("{came} of its {expected} events have come"),
            None => {
                self.ended.push_back((transaction.clone(), 0));
                format!("its end is not told in \"{}\"", self.topic.topic)
            }
        };
        self.release_first();
        Some(format!(
            "transaction {transaction} is shown as it is: {lacking}"
        ))
    }

    /// The partitions that have run so far ahead that they had better not be read until others have followed: what
    /// they hold of the transaction that is waited for has been read, and much of what follows it.
    pub(crate) fn ahead(&self) -> Vec<Text> {
        let next = self.next();
        let ahead = |queue: &Partition<R>| {
            let mut newest = queue.waiting.iter().rev();
            queue.waiting.len() > MOST_AHEAD
                && newest.find_map(|waiting| waiting.transaction.as_ref()) != next.as_ref()
        };
        let partitions = self.partitions.iter();
        let ahead = partitions.filter(|(_, queue)| ahead(queue));
        ahead.map(|(partition, _)| partition.clone()).collect()
    }

    /// How many messages wait.
    pub(crate) fn held_back(&self) -> usize {
        let queues = self.partitions.values();
        queues.map(|queue| queue.waiting.len()).sum()
    }

    /// The transaction that everything waits for.
    fn next(&self) -> Option<Text> {
        let ended = self
            .ended
            .front()
            .map(|(transaction, _)| transaction.clone());
        let mut queues = self.partitions.values();
        ended.or_else(|| queues.find_map(|queue| queue.waiting.front()?.transaction.clone()))
    }

    /// The positions up to which everything has been released, of those that moved; these are up to where
    /// the source has been read.
    pub(crate) fn released_up_to(&mut self, read: Vec<Position>) -> Vec<Position> {
        for position in read {
            let queue = self.partitions.entry(position.partition.clone());
            let queue = queue.or_default();
            queue.read_to = position.next_offset;
            queue.last_written = position.last_written;
        }
        let mut moved = Vec::new();
        for (partition, queue) in &mut self.partitions {
            let waiting = queue.waiting.front();
            let released_to = waiting.map_or(queue.read_to, |waiting| waiting.offset);
            if released_to > queue.released_to {
                queue.released_to = released_to;
                moved.push(Position {
                    partition: partition.clone(),
                    next_offset: released_to,
                    last_written: queue.last_written.filter(|_| waiting.is_none()),
                });
            }
        }
        moved
    }
}

/// A transaction's own number: what is told as its id, `755:24023128`, has a place in the log as well,
/// another for each event.
pub(crate) fn transaction_of(id: &str) -> Text {
    id.split_once(':').map_or(id, |(number, _)| number).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::envelope::{Envelope, Field, Format, NO_HEADERS, required_text};
    use crate::operators::upsert::State;
    use crate::record::Timestamp;

    #[derive(Clone, Debug, PartialEq)]
    struct Note(Text);

    impl SourceRow for Note {
        const FIELDS: &'static [&'static str] = &["text"];

        fn from_fields(
            _: Text,
            fields: &[Field<'_>],
            _: Option<Text>,
            paths: &[String],
            _: &Message<'_>,
        ) -> Result<Self, String> {
            required_text(&paths[0], &fields[0]).map(Note)
        }
    }

    struct Reader {
        decoder: Decoder,
        transactions: Transactions<Note>,
        offsets: BTreeMap<String, i64>,
    }

    impl Reader {
        fn new() -> Self {
            let topic = TransactionTopic {
                topic: "shop.transaction".to_owned(),
                read: RegexSet::new(["^shop\\.public\\.(a|b)$"]).unwrap(),
            };
            let format = Format {
                transactions: Some(topic.clone()),
                ..Format::new::<Note>(Envelope::Debezium)
            };
            Self {
                decoder: Decoder::new(format),
                transactions: Transactions::new(topic),
                offsets: BTreeMap::new(),
            }
        }

        /// Reads a message; returns the texts that it sets free.
        fn read(&mut self, partition: &str, value: &Value) -> Vec<String> {
            let offset = self.offsets.entry(partition.to_owned()).or_default();
            let value = value.to_string();
            let message = Message {
                key: Some(b"1"),
                value: Some(value.as_bytes()),
                headers: NO_HEADERS,
                origin: partition,
                offset: u64::try_from(*offset).ok(),
                received: Timestamp(0),
            };
            *offset += 1;
            let pushed = self.transactions.push(&mut self.decoder, &message);
            pushed.unwrap();
            self.free()
        }

        fn free(&mut self) -> Vec<String> {
            let mut changes = Vec::new();
            self.transactions.release(&mut changes);
            changes
                .into_iter()
                .map(|change| match change.state {
                    State::Row(Ok(Note(text))) => text.to_string(),
                    other => panic!("{other:?}"),
                })
                .collect()
        }

        /// The positions that moved, where everything that was read has been told of.
        fn moved(&mut self) -> BTreeMap<String, i64> {
            let read = self.offsets.iter().map(|(partition, next)| Position {
                partition: partition.as_str().into(),
                next_offset: *next,
                last_written: None,
            });
            let moved = self.transactions.released_up_to(read.collect());
            let moved = moved.into_iter();
            moved
                .map(|moved| (moved.partition.to_string(), moved.next_offset))
                .collect()
        }
    }

    fn event(transaction: u64, order: u64, text: &str) -> Value {
        let at = transaction * 100 + order;
        json!({
            "op": "c", "after": {"text": text}, "source": {"lsn": at},
            "transaction": {"id": format!("{transaction}:{at}"), "total_order": order}
        })
    }

    fn end(transaction: u64, counts: &[(&str, usize)]) -> Value {
        let counts = counts.iter();
        let counts: Vec<_> = counts
            .map(|(table, count)| json!({"data_collection": table, "event_count": count}))
            .collect();
        json!({"status": "END", "id": format!("{transaction}:9"), "data_collections": counts})
    }

    const A: &str = "shop.public.a/0";
    const B: &str = "shop.public.b/0";
    const T: &str = "shop.transaction/0";

    #[test]
    fn a_transaction_waits_for_its_events_and_its_end() {
        let mut reader = Reader::new();
        let none: [&str; 0] = [];
        assert_eq!(reader.read(A, &event(1, 1, "a1")), none);
        let begin = json!({"status": "BEGIN", "id": "1:9"});
        assert_eq!(reader.read(T, &begin), none);
        // Tables whose topics are not read do not count.
        let counts = [("public.a", 1), ("public.b", 1), ("public.other", 7)];
        assert_eq!(reader.read(T, &end(1, &counts)), none);
        assert_eq!(
            reader.moved(),
            [(A.to_owned(), 0), (T.to_owned(), 1)].into()
        );
        // What follows waits as well, even if it is part of none.
        assert_eq!(reader.read(A, &event(2, 1, "a2")), none);
        let snapshot = json!({"op": "r", "after": {"text": "s"}, "transaction": null});
        assert_eq!(reader.read(A, &snapshot), none);
        assert_eq!(reader.read(T, &end(2, &[("public.a", 1)])), none);
        let free = reader.read(B, &event(1, 2, "b1"));
        assert_eq!(
            free.iter().collect::<std::collections::BTreeSet<_>>().len(),
            4
        );
        let place = |text: &str| free.iter().position(|free| free == text).unwrap();
        assert!(place("a1") < place("a2") && place("b1") < place("a2") && place("a2") < place("s"));
        assert_eq!(
            reader.moved(),
            [(A.to_owned(), 3), (B.to_owned(), 1), (T.to_owned(), 3)].into()
        );
        // A connector that crashed tells it again, before it is released or after.
        assert_eq!(reader.read(A, &event(2, 1, "a2")), ["a2"]);
        assert_eq!(reader.read(T, &end(2, &[("public.a", 1)])), none);
        assert_eq!(reader.read(A, &snapshot), ["s"]);
        assert_eq!(reader.read(T, &end(3, &[("public.b", 1)])), none);
        assert_eq!(reader.read(T, &end(3, &[("public.b", 1)])), none);
        assert_eq!(reader.read(B, &event(3, 1, "b3")), ["b3"]);
        assert_eq!(reader.read(T, &end(4, &[("public.b", 1)])), none);
        assert_eq!(reader.read(B, &event(4, 1, "b4")), ["b4"]);
    }

    #[test]
    fn what_does_not_come_is_not_waited_for_forever() {
        let mut reader = Reader::new();
        reader.read(A, &event(1, 1, "a1"));
        reader.read(T, &end(1, &[("public.a", 1), ("public.b", 1)]));
        assert_eq!(reader.transactions.held_back(), 2);
        let warning = (0..100).find_map(|_| reader.transactions.nothing_waits());
        assert_eq!(
            warning.unwrap(),
            "transaction 1 is shown as it is: 1 of its 2 events have come"
        );
        assert_eq!(reader.free(), ["a1"]);
        assert_eq!(reader.transactions.nothing_waits(), None);
        reader.read(A, &event(2, 1, "a2"));
        let warning = (0..100).find_map(|_| reader.transactions.nothing_waits());
        assert!(warning.unwrap().contains("its end is not told"));
        assert_eq!(reader.free(), ["a2"]);
        // The end of a later one tells that an earlier one has none.
        assert_eq!(reader.read(A, &event(3, 1, "a3")), Vec::<String>::new());
        assert_eq!(reader.read(A, &event(4, 1, "a4")), Vec::<String>::new());
        assert_eq!(reader.read(T, &end(4, &[("public.a", 1)])), ["a3", "a4"]);
        // What comes late is shown at once.
        assert_eq!(reader.read(B, &event(1, 2, "b1")), ["b1"]);
    }

    #[test]
    fn a_partition_is_held_once_much_waits_that_is_not_of_what_is_waited_for() {
        let mut reader = Reader::new();
        reader.read(A, &event(1, 1, "a1"));
        for order in 0..MOST_AHEAD as u64 {
            assert!(reader.transactions.ahead().is_empty());
            reader.read(A, &event(2, order, "a2"));
        }
        assert_eq!(reader.transactions.ahead(), [Text::from(A)]);
        // However large a transaction is, it is read.
        reader.read(T, &end(1, &[("public.a", 1)]));
        assert!(reader.transactions.ahead().is_empty());
    }

    #[test]
    fn tables_are_found_by_the_names_that_topics_can_have() {
        let topic = TransactionTopic {
            topic: "shop.transaction".to_owned(),
            read: RegexSet::new(["^shop\\.My_Schema\\.a_b$"]).unwrap(),
        };
        let end = End::deserialize(end(1, &[("My Schema.a$b", 3)])).unwrap();
        assert_eq!(topic.expected(&end), 3);
    }

    proptest! {
        /// Whatever is read first, each step shows whole transactions, in their order, and positions never
        /// pass what is held back.
        #[test]
        fn only_whole_transactions_are_seen(
            sizes in prop::collection::vec((0_u64..3, 0_u64..3), 1..20),
            choices in prop::collection::vec(0_usize..3, 200),
        ) {
            let mut queues: [VecDeque<(u64, Value)>; 3] = Default::default();
            for (number, (a, b)) in (1..).zip(&sizes) {
                for order in 0..a + b {
                    let queue = usize::from(order >= *a);
                    let text = format!("{number}.{order}");
                    queues[queue].push_back((number, event(number, order, &text)));
                }
                let counts = [("public.a", *a as usize), ("public.b", *b as usize)];
                queues[2].push_back((number, end(number, &counts)));
            }
            let mut reader = Reader::new();
            let mut shown: BTreeMap<u64, u64> = BTreeMap::new();
            let total: usize = queues.iter().map(VecDeque::len).sum();
            let mut choices = choices.into_iter().cycle();
            for _ in 0..total {
                let partitions = [A, B, T];
                let choice = choices.next().unwrap();
                let left = (0..3).map(|other| (choice + other) % 3);
                let queue = { left }.find(|queue| !queues[*queue].is_empty()).unwrap();
                let (_, value) = queues[queue].pop_front().unwrap();
                for text in reader.read(partitions[queue], &value) {
                    let number = text.split('.').next().unwrap().parse().unwrap();
                    *shown.entry(number).or_default() += 1;
                }
                for (number, count) in &shown {
                    let (a, b) = sizes[*number as usize - 1];
                    prop_assert_eq!(*count, a + b, "transaction {}", number);
                }
                let read: i64 = reader.offsets.values().sum();
                let released: i64 = {
                    reader.moved();
                    reader.transactions.partitions.values().map(|queue| queue.released_to.max(0)).sum()
                };
                let held: usize = reader.transactions.partitions.values().map(|queue| queue.waiting.len()).sum();
                prop_assert!(released + held as i64 >= read && released <= read);
            }
            let expected: u64 = sizes.iter().map(|(a, b)| a + b).sum();
            prop_assert_eq!(shown.values().sum::<u64>(), expected);
        }
    }
}
