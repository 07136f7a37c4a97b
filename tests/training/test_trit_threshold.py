"""A threshold of trits that follows from the trits of earlier steps: the same everywhere, and trits alone are sent."""

import pytest
import torch

from sidestep import attach, data, rules
from sidestep.data.share import WHOLE, Share
from sidestep.errors import InputError
from sidestep.nets.ternary.convert import ternarize
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Task
from sidestep.rules.shared.tracked import follow, start_threshold, threshold_of, trits_above
from sidestep.steplog import rebuild
from sidestep.training import Options, train
from sidestep.training.exchange import PartSum
from sidestep.training.part_messages import packed, unpacked
from sidestep.world import Alone
from sidestep.world.frames import framed

SMALL = {"estimator": "weight-probes", "trit_threshold": "tracked", "hidden": (16,)}


def begun(rule):
    digits = data.load("digits")
    task = Task.of(digits)
    net = rule.build(task, Noise(0), digits.train, None)
    images, labels = task.prepare(digits.train.images[:64]), digits.train.labels[:64]
    return net, lambda share=WHOLE: Batch(images, labels, task.objective, share)


def part(rule, net, batch, index, count):
    return rule.estimate(net, batch(Share("probes", index, count)), Noise(1).at(0))


class Listening(Alone):
    """A world of two ranks that says back what it was told, once by each."""

    size = 2

    def __init__(self, rank, said):
        self.rank, self.said = rank, said

    def gather(self, message, known=None):
        self.said[self.rank] = framed(message, 0, 0, known=known)
        return [self.other, message] if self.rank else [message, self.other]


@pytest.mark.parametrize("estimator", ["weight-probes", "rank-one"])
def test_parts_decide_what_the_whole_step_does(estimator):
    rule = rules.NoiseStep(**{**SMALL, "estimator": estimator})
    net, batch = begun(rule)
    whole = rule.decide(net, rule.estimate(net, batch(), Noise(1).at(0)), rule.optimizer(net))
    total, of = PartSum(), "probes" if estimator == "weight-probes" else "batch"
    for index in range(4):
        given = batch(Share(of, index, 4))
        rows = slice(16 * index, 16 * index + 16) if of == "batch" else slice(None)
        given = Batch(given.inputs[rows], given.targets[rows], given.objective, given.share)
        update = rule.estimate(net, given, Noise(1).at(0))
        assert update.coefs.dtype == torch.int8
        total.add(unpacked(packed(update), update)[0], index)
    found = rule.decide(net, total.exchanged(Alone(), 4, 0)[0], rule.optimizer(net))
    assert whole.coefs.abs().sum() > 8
    assert torch.equal(found.coefs, whole.coefs)
    assert whole.coefs.dtype == found.coefs.dtype == torch.int8


def test_two_ranks_send_a_trit_a_probe_the_loss_and_a_short_header():
    rule = rules.NoiseStep(**SMALL)
    net, batch = begun(rule)
    said, sums = {}, [PartSum(), PartSum()]
    for index in range(4):
        sums[index % 2].add(part(rule, net, batch, index, 4), index)
    worlds = [Listening(rank, said) for rank in (0, 1)]
    for world, other in zip(worlds, reversed(sums), strict=True):
        world.other = other.message(worlds[1 - world.rank], 4, 0)
    found = [each.exchanged(world, 4, 0)[0] for each, world in zip(sums, worlds, strict=True)]
    assert torch.equal(found[0].coefs, found[1].coefs)
    header, signal, loss, zeros, trits = 8, 1, 1 + 4, 8, -(-64 // 5)
    assert all(len(data) <= header + signal + loss + zeros + trits for data in said.values())
    assert min(len(data) for data in said.values()) <= 31  # of 24 in the log


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_the_threshold_finds_half_of_the_probes_whatever_their_scale(scale):
    net, _ = begun(rules.NoiseStep(**SMALL))
    start_threshold(net)
    shares = []
    for step in range(80):
        coefs = scale * Noise(0).stream("coefs").at(step).normal(128)
        trits = trits_above(coefs, threshold_of(net))
        follow(net, trits)
        shares.append(float(trits.count_nonzero()) / 128)
    assert 0.47 < sum(shares[40:]) / 40 < 0.53
    assert 0.55 < threshold_of(net) / scale < 0.8  # the median of |N(0, 1)| is 0.67


def test_the_log_alone_gives_the_threshold_back(tmp_path):
    digits, folder = data.load("digits"), tmp_path / "run"
    options = {"batch": 64, "out": folder, "split": "probes", "shares": 4, "precision": "float32"}
    whole = train(rules.NoiseStep(**SMALL), digits, Options(steps=12, **options), readings=[]).net
    assert threshold_of(rebuild(folder / "steps.steplog").net) == threshold_of(whole)
    fewer = rebuild(folder / "steps.steplog", to_step=5).net  # within a block
    (folder / "model.safetensors").unlink()
    cut = tmp_path / "cut"
    train(rules.NoiseStep(**SMALL), digits, Options(steps=5, **{**options, "out": cut}), readings=[])
    again = rebuild(cut / "steps.steplog").net
    assert threshold_of(again) == threshold_of(fewer) != threshold_of(whole)
    for one, other in zip(again.parameters(), fewer.parameters(), strict=True):
        assert torch.equal(one, other)


def test_where_there_are_no_trits_or_no_place_it_is_refused():
    with pytest.raises(InputError, match="trit_threshold = tracked is for codec = trits"):
        rules.NoiseStep(trit_threshold="tracked")
    model = ternarize(torch.nn.Sequential(torch.nn.Linear(8, 4)), Noise(0))
    with pytest.raises(InputError, match="keeps the threshold in a net that noise-step builds"):
        attach(model, rules.NoiseStep(**{**SMALL, "schedule": "constant"}), objective=torch.nn.functional.cross_entropy)
