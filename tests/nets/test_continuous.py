"""Schedules in continuous time, noise levels by readability, losses, embeddings and read-outs, without training."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.errors import InputError
from sidestep.nets import (
    CosineSchedule,
    LearnedSchedule,
    LinearSchedule,
    class_embedding,
    denoising_loss,
    expected_embedding,
    make_readout,
    make_schedule,
    readable_alpha_bar,
    unit_rows,
)
from sidestep.nets.noprop.embeddings import EMBEDDINGS
from sidestep.nets.noprop.losses import LOSSES
from sidestep.nets.noprop.schedules import check_alpha_bar
from sidestep.noise import Noise
from tests.reference.noprop_continuous_plain import (
    PlainCosineGamma,
    PlainLearnedGamma,
    PlainLinearGamma,
    plain_alpha_bar,
    plain_snr_slope,
)

GRID = torch.linspace(0, 1, 65, dtype=torch.float64)
ENDS = [(0.0067, 0.9933), (0.001, 0.999), (0.2, 0.3)]


def learned(seed, scale):
    """A learned schedule in float64 whose every parameter is drawn anew."""
    schedule = LearnedSchedule().double()
    with torch.no_grad():
        for index, parameter in enumerate(schedule.parameters()):
            drawn = Noise(seed).sub(index).normal(parameter.numel()).double().view_as(parameter)
            parameter.copy_(scale * drawn)
    return schedule


def every_schedule():
    return [LinearSchedule(), CosineSchedule(), LearnedSchedule().double(), learned(3, 1.5)]


class TestSchedules:
    @given(st.integers(0, 2**32 - 1), st.floats(0.1, 3))
    @settings(max_examples=25)
    def test_a_learned_schedule_rises_whatever_its_parameters_are(self, seed, scale):
        schedule = learned(seed, scale)
        assert (schedule.gamma(GRID).diff() < 0).all()  # so SNR = exp(-gamma) rises strictly
        assert (schedule.slope(GRID) < 0).all()
        assert (schedule.snr_slope(GRID) > 0).all()
        ends = torch.stack([schedule.g1, schedule.g0])
        assert (ends.diff() < 0).all()
        torch.testing.assert_close(schedule.gamma(GRID[[0, -1]]), ends, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("schedule", every_schedule(), ids=["linear", "cosine", "learned", "learned, moved"])
    def test_slopes_are_derivatives(self, schedule):
        inner = GRID[1:-1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(schedule.gamma(inner).sum(), inner)
        torch.testing.assert_close(schedule.slope(inner), slope, rtol=1e-8, atol=1e-8)
        snr = schedule.alpha_bar(inner) / (1 - schedule.alpha_bar(inner))
        (rise,) = torch.autograd.grad(snr.sum(), inner)
        torch.testing.assert_close(schedule.snr_slope(inner), rise, rtol=1e-7, atol=1e-8)
        step = 1e-6
        with torch.no_grad():
            difference = (schedule.gamma(inner + step) - schedule.gamma(inner - step)) / (2 * step)
            torch.testing.assert_close(schedule.slope(inner), difference, rtol=1e-6, atol=1e-6)
            assert (snr.diff() > 0).all()
            assert (schedule.snr_slope(inner) > 0).all()

    @pytest.mark.parametrize("name", ["linear", "cosine", "learned"])
    @pytest.mark.parametrize(("low", "high"), ENDS)
    def test_schedules_run_from_low_at_noise_to_high_at_the_label(self, name, low, high):
        schedule = make_schedule(name, low, high)
        levels = schedule.alpha_bar(torch.linspace(0, 1, 33))
        assert levels[0].item() == pytest.approx(low, rel=1e-4)
        assert levels[-1].item() == pytest.approx(high, rel=1e-4)
        check_alpha_bar(levels)  # rises, within (0, 1), in float32

    def test_they_equal_the_plain_formulas(self):
        moved = learned(5, 1.0)
        parameters = [moved.g0, moved.log_span, moved.inner, moved.bias, moved.outer]
        pairs = [
            (LinearSchedule(0.01, 0.98), PlainLinearGamma(0.01, 0.98)),
            (CosineSchedule(0.01, 0.98), PlainCosineGamma(0.01, 0.98)),
            (moved, PlainLearnedGamma(*parameters)),
        ]
        for schedule, plain in pairs:
            for time in (0.0, 0.1, 0.5, 0.93, 1.0):
                at = torch.tensor([time], dtype=torch.float64)
                assert schedule.alpha_bar(at).item() == pytest.approx(plain_alpha_bar(plain, time).item(), rel=1e-9)
                slope = plain_snr_slope(plain, time).item()
                assert schedule.snr_slope(at).item() == pytest.approx(slope, rel=1e-7, abs=1e-9)

    @pytest.mark.parametrize("rest", [2**-10, 2**-20, 2**-30, 2**-40])  # 1 - rest has no rounding of its own
    @pytest.mark.parametrize("name", ["linear", "cosine"])
    def test_what_is_left_to_the_noise_or_the_label_is_right_to_the_last_digits_of_float32(self, name, rest):
        """The references are Python's floats, in which the smaller share is computed by itself."""
        low = rest / 3
        schedule = make_schedule(name, low, 1 - rest)
        span = 1 - rest - low
        top = math.log(rest / (1 - rest))
        for time in (0.0, 2**-12, 2**-5, 0.25, 0.5, 0.75, 1 - 2**-5, 1 - 2**-12, 1.0):
            if name == "linear":
                bottom = math.log((1 - low) / low)
                gamma, slope = bottom + (top - bottom) * time, top - bottom
                signal, noise = 1 / (1 + math.exp(gamma)), 1 / (1 + math.exp(-gamma))
                rise = -slope * math.exp(-gamma)
            else:
                sine, cosine = math.sin(math.pi / 2 * time), math.sin(math.pi / 2 * (1 - time))
                signal, noise = low + span * sine**2, rest + span * cosine**2
                rise = math.pi * span * sine * cosine / noise**2
            found = schedule.levels(torch.tensor([time]))
            near = {"rel": 8e-6, "abs": 0}  # float32 has gamma, up to 28, to a millionth
            assert found.signal.item() == pytest.approx(signal, **near)
            assert found.noise.item() == pytest.approx(noise, **near)
            assert schedule.snr_slope(torch.tensor([time])).item() == pytest.approx(rise, **near)

    def test_a_new_learned_schedule_is_nearly_a_straight_line(self):
        straight, new = (make_schedule(name, 0.0067, 0.9933) for name in ("linear", "learned"))
        time = torch.linspace(0, 1, 21)
        assert (straight.gamma(time) - new.gamma(time)).abs().max() < 0.6  # of a span of 10

    @pytest.mark.parametrize(
        ("name", "low", "high", "words"),
        [
            ("quadratic", 0.1, 0.9, "learned, linear, cosine, got 'quadratic'"),
            ("linear", 0.9, 0.1, "rise"),
            ("learned", 0.5, 0.5, "rise"),
            ("cosine", 0.0, 0.9, "between 0 and 1"),
            ("cosine", 0.1, 1.0, "between 0 and 1"),
            ("learned", math.nan, 0.9, "between 0 and 1"),
        ],
    )
    def test_bad_ones_are_refused(self, name, low, high, words):
        with pytest.raises(InputError, match=words):
            make_schedule(name, low, high)


class TestReadableLevels:
    @pytest.mark.parametrize(("blocks", "classes"), [(1, 2), (3, 2), (3, 10), (6, 10), (3, 100), (10, 100)])
    def test_levels_rise_between_their_ends(self, blocks, classes):
        levels = readable_alpha_bar(blocks, classes)
        assert (levels.shape, levels.dtype) == ((blocks + 1,), torch.float64)
        check_alpha_bar(levels)
        assert levels[0].item() == pytest.approx(1e-3)
        assert levels[-1].item() == pytest.approx(0.999)

    def test_the_nearest_class_is_right_more_often_by_equal_steps(self):
        blocks, classes, draws = 4, 10, 100_000
        levels = readable_alpha_bar(blocks, classes)
        right = []
        for index, level in enumerate(levels.tolist()):
            noise = Noise(8).sub(index).normal(draws * classes).view(draws, classes)
            latent = math.sqrt(1 - level) * noise
            latent[:, 3] += math.sqrt(level)  # u_3 of orthonormal embeddings
            right.append(float((latent.argmax(dim=1) == 3).float().mean()))
        wanted = [right[0] + (right[-1] - right[0]) * index / blocks for index in range(blocks + 1)]
        assert right == pytest.approx(wanted, abs=0.008)  # five standard deviations of a share of 100,000
        assert right[-1] - right[0] > 0.8

    def test_more_classes_need_cleaner_labels(self):
        few, some, many = (readable_alpha_bar(4, classes)[1:-1] for classes in (2, 10, 100))
        assert (few < some).all()
        assert (some < many).all()

    def test_very_clean_ends_are_no_difficulty(self):
        levels = readable_alpha_bar(3, 1000, 1e-9, 1 - 1e-6)
        torch.testing.assert_close(levels[1:-1], readable_alpha_bar(3, 1000)[1:-1], rtol=5e-3, atol=0)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [((0, 10), "at least 1"), ((3, 10, 0.9, 0.1), "rise"), ((3, 10, 0.0, 0.9), "two values in")],
    )
    def test_bad_ones_are_refused(self, arguments, words):
        with pytest.raises(InputError, match=words):
            readable_alpha_bar(*arguments)


LOGITS = torch.tensor([[1.0, -0.5, 0.25], [0.0, 3.0, -1.0]], dtype=torch.float64)
ROWS = torch.tensor([[1.0, 0.0], [0.5, -2.0], [-1.0, 0.3]], dtype=torch.float64)
LABELS = torch.tensor([2, 1])


def loss(kind, logits=LOGITS, rows=ROWS, labels=LABELS, weight=torch.tensor([0.5, 40.0]), smoothing=0.0):  # noqa: B008
    return denoising_loss(kind, logits, rows, labels, weight.double(), 5.0, smoothing)


class TestLosses:
    def test_each_kind_against_its_formula(self):
        squared, entropy = [], []
        for logits, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
            total = sum(math.exp(value) for value in logits)
            shares = [math.exp(value) / total for value in logits]
            uhat = [sum(share * row[i] for share, row in zip(shares, ROWS.tolist(), strict=True)) for i in range(2)]
            squared.append(sum((a - b) ** 2 for a, b in zip(uhat, ROWS[label].tolist(), strict=True)))
            entropy.append(-math.log(shares[label]))
        assert loss("unweighted").tolist() == pytest.approx(squared)
        assert loss("paper").tolist() == pytest.approx([0.5 * squared[0], 40 * squared[1]])
        assert loss("clipped").tolist() == pytest.approx([0.5 * squared[0], 5 * squared[1]])
        assert loss("cross-entropy").tolist() == pytest.approx(entropy)

    def test_a_weight_may_be_one_number_for_the_whole_batch(self):
        assert loss("paper", weight=torch.tensor(2.0)).tolist() == pytest.approx((2 * loss("unweighted")).tolist())

    def test_smoothed_labels_spread_over_all_classes(self):
        logs = LOGITS.log_softmax(dim=1)
        wanted = -(0.7 * logs[[0, 1], LABELS] + 0.3 * logs.mean(dim=1))
        torch.testing.assert_close(loss("cross-entropy", smoothing=0.3), wanted)

    @pytest.mark.parametrize("classes", [2, 10, 100])
    def test_cross_entropy_sees_logits_not_probabilities(self, classes):
        labels, rows = torch.tensor([classes - 1]), torch.eye(classes, dtype=torch.float64)
        certain = 50.0 * rows[labels]
        assert loss("cross-entropy", certain, rows, labels).item() < 1e-9  # softmaxed twice it could not fall below
        twice = loss("cross-entropy", certain.softmax(dim=1), rows, labels).item()
        assert twice > 0.3
        even = torch.zeros(1, classes, dtype=torch.float64)
        assert loss("cross-entropy", even, rows, labels).item() == pytest.approx(math.log(classes))

    @pytest.mark.parametrize("kind", LOSSES)
    def test_a_certain_and_right_answer_costs_nothing_and_a_wrong_one_costs(self, kind):
        right, wrong = (200.0 * torch.eye(3, dtype=torch.float64)[labels] for labels in (LABELS, LABELS - 1))
        assert loss(kind, right).max().item() == pytest.approx(0, abs=1e-12)
        assert loss(kind, wrong).min().item() > 0.1


def embedding(kind, classes=5, shape=(1, 4, 4), dimension=None, images=None, labels=None):
    return class_embedding(kind, classes, shape, dimension, Noise(2), images, labels)


class TestEmbeddings:
    @pytest.mark.parametrize(("classes", "dimension", "size"), [(5, None, 5), (5, 5, 5), (5, 12, 12), (100, None, 100)])
    def test_orthogonal_rows_are_orthonormal(self, classes, dimension, size):
        rows = embedding("orthogonal", classes, dimension=dimension).double()
        assert rows.shape == (classes, size)
        torch.testing.assert_close(rows @ rows.T, torch.eye(classes).double(), atol=1e-6, rtol=0)
        other = class_embedding("orthogonal", classes, (1, 4, 4), dimension, Noise(3), None, None)
        assert not torch.allclose(rows.float(), other)

    def test_each_kind_has_the_length_that_fits_it(self):
        images, labels = torch.zeros(5, 1, 4, 4), torch.arange(5)
        found = {kind: embedding(kind, images=images, labels=labels).shape for kind in EMBEDDINGS}
        assert found == {"one-hot": (5, 5), "orthogonal": (5, 5), "learned": (5, 20), "prototype": (5, 16)}
        assert torch.equal(embedding("one-hot"), torch.eye(5))
        assert embedding("one-hot", dimension=5).shape == (5, 5)
        assert embedding("prototype", dimension=16).shape == (5, 16)  # zeros, until weights are loaded
        assert embedding("learned", dimension=3).shape == (5, 3)

    @pytest.mark.parametrize(
        ("kind", "dimension", "words"),
        [
            ("orthogonal", 4, r"5 classes cannot be orthogonal in 4 dimensions; give dimension 5 or more.*learned"),
            ("one-hot", 20, r"one-hot.*one element a class, here 5.*cannot be 20; leave dimension out.*learned"),
            ("prototype", 20, r"prototype.*one element a pixel and channel, here 16.*cannot be 20; leave dimension"),
            ("random", None, r"one-hot, orthogonal, learned, prototype, got 'random'"),
            ("learned", 0, r"at least 1, got 0"),
        ],
    )
    def test_a_length_that_does_not_fit_is_refused_with_one_that_does(self, kind, dimension, words):
        with pytest.raises(InputError, match=words):
            embedding(kind, dimension=dimension)

    def test_labels_beyond_the_classes_are_refused(self):
        with pytest.raises(InputError, match=r"labels up to 5, but the embedding has rows for 5 classes \(0 to 4\)"):
            embedding("one-hot", labels=torch.tensor([0, 5]))

    def test_unit_rows_keep_directions(self):
        rows = Noise(4).normal(30).view(6, 5) * torch.tensor([1e-3, 0.1, 1, 10, 1e3, 1])[:, None]
        scaled = unit_rows(rows)
        torch.testing.assert_close(scaled.norm(dim=1), torch.ones(6))
        torch.testing.assert_close(torch.cosine_similarity(scaled, rows, dim=1), torch.ones(6))
        assert torch.equal(unit_rows(torch.zeros(2, 3)), torch.zeros(2, 3))

    def test_the_expected_embedding_of_a_certain_class_is_that_class(self):
        torch.testing.assert_close(expected_embedding(500 * torch.eye(3, dtype=torch.float64), ROWS), ROWS)
        torch.testing.assert_close(expected_embedding(torch.zeros(1, 3).double(), ROWS), ROWS.mean(0, keepdim=True))


class TestReadouts:
    rows = Noise(6).normal(7 * 4).view(7, 4).double()
    latents = 2 * Noise(7).normal(200 * 4).view(200, 4).double()

    def test_nearest_is_the_smallest_distance(self):
        logits = make_readout("nearest", self.rows)(self.latents, self.rows)
        distances = torch.cdist(self.latents, self.rows)
        assert torch.equal(logits.argmax(dim=1), distances.argmin(dim=1))
        torch.testing.assert_close(logits.softmax(dim=1), (-(distances**2) / 2).softmax(dim=1))
        assert not list(make_readout("nearest", self.rows).parameters())

    def test_the_radial_one_compares_a_point_among_the_classes(self):
        readout = make_readout("radial", self.rows.float()).double()
        with torch.no_grad():
            readout.log_sigma.fill_(-0.7)
        point = (self.latents @ readout.linear.weight.T + readout.linear.bias).softmax(dim=1) @ self.rows
        wanted = -torch.cdist(point, self.rows).square() / (2 * math.exp(-0.7) ** 2)
        torch.testing.assert_close(readout(self.latents, self.rows), wanted)

    @pytest.mark.parametrize("kind", ["softmax", "radial", "nearest"])
    def test_each_reads_a_class_embedding_as_that_class_from_the_start(self, kind):
        rows = class_embedding("orthogonal", 7, (1, 4, 4), 9, Noise(2), None, None)
        assert make_readout(kind, rows)(rows, rows).argmax(dim=1).tolist() == list(range(7))

    def test_another_name_is_refused(self):
        with pytest.raises(InputError, match="softmax, radial, nearest, got 'furthest'"):
            make_readout("furthest", self.rows)
