"""Several labels and real values as what NoProp denoises: embeddings, estimates and answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sidestep import data, train
from sidestep.errors import InputError
from sidestep.nets.noprop.losses import denoising_loss
from sidestep.nets.noprop.stack_readings import ddim_chain
from sidestep.nets.noprop.target_space import target_space
from sidestep.noise import Noise
from sidestep.rules import RULES
from sidestep.rules.protocol import Batch, Task
from sidestep.training import Options

VALUES = Task(
    (4,), ("a", "b"), (0.0,) * 4, (1.0,) * 4, "float32", "features", "values", target_mean=(100.0, -3.0),
    target_std=(20.0, 0.5),
)  # fmt: skip
LABELS = Task((4,), ("a", "b", "c"), (0.0,) * 4, (1.0,) * 4, "float32", "features", "labels")
TASKS = {"values": VALUES, "labels": LABELS}
TARGETS = {
    "values": torch.tensor([[140.0, -3.0], [100.0, -2.0], [60.0, -4.0]]),
    "labels": torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0]]),
}
NOPROP = ("noprop-dt", "noprop-ct", "noprop-fm", "neural-ode")


def outputs_that_know(kind: str) -> torch.Tensor:
    """What a perfect block would give."""
    if kind == "values":
        return torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, -2.0]])
    return (2 * TARGETS["labels"] - 1) * 60.0


@pytest.mark.parametrize("kind", TASKS)
class TestAPerfectBlock:
    """Outputs that know the target lead to the target, whichever way they are read."""

    def test_has_no_loss_and_gives_back_the_targets(self, kind):
        space, outputs, targets = target_space(TASKS[kind]), outputs_that_know(kind), TARGETS[kind]
        rows = torch.eye(targets.shape[1])
        torch.testing.assert_close(space.estimate(outputs, rows), space.embed(targets, rows))
        for loss in ("paper", "clipped", "unweighted", "cross-entropy"):
            each = denoising_loss(loss, outputs, rows, targets, torch.tensor(7.0), 5.0, space=space)
            torch.testing.assert_close(each, torch.zeros(3), atol=1e-6, rtol=0)
        torch.testing.assert_close(space.objective.predictions(outputs), targets.float(), atol=1e-4, rtol=1e-6)

    @pytest.mark.parametrize("start", range(3))
    def test_leads_along_the_line_that_is_drowned_in_noise(self, kind, start):
        """From a z_0 of q(z_0 | y) the deterministic chain ends at the z_T of q(z_T | y) with the same noise."""
        net = RULES["noprop-dt"](blocks=4).build(TASKS[kind], Noise(1), None, None).eval()
        normal = Noise(2).sub(start).normal(3 * net.dimension).view(3, -1)
        outputs = outputs_that_know(kind)
        for index in range(4):
            net.block(index).logits = lambda _rows, _latent: outputs
        first = net.noised_label(TARGETS[kind], 0, normal)
        found = ddim_chain(net, [torch.zeros(3, 1)] * 4, first).latent
        torch.testing.assert_close(found, net.noised_label(TARGETS[kind], 4, normal), atol=1e-5, rtol=1e-5)

    def test_is_read_as_the_target_from_clean_latents(self, kind):
        net = RULES["noprop-fm"]().build(TASKS[kind], Noise(1), None, None)
        answer = net.probabilities(net.label_embedding(TARGETS[kind]))
        if kind == "values":
            torch.testing.assert_close(answer, TARGETS[kind])
        else:  # the posterior of -1 and 1 at distance 0 and 2, with a variance of 1
            right = torch.where(TARGETS[kind] > 0, answer, 1 - answer)
            torch.testing.assert_close(right, torch.full((3, 3), float(1 / (1 + np.exp(-2)))))


def test_the_estimate_of_labels_is_the_expected_embedding():
    space, outputs = target_space(LABELS), Noise(5).normal(6).view(2, 3)
    chances = space.objective.predictions(outputs)
    rows, ones = torch.eye(3), torch.ones(2, 3)
    expected = chances * space.embed(ones, rows) + (1 - chances) * space.embed(0 * ones, rows)
    torch.testing.assert_close(space.estimate(outputs, rows), expected)


@pytest.mark.parametrize("name", NOPROP)
def test_predictions_follow_an_affine_change_of_the_values_units(name):
    x = Noise(3).normal(80 * 4).view(80, 4).numpy()
    y = x @ np.array([[1.0, 2.0], [0.5, -1.0], [0.0, 0.3], [1.0, 0.0]])
    scale, shift = np.array([8.0, 0.25]), np.array([512.0, -2.0])

    def predicted(values):
        found = data.from_arrays(x[:64], values[:64], x[64:], values[64:], targets="values", name="two units")
        rule = RULES[name](**({"blocks": 2} if name == "noprop-dt" else {"steps": 5}))
        return train(rule, found, Options(epochs=1, batch=16)).predict(x[64:]).double().numpy()

    before, after = predicted(y), predicted(scale * y + shift)
    np.testing.assert_allclose((after - shift) / scale, before, atol=1e-2 * y.std())  # rounding, of several steps


@pytest.mark.parametrize("kind", TASKS)
def test_blocks_at_once_and_one_by_one_have_the_same_gradients(kind):
    rule = RULES["noprop-dt"](blocks=3)
    images = replace(TASKS[kind], shape=(1, 8, 8), mean=(0.0,), std=(1.0,), inputs="image")
    net = rule.build(images, Noise(1), None, None)
    inputs = images.laid_out(Noise(4).normal(3 * 64).view(3, 1, 8, 8))
    batch, found = Batch(inputs, TARGETS[kind], TASKS[kind].objective), {}
    for way in ("per block", "together"):
        net.set_execution(way)
        found[way] = rule.estimate(net, batch, Noise(6))
    for gradient_name, gradient in found["per block"].gradients.items():
        torch.testing.assert_close(found["together"].gradients[gradient_name], gradient, atol=1e-3, rtol=1e-3)
    assert found["per block"].losses.keys() == found["together"].losses.keys()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("noprop-dt", {"embedding": "learned"}, "embedding = learned is for classes, but the data have values"),
        ("noprop-ct", {"readout": "radial"}, "readout = radial does not go with targets that are values"),
        ("noprop-dt", {"levels": "readable", "cosine_offset": 0.008}, "levels = readable does not go with"),
        ("noprop-fm", {"label_smoothing": 0.1}, "label_smoothing = 0.1 does not go with targets that are values"),
    ],
)
def test_what_goes_by_classes_is_refused(name, options, said):
    with pytest.raises(InputError, match=said):
        RULES[name](**options).build(VALUES, Noise(1), None, None)
