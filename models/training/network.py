"""The transformer: a trimmed vocabulary, a few layers, the mean over the tokens, a linear head."""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from torch import nn

from texts import LABELS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
HEADS = 12
EPSILON = 1e-12
MAX_TOKENS = 128


def trim_tokenizer(path, texts, least):
    """Returns a tokenizer with the pieces seen `least` times in the texts, and the old ids of the pieces kept.

    Printable ASCII characters stay whatever their count: a word whose piece was dropped falls apart into shorter
    pieces instead of becoming [UNK].
    """
    spec = json.loads(Path(path).read_text(encoding="utf-8"))
    spec["padding"] = None
    spec["truncation"] = {"direction": "Right", "max_length": MAX_TOKENS, "strategy": "LongestFirst", "stride": 0}
    counts = np.zeros(len(spec["model"]["vocab"]), dtype=np.int64)
    for encoding in Tokenizer.from_str(json.dumps(spec)).encode_batch(texts):
        np.add.at(counts, encoding.ids, 1)

    old = spec["model"]["vocab"]
    ascii_pieces = {prefix + chr(code) for code in range(33, 127) for prefix in ("", "##")}
    kept = [piece for piece, id in sorted(old.items(), key=lambda item: item[1])
            if piece not in SPECIAL and (counts[id] >= least or piece in ascii_pieces)]
    pieces = SPECIAL + kept
    vocab = {piece: id for id, piece in enumerate(pieces)}
    spec["model"]["vocab"] = vocab
    for token in spec["added_tokens"]:
        token["id"] = vocab[token["content"]]
    for name, token in spec["post_processor"]["special_tokens"].items():
        token["ids"] = [vocab[name]]
    return Tokenizer.from_str(json.dumps(spec)), [old[piece] for piece in pieces]


def tokenize(tokenizer, texts):
    """Returns the token ids of every text as small arrays."""
    return [np.array(encoding.ids, dtype=np.int32) for encoding in tokenizer.encode_batch(texts)]


class Layer(nn.Module):
    """One post-norm BERT layer."""

    def __init__(self, width, inner, dropout):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, EPSILON) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask):
        batch, seq, width = x.shape
        q, k, v = (f(x).view(batch, seq, HEADS, width // HEADS).transpose(1, 2) for f in (self.q, self.k, self.v))
        # Spelled out: on short texts the fused kernel's way back takes a fifth of the training.
        weights = (q @ k.transpose(2, 3) / math.sqrt(width // HEADS)).masked_fill(~mask, -1e4).softmax(-1)
        mixed = weights.to(v.dtype) @ v
        x = self.norm1(x + self.dropout(self.o(mixed.transpose(1, 2).reshape(batch, seq, width))))
        return self.norm2(x + self.dropout(self.down(F.gelu(self.up(x)))))


class Classifier(nn.Module):
    """Embeddings, layers, the mean over the tokens, and a linear head."""

    def __init__(self, vocabulary, width, inner, layers, dropout=0.1):
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(MAX_TOKENS, width)
        self.segment = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.layers = nn.ModuleList(Layer(width, inner, dropout) for _ in range(layers))
        self.head = nn.Linear(width, len(LABELS))
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids, mask):
        x = self.word(ids) + self.position.weight[: ids.shape[1]] + self.segment.weight[0]
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        weight = mask.unsqueeze(-1).to(x.dtype)
        pooled = (x * weight).sum(1) / weight.sum(1)
        return self.head(self.dropout(pooled)).float()


def pretrained(source, kept_ids, kept_layers):
    """Returns a classifier holding the chosen layers and vocabulary rows of the pretrained encoder."""
    state = {name.removeprefix("bert."): torch.from_numpy(value)
             for name, value in load_file(source / "model.safetensors").items()}
    config = json.loads((source / "config.json").read_text())
    model = Classifier(len(kept_ids), config["hidden_size"], config["intermediate_size"], len(kept_layers))
    ours = {
        "word.weight": state["embeddings.word_embeddings.weight"][kept_ids],
        "position.weight": state["embeddings.position_embeddings.weight"][:MAX_TOKENS],
        "segment.weight": state["embeddings.token_type_embeddings.weight"],
        "norm.weight": state["embeddings.LayerNorm.weight"],
        "norm.bias": state["embeddings.LayerNorm.bias"],
    }
    names = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
             "o": "attention.output.dense", "norm1": "attention.output.LayerNorm",
             "up": "intermediate.dense", "down": "output.dense", "norm2": "output.LayerNorm"}
    for to, of in enumerate(kept_layers):
        for short, long in names.items():
            for part in ("weight", "bias"):
                ours[f"layers.{to}.{short}.{part}"] = state[f"encoder.layer.{of}.{long}.{part}"]
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert set(missing) == {"head.weight", "head.bias"} and not unexpected, (missing, unexpected)
    nn.init.normal_(model.head.weight, std=0.02)
    nn.init.zeros_(model.head.bias)
    return model


def narrowed(teacher, kept_layers, inner):
    """Returns a classifier that begins as some layers of another, their inner width cut to the units that weigh most."""
    width = teacher.word.embedding_dim
    model = Classifier(teacher.word.num_embeddings, width, inner, len(kept_layers))
    state = {name: value for name, value in teacher.state_dict().items() if not name.startswith("layers.")}
    for to, of in enumerate(kept_layers):
        layer = teacher.layers[of].state_dict()
        weight = layer["up.weight"].norm(dim=1) * layer["down.weight"].norm(dim=0)
        units = weight.topk(inner).indices.sort().values
        layer |= {"up.weight": layer["up.weight"][units], "up.bias": layer["up.bias"][units],
                  "down.weight": layer["down.weight"][:, units]}
        state |= {f"layers.{to}.{name}": value for name, value in layer.items()}
    model.load_state_dict(state)
    return model


def pad(ids):
    """Returns the ids of a batch as one tensor, and the mask of its real tokens."""
    longest = max(map(len, ids))
    padded = torch.zeros(len(ids), longest, dtype=torch.long)
    for row, one in enumerate(ids):
        padded[row, : len(one)] = torch.from_numpy(one)
    lengths = torch.tensor([len(one) for one in ids])
    return padded, torch.arange(longest)[None, :] < lengths[:, None]


def same_length_batches(ids, size=64):
    """Returns batches of indices of equal token count, so that nothing is padded."""
    order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
    made = []
    for at in order:
        if made and len(made[-1]) < size and len(ids[made[-1][0]]) == len(ids[at]):
            made[-1].append(at)
        else:
            made.append([at])
    return made


def logits_of(run, ids):
    """Returns the logits of every text, computed by `run(ids, mask)` on batches of equal length."""
    logits = np.zeros((len(ids), len(LABELS)), np.float32)
    for batch in same_length_batches(ids):
        block = np.stack([ids[at] for at in batch]).astype(np.int64)
        logits[batch] = run(block, np.ones_like(block))
    return logits


def by_torch(model, narrow=False):
    """Returns a function from ids and mask to logits; `narrow` computes in bfloat16 where that is faster."""
    def run(ids, mask):
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            return model(torch.from_numpy(ids), torch.from_numpy(mask).bool()).numpy()
    return run
