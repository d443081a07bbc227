"""The smallest model: a sum over hashed n-grams of bytes and words, taught by the opinion of the large one.

A text is lower-cased where it is ASCII, links and mentions become one word each, blanks become one space, and one is
put before and behind. Its features are all runs of 2 to 6 of its bytes, its words, and pairs of neighbouring words, by
hash. Each has an int8 weight for each label, so a text's sums are exact integers in whatever order they are taken.
`models/src/ngrams.rs` computes the same.
"""

import json
import random
import re
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from texts import LABELS

BUCKET_BITS = 18
BYTE_RUNS = range(2, 7)
# Odd numbers without a pattern; a product's high bits depend on all lower bits of what was multiplied (Knuth, The Art
# of Computer Programming, volume 3, section 6.4, multiplicative hashing).
RUN_FACTOR = 0x9E3779B97F4A7C15
WORD_FACTOR = 0xC2B2AE3D27D4EB4F
PAIR_FACTOR = 0x165667B19E3779F9
ALL = (1 << 64) - 1

WORD = re.compile(rb"[a-z0-9'\x80-\xff]+")
UPPER = bytes.maketrans(bytes(range(65, 91)), bytes(range(97, 123)))


def normalized(text):
    """Returns the bytes of a text as features are taken from them."""
    words = text.encode().translate(UPPER).split()
    return b" %b " % b" ".join(map(plain, words))


def plain(word):
    if word.startswith((b"http://", b"https://", b"www.")):
        return b"http"
    return b"@user" if word.startswith(b"@") else word


def hash_of_word(word):
    value = 0
    for byte in word:
        value = (value * WORD_FACTOR + byte + 1) & ALL
    return value


def features(text, known={}):
    """Returns the buckets of a text's features, with repetitions."""
    text = normalized(text)
    shift = np.uint64(64 - BUCKET_BITS)
    padded = np.frombuffer(text + bytes(8), np.uint8)
    eight = np.lib.stride_tricks.sliding_window_view(padded, 8).copy().view("<u8").reshape(-1)
    runs = [
        (eight[: len(text) - length + 1] & np.uint64((1 << 8 * length) - 1)) * np.uint64(RUN_FACTOR + 2 * length)
        for length in BYTE_RUNS if length <= len(text)]
    words = []
    for word in WORD.findall(text):
        if word not in known:
            known[word] = hash_of_word(word)
        words.append(known[word])
    pairs = [one * PAIR_FACTOR + other & ALL for one, other in zip(words, words[1:])]
    # The last step mixes: sums of neighbouring words differ in low bits only.
    named = np.array(words + pairs, np.uint64) * np.uint64(RUN_FACTOR)
    return (np.concatenate([*runs, named]) >> shift).astype(np.int32)


class Sums(nn.Module):
    """The sums of a text's weights over the root of how many they are, and a bias."""

    def __init__(self):
        super().__init__()
        self.weights = nn.EmbeddingBag(1 << BUCKET_BITS, len(LABELS), mode="sum")
        self.bias = nn.Parameter(torch.zeros(len(LABELS)))
        nn.init.zeros_(self.weights.weight)

    def forward(self, texts):
        """Returns the logits of texts given by their features."""
        counts = torch.tensor([len(text) for text in texts])
        starts = counts.cumsum(0) - counts
        sums = self.weights(torch.from_numpy(np.concatenate(texts)).long(), starts)
        return sums / counts.sqrt()[:, None] + self.bias


def fit_sums(texts, labels, opinions, seed, epochs=3, learning_rate=0.01, batch=512, label_weight=0.3):
    """Returns sums that answer as the teacher does, and as people have labelled where they have: a label is -1 if not."""
    model, draw, started = Sums(), random.Random(seed), time.time()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    orders = [draw.sample(range(len(texts)), len(texts)) for _ in range(epochs)]
    steps = [order[start : start + batch] for order in orders for start in range(0, len(order), batch)]
    labels, opinions = torch.tensor(labels), torch.from_numpy(opinions).float().softmax(1)
    for number, step in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - number / len(steps))
        logits = model([texts[at] for at in step])
        known = torch.where(labels[step] < 0, 0.0, label_weight)
        losses = F.cross_entropy(logits, opinions[step], reduction="none")
        losses += known * F.cross_entropy(logits, labels[step].clamp(min=0), reduction="none")
        loss = losses.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if number % 100 == 0:
            elapsed = time.time() - started
            print(f"step {number}/{len(steps)}  loss {loss.item():.3f}  "
                  f"{elapsed * (len(steps) / (number + 1) - 1):.0f} s left", flush=True)
    return model.eval()


class Rounded:
    """The sums with weights of 8 bits and a scale for each label: what the files hold."""

    def __init__(self, model, shift, temperature):
        weights = model.weights.weight.detach().numpy()
        self.scales = (np.abs(weights).max(0) / 127).astype(np.float32)
        self.weights = np.clip(np.rint(weights / self.scales), -127, 127).astype(np.int8)
        self.biases = ((model.bias.detach().numpy() + shift) / temperature).astype(np.float32)
        self.scales /= np.float32(temperature)

    def logits(self, texts):
        """Returns the logits of texts given by their features."""
        sums = np.stack([self.weights[text].astype(np.int64).sum(0) for text in texts]).astype(np.float32)
        shares = np.float32(1) / np.sqrt(np.array([len(text) for text in texts], np.float32))
        return sums * self.scales * shares[:, None] + self.biases

    def write(self, out):
        """Writes the two files of a model directory."""
        out.mkdir(parents=True, exist_ok=True)
        (out / "ngrams.int8").write_bytes(self.weights.tobytes())
        config = {
            "model_type": "hashed_ngrams", "bucket_bits": BUCKET_BITS,
            "scales": self.scales.tolist(), "biases": self.biases.tolist(),
            "id2label": {str(id): label for id, label in enumerate(LABELS)}}
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
