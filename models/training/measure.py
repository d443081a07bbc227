"""What predicted labels are worth: recall, accuracy, F1, and how far a confidence can be believed."""

import json

import numpy as np

from texts import LABELS, NEUTRAL, TWO_CLASS_SOURCES


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
            "accuracy": round(float((y == predicted).mean()), 4),
            "calibration_error": round(calibration_error(y, logits), 4), "f1": f1}


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


def calibration_error(y, logits, bins=10):
    """Returns the expected calibration error: how far, on average, the share of hits is from the confidence.

    Equal bins of the greatest probability, weighted by their rows (Guo et al. 2017, On Calibration of Modern Neural
    Networks, section 2).
    """
    confidence, hit = probabilities(logits).max(1), logits.argmax(1) == np.asarray(y)
    at = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(hit[at == bin].mean() - confidence[at == bin].mean()) * (at == bin).mean()
            for bin in range(bins) if (at == bin).any()]
    return float(sum(gaps))


def probabilities(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def balance(y, logits, priors):
    """Returns the shift of the logits by which macro recall on these rows is best, and the temperature that follows.

    Macro recall weighs the classes alike while tweets do not: without a shift by the log of the priors the rarest
    class is guessed too seldom. The temperature brings confidence and share of hits together afterwards.
    """
    taus = [0.0, 0.25, 0.5, 0.75, 1.0]
    recalls = {tau: figures(y, logits - tau * np.log(priors))["macro_recall"] for tau in taus}
    tau = max(taus, key=lambda tau: recalls[tau])
    shift = -tau * np.log(priors)
    temperatures = np.arange(0.6, 2.5, 0.02)
    errors = [calibration_error(y, (logits + shift) / temperature) for temperature in temperatures]
    # The middle of the good ones: the least alone would follow the noise of a few rows.
    good = temperatures[np.array(errors) <= min(errors) + 0.005]
    temperature = float(np.median(good))
    print(f"validation macro recall by tau: {recalls}; chosen {tau}; temperature {temperature:.2f}, "
          f"calibration error {calibration_error(y, logits + shift):.3f} -> "
          f"{calibration_error(y, (logits + shift) / temperature):.3f}", flush=True)
    return shift.astype(np.float32), temperature
