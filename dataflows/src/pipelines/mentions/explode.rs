//! What follows from a tweet by itself: whom it mentions, who wrote it, or that its date cannot be understood.

use std::sync::Arc;

use differential_dataflow::AsCollection;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::{Bronze, Settings, Silver, mentions_of};
use crate::change::{Change, Collection, Text};
use crate::operators::batches::fetch;
use crate::reject::Reject;

/// What follows from tweets.
pub(super) struct Exploded<'s> {
    /// A row for each mention.
    pub(super) silver: Collection<'s, Arc<Silver>>,
    /// For each tweet that has a user that one, and whether someone is mentioned.
    pub(super) tweeted: Collection<'s, (Text, bool)>,
    /// What has no date.
    pub(super) undated: Collection<'s, Reject>,
}

/// Looks at each tweet once for all that follows from it.
pub(super) fn explode<'s>(bronze: Collection<'s, Arc<Bronze>>, settings: Settings) -> Exploded<'s> {
    let mut builder = OperatorBuilder::new("Explode".to_owned(), bronze.scope());
    let mut input = builder.new_input(bronze.inner, Pipeline);
    let (silver_output, silver) = builder.new_output();
    let (tweeted_output, tweeted) = builder.new_output();
    let (undated_output, undated) = builder.new_output();
    let mut silver_output = OutputBuilder::from(silver_output);
    let mut tweeted_output = OutputBuilder::from(tweeted_output);
    let mut undated_output = OutputBuilder::from(undated_output);
    builder.build(move |_| {
        move |_frontiers| {
            let mut silver_output = silver_output.activate();
            let mut tweeted_output = tweeted_output.activate();
            let mut undated_output = undated_output.activate();
            input.for_each(|capability, tweets| {
                let mut found = Found::in_batch(tweets, &settings);
                let mut session = silver_output.session(&capability);
                session.give_container(&mut found.silver);
                let mut session = tweeted_output.session(&capability);
                session.give_container(&mut found.tweeted);
                let mut session = undated_output.session(&capability);
                session.give_container(&mut found.undated);
            });
        }
    });
    Exploded {
        silver: silver.as_collection(),
        tweeted: tweeted.as_collection(),
        undated: undated.as_collection(),
    }
}

/// What follows from a batch of tweets.
struct Found {
    silver: Vec<Change<Arc<Silver>>>,
    tweeted: Vec<Change<(Text, bool)>>,
    undated: Vec<Change<Reject>>,
}

impl Found {
    fn in_batch(tweets: &mut Vec<Change<Arc<Bronze>>>, settings: &Settings) -> Self {
        let mut found = Self {
            silver: Vec::with_capacity(tweets.len()),
            tweeted: Vec::with_capacity(tweets.len()),
            undated: Vec::new(),
        };
        // Another core has written them.
        fetch(tweets, |tweet| {
            let date = tweet.date.as_deref().unwrap_or_default();
            usize::from(tweet.text.as_bytes().first() == date.as_bytes().first())
        });
        for (tweet, epoch, diff) in tweets.drain(..) {
            let mentions_someone = match mentions_of(&tweet, settings) {
                Ok(rows) => {
                    let silver = rows.into_iter().map(|row| (row, epoch, diff));
                    let before = found.silver.len();
                    found.silver.extend(silver);
                    found.silver.len() > before
                }
                Err(reject) => {
                    found.undated.push((*reject, epoch, diff));
                    settings.rule.finds_any(&tweet.text)
                }
            };
            if let Some(user) = &tweet.user {
                let user = (user.clone(), mentions_someone);
                found.tweeted.push((user, epoch, diff));
            }
        }
        found
    }
}
