"""A new output layer before the first step: ridge regression on the model's own features, without derivatives.

    W = s Y^T X (X^T X + l I)^-1            Y: labels as 0 and 1; both centred, X at standard deviations of 1

The strength l is the one with the least squared error where every text is left out once, which has a closed form, and
the scale s then the one with the least cross-entropy of these predictions (Allen 1974; Golub, Heath, Wahba 1979).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from sidestep.integrations.tuning.net import Rows, TextNet, head_of
from sidestep.integrations.tuning.recipe import layer_of_text, text_of_layer
from sidestep.noise import Noise

__all__ = ["features", "fit_head", "ridge"]

_BATCH = 32
_STRENGTHS = [10.0**power for power in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1)]
_SCALES = [2.0**power for power in range(-2, 4)]  # no further: a loss of zero teaches nothing
_MOST = 4096  # texts that the layer is fitted to


def fit_head(net: TextNet, rows: Rows, labels: Tensor) -> tuple[str, str] | None:
    """Fit the output layer to texts and their labels, (texts,), and return it as text; None where there is none."""
    head = head_of(net.model)
    if head is None:
        return None
    if len(rows) > _MOST:  # drawn, since tables are often sorted by label
        drawn = Noise(net.recipe.seed).stream("tune").stream("fit").permutation(len(rows))[:_MOST].sort().values
        rows, labels = [rows[place] for place in drawn.tolist()], labels[drawn]
    found = features(net, rows, head)
    if found is None:
        return None
    weight, bias = ridge(found, labels, head.out_features)
    if not (weight.half().isfinite().all() and bias.half().isfinite().all()):  # features that hardly differ
        return None
    text = (text_of_layer(weight), text_of_layer(bias))
    with torch.no_grad():
        head.weight.copy_(layer_of_text(text[0], head.weight))
        if head.bias is not None:
            head.bias.copy_(layer_of_text(text[1], head.bias))
    return text


def features(net: TextNet, rows: Rows, head: nn.Linear) -> Tensor | None:
    """Return what the output layer is given for each text, (texts, width); None where that is not one row a text."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    try:
        with torch.no_grad():
            for at in range(0, len(order), _BATCH):
                chosen = order[at : at + _BATCH]
                batch = net.batch(rows, chosen)
                net.logits(batch)
                if seen[-1].ndim == 3:  # of every token: the model takes the last one's
                    last = batch["attention_mask"].sum(1) - 1
                    seen[-1] = seen[-1][torch.arange(len(chosen)), last]
                if seen[-1].shape != (len(chosen), head.in_features):
                    return None
    finally:
        hook.remove()
    return torch.cat(seen)[torch.tensor(order).argsort()]


def ridge(inputs: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return weight, (classes, width), and bias, (classes,), from inputs (texts, width) and labels (texts,).

    >>> weight, bias = ridge(torch.tensor([[1.0], [2.0], [-1.0], [-2.0]]), torch.tensor([0, 0, 1, 1]), 2)
    >>> bool(weight[0] > 0 > weight[1])
    True
    """
    inputs, targets = inputs.double(), one_hot(labels.to(inputs.device), classes).double()
    spread = 1e-6 + (inputs.std(0) if len(inputs) > 1 else torch.zeros_like(inputs[0]))  # one text has none
    inputs = inputs / spread
    means, shares = inputs.mean(0), targets.mean(0)
    values, axes = _principal(inputs - means)
    along = (inputs - means) @ axes  # (texts, axes)
    matched = along.T @ (targets - shares)  # (axes, classes)
    best, chosen, left_out = float("inf"), 1.0, targets
    for strength in (share * float(values.mean()) + 1e-12 for share in _STRENGTHS):
        shrunk = 1 / (values + strength)
        own = (along.square() * shrunk).sum(1, keepdim=True) + 1 / len(inputs)  # of a text in its own prediction
        fitted = along @ (shrunk[:, None] * matched) + shares
        without = targets - (targets - fitted) / (1 - own).clamp_min(1e-6)
        error = float((targets - without).square().mean())
        if error < best:
            best, chosen, left_out = error, strength, without
    scale = min(_SCALES, key=lambda factor: float(cross_entropy(factor * left_out, labels.to(inputs.device))))
    weight = scale * (axes @ (matched / (values + chosen)[:, None])).T
    bias = scale * (shares - shares.mean()) - weight @ means  # the same for all classes changes nothing
    return (weight / spread).float(), bias.float()


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared lengths of rows along the axes that they differ along, and these axes, (width, axes)."""
    wide = len(centred) < centred.shape[1]
    values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    kept = values > 1e-10 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    return values, centred.T @ vectors / values.sqrt() if wide else vectors
