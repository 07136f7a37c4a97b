"""A ternary net of tokens: what each place sees, both local estimators, its log, and what is refused."""

import pytest
import torch

from sidestep import Options, data, load_run, train
from sidestep.data.objective import IGNORED, NEXT_TOKENS
from sidestep.errors import InputError
from sidestep.gradients.local_losses import local_gradients
from sidestep.gradients.local_probes import LocalProbes, check_local_probes, local_probe_gradients
from sidestep.nets import ternary_parameters
from sidestep.nets.ternary.causal import ternary_causal_net
from sidestep.nets.tokens import PlaceWindow, TokenShares, TokenWindow
from sidestep.noise import Noise
from sidestep.rules import NoiseStep
from sidestep.steplog.replay import rebuild

WORDS, LENGTH = 5, 20
TEXT = "abcab cabbac " * 60


def drawn(hidden=(12, 10, 9)):
    net = ternary_causal_net(LENGTH, WORDS, hidden, bias=True)
    net.draw(Noise(3))
    return net


def rows(count=6):
    ids = Noise(1).integers(count * (LENGTH + 1), WORDS).view(count, LENGTH + 1)
    targets = ids[:, 1:].clone()
    targets[0, 4:] = IGNORED
    targets[1] = IGNORED
    return ids[:, :-1], targets


@pytest.fixture(scope="module")
def few():
    return data.from_text(TEXT, length=12)


class TestWindows:
    def test_a_place_sees_itself_and_the_places_before_it(self):
        features = Noise(0).normal(2 * 7 * 3).view(2, 7, 3)
        found = PlaceWindow((0, 2, 9))(features)
        assert torch.equal(found[..., :3], features)
        assert torch.equal(found[:, 2:, 3:6], features[:, :-2])
        assert not found[:, :2, 3:6].any()
        assert not found[..., 6:].any()

    def test_weights_have_a_root_mean_square_of_one(self):
        features = Noise(0).normal(2 * 7 * 3).view(2, 7, 3)
        plain, found = PlaceWindow((0, 2))(features), PlaceWindow((0, 2), (3.0, 1.0))(features)
        torch.testing.assert_close(found[..., :3], 3 / 5**0.5 * plain[..., :3])
        torch.testing.assert_close(found[..., 3:], 1 / 5**0.5 * plain[..., 3:])

    def test_near_tokens_weigh_more_than_far_ones(self):
        net, (ids, _) = drawn((12, 12)), rows(40)
        seen = net.stages[0][0](ids)[:, 7].view(40, 8, WORDS).amax(dim=-1)
        assert bool((seen.diff(dim=1) < 0).all())
        torch.testing.assert_close(seen.square().mean(dim=1), torch.ones(40))
        assert net.stages[1][0].weights[0] > net.stages[1][0].weights[1] > 0

    def test_one_hot_by_distance(self):
        ids = Noise(0).integers(14, WORDS).view(2, 7)
        found = TokenWindow(WORDS, 3)(ids).view(2, 7, 3, WORDS)
        for back in range(3):
            assert torch.equal(found[:, back:, back].argmax(dim=-1), ids[:, : 7 - back])
            assert not found[:, :back, back].any()

    def test_shares_count_tokens_whatever_their_order(self):
        ids, _ = rows()
        found = TokenShares(WORDS)(ids)
        assert torch.equal(found, TokenShares(WORDS)(ids.flip(1)))
        torch.testing.assert_close(found[2] * LENGTH**0.5, ids[2].bincount(minlength=WORDS).float())

    @pytest.mark.parametrize(("stages", "reach"), [(1, 8), (2, 16), (3, 20)])
    def test_a_stage_sees_twice_as_many_tokens_as_the_one_below_and_none_that_comes_later(self, stages, reach):
        net, (ids, _) = drawn((12,) * stages), rows(40)
        place = 17
        usual = net(ids)
        for moved in range(LENGTH):
            other = ids.clone()
            other[:, moved] = (other[:, moved] + 1) % WORDS
            differs = bool((net(other)[:, place] != usual[:, place]).any())
            assert differs == (place - reach < moved <= place)


class TestEstimates:
    def test_the_closed_form_is_the_derivative_of_each_row_s_loss(self):
        _, targets = rows()
        outputs = Noise(2).normal(6 * LENGTH * WORDS).view(6, LENGTH, WORDS).double().requires_grad_()
        (wanted,) = torch.autograd.grad(NEXT_TOKENS.losses(outputs, targets).sum(), outputs)
        found, loss = NEXT_TOKENS.derivative(outputs.detach(), targets)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(loss, NEXT_TOKENS.mean(outputs, targets).detach())

    @pytest.mark.parametrize(("directions", "guide"), [(None, "none"), (9, "none"), (4, "head")])
    def test_a_complete_set_of_local_probes_is_the_local_gradient(self, directions, guide):
        net, (ids, targets) = drawn((9, 9)), rows()
        wanted, losses = local_gradients(net, ids, targets, 0.0, NEXT_TOKENS)
        with torch.no_grad():
            ways = LocalProbes(directions, guide)
            found, others = local_probe_gradients(net, ids, targets, Noise(0), ways, NEXT_TOKENS)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(others, losses)

    def test_fewer_directions_are_the_gradient_in_the_mean(self):
        net, (ids, targets) = drawn((8,)), rows()
        wanted, _ = local_gradients(net, ids, targets, 0.0, NEXT_TOKENS)
        sums = torch.zeros(8, 8 * WORDS)
        draws = 400
        with torch.no_grad():
            for draw in range(draws):
                ways = LocalProbes(2)
                found, _ = local_probe_gradients(net, ids, targets, Noise(0).at(draw), ways, NEXT_TOKENS)
                sums += found["stages.0.1.weight"]
        apart = (sums / draws - wanted["stages.0.1.weight"]).norm() / wanted["stages.0.1.weight"].norm()
        assert apart < 0.2  # (8 / 2 - 1) of the squared norm for one draw, 1/400 of it for their mean

    def test_rows_of_a_batch_do_not_change_each_other(self):
        net, (ids, targets) = drawn(), rows()
        whole, _ = local_gradients(net, ids, targets, 0.0, NEXT_TOKENS)
        parts = [local_gradients(net, ids[i : i + 1], targets[i : i + 1], 0.0, NEXT_TOKENS)[0] for i in range(6)]
        torch.testing.assert_close(whole, {name: sum(part[name] for part in parts) / 6 for name in whole})


class TestRuns:
    @pytest.mark.parametrize("estimator", ["local-losses", "local-probes"])
    def test_it_learns_and_its_log_gives_the_same_bits(self, few, tmp_path, estimator):
        directions = 8 if estimator == "local-probes" else None
        rule = NoiseStep(hidden=(32, 32), estimator=estimator, directions=directions, flip_share=0.02)
        run = train(rule, few, Options(epochs=15, batch=10, decay="cosine", out=tmp_path / "run"))
        assert run.result["test_score"] > 0.75  # 3 of 13 characters are the most frequent one
        replayed = rebuild(tmp_path / "run" / "steps.steplog").net
        trits = ternary_parameters(run.net)
        assert all(torch.equal(trits[name], other) for name, other in ternary_parameters(replayed).items())
        packed = load_run(tmp_path / "run")
        assert torch.equal(packed.predict(few.test.images), run.predict(few.test.images))
        assert packed.net.stages[0][1].weight is None  # five trits to a byte

    @pytest.mark.parametrize("estimator", ["local-losses", "local-probes"])
    def test_one_answer_for_a_row(self, estimator):
        ids = 2 + Noise(0).stream("ids").integers(900, WORDS - 2).view(150, 6)
        classes = Noise(0).stream("classes").integers(150, 2)
        ids[:, 3] = classes  # the class is which of two words a row has
        found = data.from_tokens(ids, classes, vocabulary=WORDS, targets="classes", validation=0.2)
        run = train(
            NoiseStep(hidden=(32, 32), estimator=estimator, flip_share=0.02), found, Options(steps=40, batch=30)
        )
        assert run.result["validation_accuracy"] > 0.8

    def test_a_stopped_run_goes_on_to_the_same_bits(self, few, tmp_path):
        rule = NoiseStep(hidden=(16, 16), estimator="local-probes", directions=4)
        whole = train(rule, few, Options(steps=12, batch=10))
        train(rule, few, Options(steps=5, batch=10, out=tmp_path / "run"))
        rest = train(rule, few, Options(steps=12, batch=10, out=tmp_path / "run", resume=True))
        assert all(torch.equal(w, rest.net.state_dict()[name]) for name, w in whole.net.state_dict().items())


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"net": "conv"}, "net = conv is for images"),
            ({"estimator": "weight-probes"}, "take local-losses or local-probes"),
            ({"estimator": "rank-one"}, "take local-losses or local-probes"),
            ({"estimator": "local-probes", "directions": 500}, "stage 0 has 16, got 500: 16 are a complete set"),
        ],
    )
    def test_what_has_no_form_for_tokens(self, few, options, said):
        with pytest.raises(InputError, match=said):
            train(NoiseStep(hidden=(16, 16), **options), few, Options(steps=1))

    def test_a_module(self, few):
        with pytest.raises(InputError, match="leave the module out"):
            train(NoiseStep(), few, Options(steps=1), module=torch.nn.Identity)

    def test_no_more_directions_than_a_place_has_outputs(self):
        check_local_probes(drawn(), (LENGTH,), LocalProbes(9))
        with pytest.raises(InputError, match="stage 2 has 9, got 10"):
            check_local_probes(drawn(), (LENGTH,), LocalProbes(10))
