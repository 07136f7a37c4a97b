"""Checks of single steps: what an estimate may read and write, what decide and apply do, and who is trained."""

import torch

from sidestep.nets.trained import trained
from sidestep.testing.subject import Subject, copied, difference, expect, tensors_of, weights_of

__all__ = [
    "apply_repeats",
    "decide_leaves_the_net",
    "estimate_follows_the_seed",
    "estimate_leaves_the_net",
    "frozen_stays",
    "losses_are_named",
    "net_follows_the_seed",
    "torch_generator_stays",
    "units_cover",
]


_STEPS = 20  # of evidence, say, that accumulates before a weight moves


def net_follows_the_seed(subject: Subject) -> None:
    """`build` makes the same net from the same seed, and another from another."""
    first, again, other = (subject.net(seed).state_dict() for seed in (0, 0, 1))
    name = difference(first, again)
    expect(name is None, f"build made two nets of one seed that differ in {name}; draw initial weights from `noise`")
    expect(difference(first, other) is not None, "build makes the same net of every seed; draw weights from `noise`")


def torch_generator_stays(subject: Subject) -> None:
    """Neither `build` nor `estimate` moves torch's own generator, which belongs to the user."""
    state = torch.get_rng_state()
    subject.estimate(subject.net())
    moved = not torch.equal(state, torch.get_rng_state())
    expect(not moved, "build or estimate draws from torch's own generator; draw inside `with noise.torch_seeded():`")


def estimate_leaves_the_net(subject: Subject) -> None:
    """`estimate` writes neither weights nor buffers, to the bit, and leaves no `.grad` behind."""
    net = subject.net()
    before = copied(net)
    subject.estimate(net, 3)
    name = difference(before, net.state_dict())
    expect(name is None, f"estimate has changed {name}; an update says what changes, and apply writes it")
    left = [name for name, parameter in net.named_parameters() if parameter.grad is not None]
    expect(not left, f"estimate left a .grad behind on {left[:1]}; take torch.autograd.grad, or `gradients_of`")


def estimate_follows_the_seed(subject: Subject) -> None:
    """`estimate` gives the same bits for the same net, batch and noise, however often it is asked."""
    net = subject.net()
    first, again, other = (tensors_of(subject.estimate(one, 3)) for one in (net, net, subject.net()))
    for second, of in ((again, "when it is called again"), (other, "on another net of the same seed")):
        name = difference(first, second)
        expect(name is None, f"estimate gives other bits {of}, in {name}; draw what is random from `noise`")


def losses_are_named(subject: Subject) -> None:
    """The losses of an update are finite numbers, called `unit: term`."""
    losses = subject.estimate(subject.net()).losses
    expect(bool(losses), "an update has no losses; progress and the check for NaN show them")
    for name, value in losses.items():
        expect(": " in name, f"the loss {name!r} is not called `unit: term`, such as 'net: cross-entropy'")
        finite = value.numel() == 1 and bool(value.isfinite())
        expect(finite, f"the loss {name!r} must be one finite number, shape (), got {value}")
        expect(not value.requires_grad, f"the loss {name!r} holds on to its graph, and its memory; detach it")


def units_cover(subject: Subject) -> None:
    """`units` names every parameter that is trained, once."""
    net = subject.net()
    names = [name for names in subject.rule.units(net).values() for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    expect(not twice, f"{twice[:1]} belongs to several units; parts that train alone share no parameter")
    missing, unknown = sorted(set(trained(net)) - set(names)), sorted(set(names) - set(trained(net)))
    expect(not missing, f"{missing[:1]} is in no unit, so that no optimiser has it")
    expect(not unknown, f"units names {unknown[:1]}, which the net does not train")


def decide_leaves_the_net(subject: Subject) -> None:
    """`decide` writes no weights."""
    net = subject.net()
    update, optimizer, before = subject.estimate(net), subject.rule.optimizer(net), copied(net)
    subject.rule.decide(net, update, optimizer)
    name = difference(before, net.state_dict())
    expect(name is None, f"decide has changed {name}; what is decided is written by apply")


def apply_repeats(subject: Subject) -> None:
    """`apply` writes the same bits of the same updates into another net, and some weight moves within twenty steps."""
    rule, nets = subject.rule, [subject.net(), subject.net()]
    optimizers, before = [rule.optimizer(net) for net in nets], weights_of(nets[0])
    for step in range(_STEPS):
        update = rule.decide(nets[0], subject.estimate(nets[0], step), optimizers[0])
        for net, optimizer in zip(nets, optimizers, strict=True):
            rule.apply(net, update, optimizer)
        name = difference(nets[0].state_dict(), nets[1].state_dict())
        expect(name is None, f"apply writes other bits into {name} of a net that got the same updates")
        if step >= 2 and difference(before, weights_of(nets[0])) is not None:
            return
    expect(False, f"{_STEPS} steps have moved no weight")


def frozen_stays(subject: Subject) -> None:
    """Parameters with `requires_grad` False keep their bits, weight decay or not, while others are trained."""
    net = subject.net()
    optimizer, parameters = subject.rule.optimizer(net), trained(net)
    first = next(iter(parameters)).rpartition(".")[0]
    still = {name: p for name, p in parameters.items() if name.rpartition(".")[0] == first}
    if not subject.rule.takes.frozen or len(still) == len(parameters) or not all(map(_is_float, still.values())):
        return
    for parameter in still.values():
        parameter.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in still.items()}
    for step in range(2):
        update = subject.rule.decide(net, subject.estimate(net, step), optimizer)
        subject.rule.apply(net, update, optimizer)
    name = difference(before, still)
    expect(name is None, f"{name} is frozen (requires_grad is False) and has changed; `nets.trained` says what trains")


def _is_float(parameter: torch.Tensor) -> bool:
    return parameter.is_floating_point()
