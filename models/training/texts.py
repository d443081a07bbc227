"""The tweets that models learn from: reading them, spelling them, and keeping some aside."""

import csv
import hashlib
import html
import io
import json
import re

import zstandard

LABELS = ["negative", "neutral", "positive"]
NEUTRAL = LABELS.index("neutral")
# Label sets made from emoticons: they know no neutral tweet, so their rows say nothing about that class.
TWO_CLASS_SOURCES = {"sentiment140"}

MENTION = re.compile(r"@\w+")
LINK = re.compile(r"https?://\S+|www\.\S+")
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
SPACE = re.compile(r"\s+")
MASKED_MENTION = re.compile(r"\bUSER\b")
MASKED_LINK = re.compile(r"\bURL\b")


def decode(text):
    """Returns the text with HTML entities and literal \\uXXXX escapes decoded."""
    text = ESCAPE.sub(lambda found: chr(int(found[1], 16)), html.unescape(text))
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def without_mentions(text):
    """Returns the text as the pipeline scores it: mentions removed, everything else kept."""
    return SPACE.sub(" ", MENTION.sub("", text)).strip()


# Each tweet is trained in one of these spellings, drawn anew in every epoch, so that the model does not depend on
# how the caller writes mentions and links.
SPELLINGS = [
    lambda text: text,
    without_mentions,
    lambda text: LINK.sub("http", MENTION.sub("@user", decode(text))),
    lambda text: SPACE.sub(" ", LINK.sub("", MENTION.sub("", decode(text)))).strip(),
]
MASKED = 2


def lines_of(path):
    """Yields the lines of a compressed text file."""
    with open(path, "rb") as file:
        yield from io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="")


def read_tweets(path, exclude):
    """Returns the rows of a compressed JSON lines file as dictionaries, without the excluded sources."""
    rows = [json.loads(line) for line in lines_of(path)]
    for row in rows:
        row["corpus"] = row["source"].split("_")[0]
        row["y"] = LABELS.index(row["label"])
    return [row for row in rows if row["corpus"] not in exclude]


def held_out(text, seed, percent):
    """Returns whether the text belongs to the validation split; equal texts always fall on the same side."""
    digest = hashlib.sha256(f"{seed}\n{without_mentions(text).lower()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < percent


def read_unlabelled(path):
    """Returns the texts of a compressed CSV file of label and text, in the order of the file.

    Its mentions are `USER` and its links `URL`: they are given the spelling of the other files. Its labels, made from
    emoticons, are not used.
    """
    return [MASKED_LINK.sub("http", MASKED_MENTION.sub("@user", text)) for _, text in csv.reader(lines_of(path))]
