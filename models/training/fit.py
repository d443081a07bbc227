"""Training: examples in batches of similar length, from labels made by people, by emoticons, or by a teacher."""

import random
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from network import pad
from texts import LABELS, NEUTRAL


@dataclass
class Example:
    """A text, tokenized in several spellings, and what is known of its label."""

    spellings: list
    # The label, or -1 if only the teacher says anything.
    label: int = -1
    # Whether the label tells nothing of neutral.
    two_class: bool = False
    # The teacher's logits, where there is one.
    teacher: np.ndarray | None = None


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


def steps_of(passes, size, draw):
    """Returns the steps of all passes; a step is a list of token ids with their examples."""
    steps = []
    for examples in passes:
        ids = [draw.choice(example.spellings) for example in examples]
        for batch in batches([len(one) for one in ids], size, draw):
            steps.append([(ids[at], examples[at]) for at in batch])
    return steps


def loss_of(logits, examples, two_class_weight, label_weight):
    """Returns the loss of a batch: the labels' cross entropy, and the distance from the teacher's opinion."""
    labels = torch.tensor([example.label for example in examples])
    two = torch.tensor([example.two_class for example in examples])
    # A two-class row only says which of its two classes it is: its neutral logit gets no gradient.
    neutral = torch.arange(len(LABELS)) == NEUTRAL
    open_to = logits.masked_fill(two[:, None] & neutral[None, :], -1e4)
    weight = torch.where(labels < 0, 0.0, torch.where(two, two_class_weight, 1.0))
    losses = weight * F.cross_entropy(open_to, labels.clamp(min=0), reduction="none")
    if examples[0].teacher is None:
        return losses.mean()
    teacher = torch.from_numpy(np.stack([example.teacher for example in examples])).softmax(1)
    return (label_weight * losses + F.cross_entropy(logits, teacher, reduction="none")).mean()


def fit(model, passes, seed, learning_rate, batch=32, two_class_weight=0.5, label_weight=0.0, max_steps=0):
    """Trains the model in place: every pass is a list of examples, drawn in random order."""
    draw = random.Random(seed)
    steps = steps_of(passes, batch, draw)[: max_steps or None]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
        lr=learning_rate, fused=True)
    warm = max(1, len(steps) // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: min((at + 1) / warm, (len(steps) - at) / max(1, len(steps) - warm)))

    model.train()
    started, cpu, seen, running = time.time(), time.process_time(), 0, None
    for number, step in enumerate(steps, 1):
        ids, mask = pad([ids for ids, _ in step])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(ids, mask)
        loss = loss_of(logits, [example for _, example in step], two_class_weight, label_weight)
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
