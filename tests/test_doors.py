"""What a rule refuses at its door: a net that it did not build, whichever method is called with it."""

import inspect

import pytest
import torch
from torch import nn

from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules import (
    RULES,
    Backprop,
    Batch,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    LocalLoss,
    NoiseStep,
    Task,
)
from sidestep.update import Dense

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
METHODS = (
    "units",
    "optimizer",
    "estimate",
    "estimates",
    "true_gradients",
    "decide",
    "apply",
    "predict",
    "diagnostics",
    "failure",
)


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def call(rule, method, net):
    """Call a method with a net, and with something right for each of its other arguments."""
    arguments = {
        "batch": Batch(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4),
        "noise": Noise(0),
        "update": Dense({}),
        "optimizer": torch.optim.SGD(plain().parameters(), lr=0.1),
        "images": torch.zeros(2, 1, 8, 8),
    }
    function = getattr(rule, method)
    found = function(net, *(arguments[name] for name in inspect.signature(function).parameters if name in arguments))
    return list(found) if inspect.isgenerator(found) else found


@pytest.mark.parametrize("kind", RULES.values(), ids=RULES)
@pytest.mark.parametrize("method", METHODS)
def test_a_net_of_the_user_s_own_is_refused_in_a_sentence_that_says_what_to_call(kind, method):
    rule = kind()
    if not hasattr(rule, method):
        pytest.skip(f"{rule.name} has no {method}")
    net = plain()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(
        InputError, match=r"(?s)^(?=.*Sequential)(?=.*rule\.build\(task.*train\(rule, data, module=)"
    ) as e:
        call(rule, method, net)
    assert str(e.value).startswith(rule.name)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("rule", "other"),
    [
        (FeedbackAlignment(hidden=(8, 8)), DirectFeedbackAlignment(hidden=(8, 8))),
        (FeedbackAlignment(hidden=(8, 8)), FeedbackAlignment(hidden=(8, 8), feedback="sign-symmetric")),
        (DirectFeedbackAlignment(hidden=(8, 8)), LocalLoss(hidden=(8, 8))),
        (LocalLoss(hidden=(8, 8)), FeedbackAlignment(hidden=(8, 8))),
        (LocalLoss(hidden=(8,)), FeedbackAlignment(hidden=(8,))),
        (LocalLoss(hidden=(8, 8), similarity=0.5), LocalLoss(hidden=(8, 8))),
        (Backprop(net="mlp", norm="batch"), FeedbackAlignment(hidden=(8, 8))),
        (NoiseStep(hidden=(8, 8)), Backprop(net="mlp", hidden=(8, 8), ternary=True, deep_supervision=0.3)),
        (NoiseStep(hidden=(8, 8)), NoiseStep(hidden=(8, 8), estimator="rank-one")),
    ],
    ids=lambda rule: rule.name,
)
def test_a_net_of_the_same_class_that_another_rule_built_is_refused(rule, other):
    net = other.build(TASK, Noise(0), None, None)
    call(other, "estimate", net)
    for method in ("estimate", "apply"):
        with pytest.raises(InputError, match="another rule or for other hyper-parameters"):
            call(rule, method, net)
