"""One loss per example from outputs and targets, and what a net has to know of the data."""

import json
import math

import pytest
import torch

from sidestep.data.objective import (
    CLASSES,
    IGNORED,
    LABELS,
    NEXT_TOKENS,
    OBJECTIVES,
    VALUES,
    Objective,
    values_objective,
)
from sidestep.data.task import Task
from sidestep.errors import InputError
from sidestep.noise import Noise


class TestObjective:
    """One loss per example, its mean as torch has it, and what is refused."""

    def outputs(self, *shape: int) -> torch.Tensor:
        return Noise(5).normal(math.prod(shape)).view(shape)

    def test_a_mean_is_the_mean_of_the_examples(self):
        targets = {
            "classes": torch.tensor([0, 3, 1]),
            "labels": torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]]),
            "values": self.outputs(3, 4) + 1,
            "tokens": torch.tensor([[1, 2, IGNORED], [3, IGNORED, IGNORED], [0, 0, 1]]),
        }
        for kind, objective in OBJECTIVES.items():
            outputs = self.outputs(3, 3, 4) if kind == "tokens" else self.outputs(3, 4)
            each = objective.each(outputs, targets[kind])
            assert each.shape == (3,)
            torch.testing.assert_close(objective.mean(outputs, targets[kind]), each.mean())

    def test_padding_does_not_count(self):
        outputs, targets = self.outputs(2, 3, 4), torch.tensor([[1, 2, IGNORED], [0, IGNORED, IGNORED]])
        other = outputs.clone()
        other[targets == IGNORED] += 7
        assert torch.equal(NEXT_TOKENS.each(outputs, targets), NEXT_TOKENS.each(other, targets))
        alone = torch.nn.functional.cross_entropy(outputs[1, :1], targets[1, :1])
        torch.testing.assert_close(NEXT_TOKENS.each(outputs, targets)[1], alone)

    def test_perfect_answers_score_one(self):
        labels = torch.tensor([[0, 1], [1, 1]])
        assert LABELS.scored(labels.float(), labels).tolist() == [1, 1]
        assert LABELS.scored(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), labels).tolist() == [0.5, 1]
        assert CLASSES.scored(torch.eye(3), torch.tensor([0, 1, 0])).tolist() == [1, 1, 0]

    def test_a_loss_that_is_averaged_already_is_refused(self):
        mean = Objective("mine", lambda outputs, targets: (outputs - targets).square().mean())
        with pytest.raises(InputError, match=r"'mine' must give one number per example, shape \(3,\), got shape \(\)"):
            mean.mean(self.outputs(3, 2), self.outputs(3, 2))
        each = Objective("mine", lambda outputs, targets: (outputs - targets).square())
        with pytest.raises(InputError, match=r"shape \(3, 2\); average it for each example: .*reshape"):
            each.mean(self.outputs(3, 2), self.outputs(3, 2))

    @pytest.mark.parametrize("objective", [VALUES, LABELS, values_objective((0.0,), (1.0,))])
    def test_a_target_stands_for_one_output(self, objective):
        """(n,) beside (n, 1) is one for one, and not all with all."""
        outputs, targets = self.outputs(6, 1), (self.outputs(6) > 0).float()
        wanted = objective.each(outputs, targets[:, None])
        assert torch.equal(objective.each(outputs, targets), wanted)
        assert torch.equal(objective.derivative(outputs, targets[:, None])[1], wanted.mean())

    @pytest.mark.parametrize(("width", "columns"), [(1, 2), (2, 1), (3, 2)])
    def test_outputs_of_another_width_are_refused(self, width, columns):
        for objective in (VALUES, LABELS):
            with pytest.raises(
                InputError, match=rf"outputs have shape \(6, {width}\) and the targets \(6, {columns}\)"
            ):
                objective.mean(self.outputs(6, width), (self.outputs(6, columns) > 0).float())

    def test_only_classes_are_smoothed(self):
        outputs, classes = self.outputs(3, 4), torch.tensor([0, 3, 1])
        assert not torch.equal(CLASSES.mean(outputs, classes, 0.1), CLASSES.mean(outputs, classes))
        assert torch.equal(VALUES.mean(outputs, outputs + 1, 0.1), VALUES.mean(outputs, outputs + 1))


class TestTask:
    """What a task says of inputs and targets, and that its record brings it back."""

    @pytest.mark.parametrize(
        "task",
        [
            Task((1, 8, 8), ("a", "b"), (0.5,), (2.0,)),
            Task((3,), ("x", "y"), (0.0, 1.0, 2.0), (1.0, 1.0, 1.0), "float32", "features", "values"),
            Task((16,), ("a", "b", "c"), (), (), "int64", "tokens", "tokens"),
        ],
    )
    def test_a_record_brings_it_back(self, task):
        assert Task.from_record(json.loads(json.dumps(task.record()))) == task

    def test_features_are_scaled_by_column(self):
        task = Task((2,), ("x",), (10.0, 0.5), (10.0, 0.25), "float32", "features", "values")
        scaled = task.prepare(torch.tensor([[20.0, 0.75], [10.0, 0.25]]))
        torch.testing.assert_close(scaled, torch.tensor([[1.0, 1.0], [0.0, -1.0]]))

    def test_features_are_no_image(self):
        with pytest.raises(InputError, match=r"takes images, but the inputs are features of shape \(2,\)"):
            _ = Task((2,), ("x",), (0.0, 0.0), (1.0, 1.0), "float32", "features").image_shape
