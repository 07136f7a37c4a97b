"""Time steps of noise-step's local probes against the exact local gradient, and their directions against one jvp each.

    python -m benchmarks.local_probes [--repeats 7] [--precision float32] [--threads 1] [--clock cpu]

Steps are whole training steps on made-up images of the same net, in turn, in one process. The second part is one
stage's tail (layer norm, ReLU, head; 512 units, 10 classes, a batch of 500): 64 directions of every example at once,
and the same 64 by one `torch.func.jvp` each.
"""

import argparse
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp

from benchmarks.machine import Ratio, add_clock, alternating, made_up, ready, use_clock
from sidestep.gradients.activities import cotangent
from sidestep.gradients.probed_tail import ProbedTail
from sidestep.noise import Noise
from sidestep.rules import NoiseStep
from sidestep.training.options import Compute

NETS = {
    "MLP, twice 512, batch 500": ("mnist", {"hidden": (512, 512)}, 500),
    "MLP, three times 1024, batch 500": ("mnist", {"hidden": (1024,) * 3}, 500),
    "conv net, 64, 128 and 256 channels, batch 100": ("cifar10", {"net": "conv", "hidden": (64, 128, 256)}, 100),
}


def steps(precision: str, repeats: int) -> None:
    """Print a line for each net and number of directions."""
    compute = Compute.find("cpu", precision)
    for title, (data, net, batch) in NETS.items():
        rules = {"exact local gradient": NoiseStep(norm="layer", **net)}
        for directions in (16, 64, None):
            name = f"{directions or 'all'} directions"
            rules[name] = NoiseStep(estimator="local-probes", directions=directions, **net)
        sides = [ready(rule, made_up(data, 2 * batch), compute, batch=batch) for rule in rules.values()]
        runs = [lambda loop=loop, state=state: loop.take_step(state) for loop, state in sides]  # type: ignore[misc]
        times = alternating(runs, repeats)
        for name, seconds in zip(rules, times, strict=True):
            ratio = Ratio.of(seconds, times[0])
            print(f"{title}: {name}: {1000 * statistics.median(seconds):.1f} ms a step, {ratio} the exact one's")


def tail(repeats: int, batch: int = 500, width: int = 512, classes: int = 10, groups: int = 64) -> None:
    """Print directional derivatives a second, all together and one by one."""
    noise = Noise(0)
    outputs, head = noise.normal(batch * width).view(batch, width), noise.normal(classes * width).view(classes, width)
    labels = noise.stream("labels").integers(batch, classes)
    signs = noise.stream("signs").signs(batch * width).view(batch, width).float()

    def together() -> Tensor:
        normed, _, scale = torch.native_layer_norm(outputs, (width,), None, None, 1e-5)
        at_logits, _ = cotangent(normed.relu() @ head.T, labels)
        return ProbedTail(normed, scale, head, at_logits).gradient(signs, groups)

    def one_by_one() -> Tensor:
        def losses(z: Tensor) -> Tensor:
            return F.cross_entropy(F.layer_norm(z, (width,)).relu() @ head.T, labels, reduction="none")

        found = torch.zeros_like(signs)
        for group in range(groups):
            direction = torch.zeros_like(signs)
            direction[:, group::groups] = signs[:, group::groups]
            found.addcmul_(direction, jvp(losses, (outputs,), (direction,))[1][:, None])
        return found

    times = alternating([one_by_one, together], repeats)
    rates = [groups * batch / statistics.median(seconds) for seconds in times]
    print(
        f"{groups} directions of {batch} examples through one tail: {rates[1]:,.0f} derivatives a second together, "
        f"{rates[0]:,.0f} by one jvp each: {Ratio.of(*times)}"
    )


def main() -> None:
    """Parse the options and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", default="float32", choices=("auto", "float32", "bfloat16"))
    add_clock(parser)
    given = parser.parse_args()
    use_clock(given.clock, given.threads or 1)
    with torch.no_grad():
        tail(given.repeats)
    steps(given.precision, given.repeats)


if __name__ == "__main__":
    main()
