//! The words that tweets are made of.

use super::tweets::Sentiment;

pub(super) const ONSETS: [&str; 16] = [
    "bl", "br", "dr", "fl", "gl", "gr", "kl", "kr", "pl", "pr", "sn", "tr", "vl", "vr", "zl", "zv",
];

pub(super) const VOWELS: [&str; 4] = ["a", "e", "i", "o"];

/// What texts of one sentiment are put together from; `{}` in a body is a thing of the topic.
pub(super) struct Parts {
    pub(super) openers: &'static [&'static str],
    pub(super) bodies: &'static [&'static str],
    pub(super) closers: &'static [&'static str],
    pub(super) tags: &'static [&'static str],
    pub(super) emoji: &'static [&'static str],
    pub(super) link_share: f64,
}

/// Something that people write about.
pub(super) struct Topic {
    pub(super) tag: &'static str,
    pub(super) things: &'static [&'static str],
    negative: &'static [&'static str],
    neutral: &'static [&'static str],
    positive: &'static [&'static str],
}

impl Topic {
    pub(super) fn says(&self, sentiment: Sentiment) -> &'static [&'static str] {
        match sentiment {
            Sentiment::Negative => self.negative,
            Sentiment::Neutral => self.neutral,
            Sentiment::Positive => self.positive,
        }
    }
}

pub(super) static NEGATIVE: Parts = Parts {
    openers: &[
        "ugh,",
        "oh no,",
        "seriously?",
        "worst day ever:",
        "I give up,",
        "so annoyed,",
        "not happy:",
        "argh!",
        "sad news:",
        "great, just what I needed:",
        "why oh why,",
        "sigh,",
        "disappointed again:",
        "no no no,",
    ],
    bodies: &[
        "{} let me down again",
        "{} is the worst I have ever had",
        "I am so tired of {}",
        "{} completely ruined my morning",
        "I really hate {} right now",
        "never again, {} was a disaster",
        "{} was a total waste of money",
        "I feel awful because of {}",
        "{} makes me want to cry",
        "still angry about {}",
        "{} is broken and nobody cares",
        "what a terrible experience with {}",
        "{} gets worse every single day",
        "I am sick of complaining about {}",
        "so disappointed by {}",
        "{} failed when I needed it most",
        "nothing but trouble with {}",
        "I regret ever paying for {}",
        "{} is horrible and far too expensive",
        "I can't stand {} anymore",
        "the mess with {} gave me a headache",
        "sadly {} is as bad as everyone says",
        "{} sucks today",
        "I miss the days before {} went wrong",
    ],
    closers: &[
        "I am done",
        "worst service ever",
        "now I am sad",
        "this hurts",
        "I want my money back",
        "so frustrating",
        "and nobody even apologised",
        "my whole evening is ruined",
        "I could scream",
        "what a shame",
        "never again",
        "feeling miserable",
        "and I am still waiting, unbelievable",
        "it makes me so angry",
        "déjà vu, it was just as awful last week",
        "why does this always happen to me",
    ],
    tags: &[
        "fail",
        "sadface",
        "worstday",
        "annoyed",
        "notfair",
        "disappointed",
    ],
    emoji: &["😡", "😞", "😭", "👎", "💔", "😤", ":(", ":'(", "🤦", "😩"],
    link_share: 0.05,
};

pub(super) static NEUTRAL: Parts = Parts {
    openers: &[
        "question:",
        "fyi,",
        "just saw:",
        "reminder:",
        "note to self:",
        "from the news:",
        "today:",
        "update:",
        "apparently:",
        "for those asking:",
    ],
    bodies: &[
        "has anyone tried {} this week?",
        "reading an article about {}",
        "does anyone know the opening hours for {}?",
        "there is a new page about {}",
        "{} is on the list for tomorrow",
        "comparing prices for {}",
        "what do you use instead of {}?",
        "a short survey about {}",
        "{} came up in a conversation today",
        "the second part of the series on {} is out",
        "waiting to hear back about {}",
        "they are talking about {} on the radio",
        "writing a report on {}",
        "thinking about {}, no opinion yet",
        "looking up the history of {}",
        "how long do people usually wait for {}?",
        "a photo of {}, taken around noon",
        "{} will be discussed at the meeting on Tuesday",
        "is {} the same as last year?",
        "my notes on {}",
    ],
    closers: &[
        "details in the link",
        "more on Monday",
        "see page four",
        "asking for a colleague",
        "will report back",
        "it starts at seven",
        "the list is sorted by date",
        "part two follows",
        "any answers welcome",
        "source: the town website",
        "about twenty minutes from here",
        "as announced in March",
    ],
    tags: &["question", "news", "notes", "weekly", "agenda", "survey"],
    emoji: &["🤔", "📌", "📷", "📰", "🗓", "👀"],
    link_share: 0.35,
};

pub(super) static POSITIVE: Parts = Parts {
    openers: &[
        "yay!",
        "wow,",
        "good news:",
        "best day ever:",
        "oh how lovely,",
        "so happy:",
        "hooray,",
        "guess what,",
        "feeling great,",
        "finally!",
        "I have to say,",
        "woohoo,",
        "big smile:",
        "made it!",
    ],
    bodies: &[
        "{} made my whole day",
        "I absolutely love {}",
        "{} is the best thing this week",
        "thank you so much for {}",
        "so happy with {}",
        "{} was amazing",
        "I can't stop smiling because of {}",
        "what a wonderful surprise, {} was perfect",
        "{} is even better than I hoped",
        "really enjoying {} right now",
        "cheers to everyone behind {}",
        "I am so excited about {}",
        "{} deserves five stars",
        "you all have to try {}, it is fantastic",
        "{} never disappoints, brilliant as ever",
        "nothing beats {} on a day like this",
        "I fell in love with {}",
        "great job on {}, truly",
        "{} turned a good day into a great one",
        "so grateful for {}",
        "{} looks beautiful today",
        "had so much fun with {}",
        "well done, {} is awesome",
        "delighted by {}, would recommend it to anyone",
    ],
    closers: &[
        "life is good",
        "thanks again",
        "I am so lucky",
        "best team ever",
        "can't wait for more",
        "love it",
        "made me laugh out loud",
        "this is just perfect",
        "you are wonderful",
        "highly recommended",
        "what a great day",
        "naïve me thought it could not get better",
        "&lt;3",
        "so proud",
        "sending hugs to everyone",
        "I feel fantastic",
    ],
    tags: &[
        "happy",
        "love",
        "bestday",
        "thankful",
        "winning",
        "goodtimes",
    ],
    emoji: &["😊", "😍", "🎉", "👍", "❤️", "🥳", ":)", ":D", "✨", "😂"],
    link_share: 0.08,
};

pub(super) static TOPICS: [Topic; 14] = [
    Topic {
        tag: "coffee",
        things: &[
            "my morning espresso",
            "the new café on the corner",
            "this oat latte",
            "the office coffee",
        ],
        negative: &[
            "my coffee is cold and bitter, yuck",
            "spilled a whole cup over my keyboard, I could cry",
        ],
        neutral: &[
            "one cup at eight, one at eleven",
            "the café opens at seven from next week",
        ],
        positive: &[
            "that first sip of coffee is pure joy",
            "the barista drew a fox in my foam, adorable",
        ],
    },
    Topic {
        tag: "trains",
        things: &[
            "the 7:42 train",
            "my commute",
            "the night bus",
            "the new tram line",
        ],
        negative: &[
            "stuck in a dark tunnel for an hour, awful",
            "third cancelled train this week, I hate this line",
        ],
        neutral: &[
            "the 7:42 leaves from platform five today",
            "the tram timetable changes on Sunday",
        ],
        positive: &[
            "the train was early and I got a window seat, lovely",
            "the driver waited for me, what a kind man",
        ],
    },
    Topic {
        tag: "phones",
        things: &[
            "my new phone",
            "this tiny phone battery",
            "the camera on this phone",
            "my old flip phone",
        ],
        negative: &[
            "dropped my phone and the screen is shattered, so upset",
            "battery dead by noon, useless piece of junk",
        ],
        neutral: &[
            "the phone comes in black and in blue",
            "how many megapixels does this one have?",
        ],
        positive: &[
            "this camera takes gorgeous pictures, I am in love",
            "found my lost phone, so relieved and happy",
        ],
    },
    Topic {
        tag: "weather",
        things: &[
            "this weather",
            "the rain in April",
            "the morning fog",
            "a sunny afternoon",
        ],
        negative: &[
            "soaked to the bone and freezing, I hate this rain",
            "cancelled the picnic because of the storm, so sad",
        ],
        neutral: &[
            "12 degrees and cloudy at the harbour",
            "the forecast says wind from the west tomorrow",
        ],
        positive: &[
            "the sun is out and everything feels wonderful",
            "such a beautiful sunset tonight, magical",
        ],
    },
    Topic {
        tag: "football",
        things: &[
            "our goalkeeper",
            "last night's match",
            "the second half",
            "the local team",
        ],
        negative: &[
            "we lost five nil, what an embarrassing game",
            "missed the penalty again, I am heartbroken",
        ],
        neutral: &[
            "kick-off is at three on Saturday",
            "the match was moved to the small stadium",
        ],
        positive: &[
            "last minute winner, what an incredible game",
            "we won the cup, I am over the moon",
        ],
    },
    Topic {
        tag: "concert",
        things: &[
            "the concert last night",
            "the new album",
            "the support band",
            "that drum solo",
        ],
        negative: &[
            "the gig got cancelled and I am devastated",
            "awful sound, could not hear a word, left early",
        ],
        neutral: &[
            "doors open at eight, the band is on at nine",
            "the album has eleven tracks",
        ],
        positive: &[
            "best concert of my life, still dancing",
            "front row tickets, I am so thrilled",
        ],
    },
    Topic {
        tag: "update",
        things: &[
            "the latest update",
            "version nine",
            "this laptop",
            "the app I use for notes",
        ],
        negative: &[
            "the update deleted all my files, I am furious",
            "it crashed three times in an hour, garbage",
        ],
        neutral: &[
            "version 9.2 is available for download",
            "installing updates, 40 minutes left",
        ],
        positive: &[
            "the update fixed everything, so fast now, love it",
            "new dark mode looks great, nice work",
        ],
    },
    Topic {
        tag: "delivery",
        things: &[
            "my parcel",
            "the courier",
            "next-day delivery",
            "the jalapeño pizza I ordered",
        ],
        negative: &[
            "parcel arrived crushed and soaking wet, so angry",
            "waited in all day and nobody came, terrible",
        ],
        neutral: &[
            "the parcel is at the depot according to the tracker",
            "delivery is between two and four",
        ],
        positive: &[
            "parcel came two days early, what a great surprise",
            "the courier was so friendly, made me smile",
        ],
    },
    Topic {
        tag: "cooking",
        things: &[
            "my crème brûlée",
            "grandma's soup",
            "this sourdough loaf",
            "the dinner I made",
        ],
        negative: &[
            "burned the lasagne, the kitchen stinks, worst cook alive",
            "food poisoning all night, I feel horrible",
        ],
        neutral: &[
            "two eggs, flour and a pinch of salt",
            "what goes with roast pumpkin?",
        ],
        positive: &[
            "the cake rose perfectly and tastes delicious",
            "everybody asked for seconds, proudest cook ever",
        ],
    },
    Topic {
        tag: "garden",
        things: &[
            "my tomato plants",
            "the apple tree",
            "the neighbour's hedge",
            "our balcony",
        ],
        negative: &[
            "slugs ate every single lettuce, I am gutted",
            "the frost killed my seedlings, so depressing",
        ],
        neutral: &["sowing peas this weekend", "the hedge is now 1.80 m high"],
        positive: &[
            "first strawberry of the year and it tastes like heaven",
            "the roses bloom and I could not be happier",
        ],
    },
    Topic {
        tag: "school",
        things: &[
            "my maths exam",
            "the history lecture",
            "this essay",
            "our study group",
        ],
        negative: &[
            "failed the exam I studied weeks for, I feel stupid",
            "so much homework, so little sleep, I hate it",
        ],
        neutral: &["the exam is in room 204", "chapter six is due on Thursday"],
        positive: &[
            "passed with top marks, so proud of myself",
            "best lecture this year, I learned so much",
        ],
    },
    Topic {
        tag: "pets",
        things: &[
            "my cat",
            "the neighbour's puppy",
            "our old dog",
            "the parrot next door",
        ],
        negative: &[
            "my dog is sick and I am so worried and sad",
            "the cat shredded my favourite chair, so mad",
        ],
        neutral: &["the vet is open until six", "the puppy is eleven weeks old"],
        positive: &[
            "the puppy fell asleep on my lap, cutest thing ever",
            "my cat purrs like an engine, I adore her",
        ],
    },
    Topic {
        tag: "travel",
        things: &[
            "the hotel by the lake",
            "our weekend trip",
            "the airport queue",
            "the ferry to the island",
        ],
        negative: &[
            "they lost my suitcase and nobody helps, horrible",
            "flight delayed nine hours, sleeping on the floor, hell",
        ],
        neutral: &[
            "boarding at gate 14 in ten minutes",
            "the ferry runs every two hours",
        ],
        positive: &[
            "woke up to a stunning view of the sea, bliss",
            "free upgrade on the flight, best trip ever",
        ],
    },
    Topic {
        tag: "work",
        things: &[
            "the Monday meeting",
            "my new desk",
            "our project",
            "the late shift",
        ],
        negative: &[
            "worked all weekend and got shouted at, I hate this job",
            "they cut my hours again, I feel terrible",
        ],
        neutral: &[
            "the meeting is now at half past ten",
            "on the late shift until Friday",
        ],
        positive: &[
            "got the job, I am so happy I could sing",
            "the whole team stayed to help, amazing people",
        ],
    },
];
