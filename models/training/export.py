"""Writes a classifier as a model directory, and checks that the file computes what the classifier does."""

import json
import math

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from network import EPSILON, HEADS, MAX_TOKENS, SPECIAL, Classifier, by_torch, logits_of, pad
from texts import LABELS


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

    # 3. The mean over real tokens and the head; the head is tiny and stays float32. A product with the mask adds the
    #    tokens up: ONNX Runtime's ReduceSum adds those of a single text in another order than those of several.
    total = g.node("MatMul", g.node("Unsqueeze", mask, first), x)
    pooled = g.node("Div", g.node("Squeeze", total, first), g.node("ReduceSum", mask, first, keepdims=1))
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
        "intermediate_size": model.layers[0].up.out_features, "hidden_act": "gelu", "layer_norm_eps": EPSILON,
        "max_position_embeddings": MAX_TOKENS, "type_vocab_size": 2, "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": 0, "pooling": "mean", "problem_type": "single_label_classification",
        "id2label": {str(id): label for id, label in enumerate(LABELS)},
        "label2id": {label: id for id, label in enumerate(LABELS)}})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Left alone, ONNX Runtime fuses DequantizeLinear and MatMul into MatMulNBits, which rounds the activations to
    # int8 as well: logits then move by up to 0.05. Switched off, it computes in float32.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def by_onnx(path):
    """Returns a function from ids and mask to the logits that the file computes."""
    loaded = session(path)
    return lambda ids, mask: loaded.run(["logits"], {
        "input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})[0]


def rounded(model):
    """Returns the classifier with weights as the file holds them."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in state.items():
        if name == "word.weight" or (name.startswith("layers.") and value.ndim == 2):
            values, scale = quantize(value.numpy(), axis=0)
            state[name] = torch.from_numpy(values * scale)
    twin = Classifier(*model.word.weight.shape, model.layers[0].up.out_features, len(model.layers)).eval()
    twin.load_state_dict(state)
    return twin


# Texts for others to compare their scores on: short and long, empty, with emoji, links, names and nothing at all.
TEXTS = [
    "", " ", "ok", ":)", "what a wonderful day", "this is terrible", "it is what it is", "not bad at all",
    "I can't complain about the service", "never again!!!", "the meeting is at nine", "GREAT, another delay",
    "so happy \U0001f600 to be here", "http://t.co/abc", "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e", "a" * 300, "good " * 200,
    "My flight was cancelled, nobody told us anything, and the bag is still in another town.",
    "They said it would be boring. It was not: I laughed from the first minute to the last, and so did the whole room.",
    "&amp; then @someone said #hope is \\u2019all\\u2019 we have",
]


def write_reference(model, tokenizer, path):
    """Writes what torch says of some texts, with the weights as the file holds them: the probability of each label."""
    ids = [np.array(encoding.ids) for encoding in tokenizer.encode_batch(TEXTS)]
    probabilities = torch.from_numpy(logits_of(by_torch(rounded(model)), ids)).softmax(1).tolist()
    write_json(path, [{"text": text, "probabilities": row} for text, row in zip(TEXTS, probabilities)])


def check(model, path, ids):
    """Compares the file with the model in memory, and a padded batch with an unpadded one."""
    ours, theirs = logits_of(by_torch(model), ids), logits_of(by_onnx(path), ids)
    print(f"int8 file against float32 torch, {len(ids)} texts: largest logit difference "
          f"{np.abs(ours - theirs).max():.4f}, mean {np.abs(ours - theirs).mean():.4f}, "
          f"same label {(ours.argmax(1) == theirs.argmax(1)).mean():.4f}")

    # The same rounding applied in torch: what is left is the arithmetic of the two runtimes.
    exact = np.abs(logits_of(by_torch(rounded(model)), ids) - theirs).max()
    print(f"int8 file against torch with the same int8 weights: largest logit difference {exact:.1e}")
    assert exact < 1e-3, "the exported graph does not compute what the model computes"

    some = ids[:32]
    padded, mask = pad(some)
    together = by_onnx(path)(padded.numpy(), mask.numpy().astype(np.int64))
    drift = np.abs(together - theirs[: len(some)]).max()
    print(f"padded batch against unpadded: largest logit difference {drift:.1e}")
    assert drift < 1e-3, "padding changes the logits"
