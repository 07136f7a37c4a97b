"""Text from a trained net of next tokens, one token after another.

p_t = softmax(net(x_(t - L + 1) .. x_t))        x_(t + 1) ~ p_t^(1 / temperature), by the counter noise at t
"""

import torch
from torch import Tensor

from sidestep.checks import check_range, check_whole
from sidestep.errors import InputError
from sidestep.keywords import known_keywords
from sidestep.noise import Noise
from sidestep.rules.protocol import Task
from sidestep.training.evaluate import check_readings
from sidestep.training.trained import Run

__all__ = ["generate"]


@known_keywords()
def generate(
    run: Run, prompt: str, length: int = 200, temperature: float = 1.0, seed: int = 0, reading: str | None = None
) -> str:
    """Return the text that follows a prompt: the same for the same seed, on the same processor and torch version.

    Tokens are characters where all that the net knows are; otherwise words, with spaces between them. The net sees the
    last tokens, as many as rows that it was trained on have.

    Args:
        run: trained on rows of tokens, with the next one at each place as target.
        prompt: what comes before, one token or more.
        length: how many tokens to draw.
        temperature: 1 draws from the net's own probabilities, less from the likelier tokens; 0 takes the likeliest.
        seed: of the draws.
        reading: one of the rule's readings; the first by default.

    Raises:
        InputError: for a prompt with a token that the net does not know, or a run whose outputs are no next tokens.
    """
    name = reading or run.rule.readings[0]
    check_readings(run.rule, [name])
    check_whole(1, 1 << 24, length=length)
    check_range(0, 100, temperature=temperature)
    ids, noise = _known(run.task, prompt), Noise(seed).stream("generate")
    begin = len(ids)
    for step in range(length):
        chances = _next(run, ids, name, check=step == 0)
        ids.append(int(chances.argmax()) if temperature == 0 else _draw(chances, temperature, noise.at(step)))
    between = "" if _characters(run.task) else " "
    return between.join(run.task.class_names[index] for index in ids[begin:])


def _known(task: Task, prompt: str) -> list[int]:
    """The prompt's tokens by number."""
    if task.inputs != "tokens" or task.targets != "tokens":
        raise InputError(
            f"text comes from nets of next tokens, and this one was trained on inputs that are {task.inputs} with "
            f"targets that are {task.targets}; train one on a text, sidestep train RULE --data text.txt, by a rule "
            "that takes tokens (sidestep rules)"
        )
    number = {token: index for index, token in enumerate(task.class_names)}
    tokens = list(prompt) if _characters(task) else prompt.split()
    kind = "character" if _characters(task) else "token"
    if not tokens:
        raise InputError(f"the prompt needs one {kind} or more, got {prompt!r}")
    for place, token in enumerate(tokens, start=1):
        if token not in number:
            raise InputError(
                f"the prompt's {kind} {token!r} (number {place}) is none that the net knows; it knows {len(number):,}: "
                f"{' '.join(map(repr, task.class_names[:100]))}{' and more' if len(number) > 100 else ''}"
            )
    return [number[token] for token in tokens]


def _characters(task: Task) -> bool:
    return all(len(token) == 1 for token in task.class_names)


def _next(run: Run, ids: list[int], reading: str, check: bool) -> Tensor:
    """Probabilities of the next token, (vocabulary,), float64.

    Rows have the length trained on: a shorter one is filled behind, which a causal net does not see.
    """
    length = run.task.shape[0]
    seen = ids[-length:]
    place, fill = len(seen) - 1, length - len(seen)
    rows = [seen + [number] * fill for number in ((0, 1) if check and fill else (0,))]
    found = run.predict(torch.tensor(rows), reading)[:, place].double()
    if len(rows) > 1 and not torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-7):
        raise InputError(
            "the net's answer at a place depends on later tokens, so that it tells what it was shown and no text comes "
            "from it; train a causal net"
        )
    return found[0]


def _draw(chances: Tensor, temperature: float, noise: Noise) -> int:
    """The token at which the summed probabilities pass a uniform number."""
    weights = (chances.log() / temperature).softmax(dim=0)
    sums = weights.cumsum(dim=0)
    point = noise.uniform(1).double() * sums[-1]
    return int(torch.searchsorted(sums, point, right=True).clamp_max(len(sums) - 1))
