"""Learned feedback: unbiased with the whole residual, a fit that finds the gradient, and what it refuses."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from sidestep.errors import InputError, NonFiniteError
from sidestep.gradients.layer_passes import OUTPUTS, layer_graph
from sidestep.gradients.learned_feedback import errors_of
from sidestep.noise import Noise
from sidestep.training.learned_feedback import LearnedFeedback


def net_of(*widths: int, between: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    with Noise(3).torch_seeded():
        layers = [nn.Linear(one, other) for one, other in itertools.pairwise(widths)]
    parts = [part for layer in layers for part in (layer, between())][:-1]
    return nn.Sequential(*parts).double()


def batch_of(count: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    inputs = Noise(4).normal(count * width).view(count, width).double()
    return inputs, torch.arange(count) % classes


class Twice(nn.Module):
    """One layer that is called at two time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = net_of(2, 2)[0]

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(rows) + self.layer(2 * rows).sin()


@pytest.mark.parametrize("known", [False, True])
def test_with_the_whole_residual_the_mean_over_all_signs_is_the_gradient(monkeypatch, known) -> None:
    """For linear layers and a quadratic loss, whose central differences are exact: whatever was learned before."""
    net, (inputs, targets) = net_of(2, 3, 2, 2, between=nn.Identity), batch_of(1, 2, 2)
    wanted = torch.tensor([[1.0, -2.0]], dtype=torch.float64)

    def loss(outputs: Tensor, _: Tensor) -> Tensor:
        return (outputs - wanted).square().sum(dim=1)

    loss(net(inputs), targets).mean().backward()
    exact = [parameter.grad.clone() for parameter in net.parameters()]
    found = []
    for signs in itertools.product((1.0, -1.0), repeat=5):
        drawn = {3: torch.tensor(signs[:3]).double(), 2: torch.tensor(signs[3:]).double()}  # by the layer's width
        monkeypatch.setattr(Noise, "signs", lambda _, count, drawn=drawn, **__: drawn[count])
        estimate = LearnedFeedback(net, loss, residual=1.0)
        if known:
            estimate(inputs, targets)
            for name, value in estimate._responses.state.items():
                if name.startswith(("matrix", "slopes")):
                    value.copy_(torch.arange(value.numel()).view_as(value) / 4)
        net.zero_grad()
        estimate(inputs, targets)
        found.append([parameter.grad.clone() for parameter in net.parameters()])
    for index, gradient in enumerate(exact):
        mean = torch.stack([each[index] for each in found]).mean(dim=0)
        torch.testing.assert_close(mean, gradient, rtol=1e-5, atol=1e-6)
    assert max(float((each[0] - exact[0]).abs().max()) for each in found) > 0.1  # of one draw it is not


def test_the_last_layer_has_its_gradient_at_the_first_step() -> None:
    net, (inputs, targets) = net_of(6, 3), batch_of(32, 6, 3)
    torch.nn.functional.cross_entropy(net(inputs), targets).backward()
    exact = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    loss = LearnedFeedback(net)(inputs, targets)
    for parameter, gradient in zip(net.parameters(), exact, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(loss.item(), torch.nn.functional.cross_entropy(net(inputs), targets).item())


def test_the_fit_points_along_the_gradient_and_further_than_one_estimate() -> None:
    net, (inputs, targets) = net_of(6, 24, 12, 3), batch_of(96, 6, 3)
    torch.nn.functional.cross_entropy(net(inputs), targets).backward()
    exact = net[0].weight.grad.flatten().clone()

    def cosine(steps: int, **settings: float) -> float:
        estimate = LearnedFeedback(net, eps=0.05, memory=1.0, **settings)
        for _ in range(steps):
            net.zero_grad()
            estimate(inputs, targets)
        return float(torch.cosine_similarity(net[0].weight.grad.flatten(), exact, dim=0))

    assert cosine(10) > 0.95
    assert abs(cosine(1, residual=1.0)) < 0.8


def test_slopes_follow_what_is_between_the_layers() -> None:
    """Rectified units: nothing below the threshold, the same everywhere above it."""
    net, (inputs, targets) = net_of(6, 24, 3, between=nn.ReLU), batch_of(256, 6, 3)
    estimate = LearnedFeedback(net, eps=0.05, memory=1.0, bins=4)
    for _ in range(24):
        estimate(inputs, targets)
    slopes = estimate._responses.state["slopes 0"]
    assert slopes[:2].abs().max() < 0.1 * slopes[2:].min()
    torch.testing.assert_close(slopes[2].item(), slopes[3].item(), rtol=0.1, atol=0)


def test_the_graph_has_what_depends_on_what() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.right, self.left, self.first, self.idle = (net_of(2, 2)[0] for _ in range(5))

        def forward(self, rows: Tensor) -> Tensor:
            rows = self.first(rows)
            left = self.left(rows)
            right = self.right(rows)
            self.idle(left)
            return self.last((left > 0) * right)

    net = Branches()
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear)}
    found = layer_graph(net, layers, batch_of(64, 2, 2)[0], Noise(0))
    assert found.order == ("first", "left", "right", "idle", "last")
    assert found.last == "last"
    assert found.sources == {
        "left": ("first",),
        "right": ("first",),
        "idle": ("first", "left"),
        "last": ("first", "left", "right", "idle"),  # idle changes nothing, so it may feed all that comes later
        OUTPUTS: ("first", "left", "right", "idle", "last"),
    }


def test_outputs_that_are_changed_in_place_are_not_those_of_the_last_layer() -> None:
    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = net_of(6, 12, 3)

        def forward(self, rows: Tensor) -> Tensor:
            return self.layers(rows).relu_()

    net, (inputs, targets) = Rectified(), batch_of(256, 6, 3)
    estimate = LearnedFeedback(net, memory=1.0)
    for _ in range(40):
        net.zero_grad()
        estimate(inputs, targets)
    found = net.layers[2].bias.grad.clone()
    net.zero_grad()
    torch.nn.functional.cross_entropy(net(inputs), targets).backward()
    assert torch.cosine_similarity(found, net.layers[2].bias.grad, dim=0) > 0.95  # without its derivative they are none


def test_the_inputs_of_all_calls_of_a_layer_count() -> None:
    """A layer that sees x and then 2 x: 3 x in its weights' estimate where its bias has 2."""
    net = Twice()
    estimate = LearnedFeedback(net, lambda outputs, _: outputs.sum(dim=1), residual=1.0)
    estimate(torch.ones(8, 2).double(), torch.zeros(8))
    assert bool(net.layer.bias.grad.abs().min() > 1e-3)
    torch.testing.assert_close(net.layer.weight.grad, net.layer.bias.grad[:, None].expand(2, 2) * 1.5)


def test_a_layer_that_is_called_twice_with_the_same_rows_has_the_size_of_its_gradient() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = net_of(1, 1)[0]

        def forward(self, rows: Tensor) -> Tensor:
            return self.layer(rows) + self.layer(rows)

    net = Same()  # one output: the only sign stands for all, and the loss is linear in it
    LearnedFeedback(net, lambda outputs, _: outputs.sum(dim=1), residual=1.0)(
        torch.full((4, 1), 3.0).double(), torch.zeros(4)
    )
    torch.testing.assert_close(net.layer.weight.grad.item(), 6.0)
    torch.testing.assert_close(net.layer.bias.grad.item(), 2.0)


def test_steps_and_thresholds_are_learned_and_state_goes_on_to_the_same_bits() -> None:
    class Hard(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return (rows > 0).to(rows.dtype)

    inputs, targets = batch_of(128, 4, 2)
    targets = (inputs[:, 0] > inputs[:, 1]).long()
    net = net_of(4, 24, 2, between=Hard)
    estimate, optimizer = LearnedFeedback(net), torch.optim.Adam(net.parameters(), lr=0.02)

    def step(estimate: LearnedFeedback) -> None:
        optimizer.zero_grad()
        estimate(inputs, targets)
        optimizer.step()

    for _ in range(150):
        step(estimate)
    assert (net(inputs).argmax(dim=1) == targets).float().mean() > 0.9
    again = LearnedFeedback(net)
    again.load_state_dict(estimate.state_dict())
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    net.zero_grad()
    estimate(inputs, targets)
    first = net[0].weight.grad.clone()
    net.load_state_dict(kept)
    net.zero_grad()
    again(inputs, targets)
    assert torch.equal(net[0].weight.grad, first)


def test_a_count_of_errors_has_differences_at_a_step_as_large_as_the_outputs() -> None:
    def wrong(outputs: Tensor) -> Tensor:
        return (outputs.argmax(dim=1) != 0).double()

    found = errors_of(wrong, torch.tensor([[0.0, 0.5], [5.0, 0.0]]).double(), 1.0)
    assert found.tolist() == [[-0.5, 0.5], [0.0, 0.0]]


def test_what_cannot_be_trained_so_is_refused_in_a_sentence() -> None:
    inputs, targets = batch_of(4, 2, 2)
    with pytest.raises(InputError, match=r"the parameter 1.weight is in no nn.Linear"):
        LearnedFeedback(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    with pytest.raises(InputError, match=r"layer 0 is given shape \(1, 2, 2, 2\)"):
        LearnedFeedback(net_of(2, 2))(inputs.view(1, 2, 2, 2), targets)
    with pytest.raises(InputError, match=r"outputs of shape \(2, 2, 2\).* objective='tokens'"):
        LearnedFeedback(net_of(2, 2))(inputs.view(2, 2, 2), targets)
    with pytest.raises(InputError, match="eps"):
        LearnedFeedback(net_of(2, 2), eps=0.0)
    estimate = LearnedFeedback(net_of(2, 2), lambda outputs, _: outputs.sum(dim=1) * float("nan"))
    with pytest.raises(NonFiniteError, match="step 0"):
        estimate(inputs, targets)
    assert estimate._responses is None
    assert all(p.grad is None for p in estimate.model.parameters())
    other = LearnedFeedback(net_of(2, 4, 2))
    other(inputs, targets)
    with pytest.raises(InputError, match="the state has a layer 2, which the model lacks"):
        LearnedFeedback(net_of(2, 2)).load_state_dict(other.state_dict())
    with pytest.raises(InputError, match=r"the state has slopes 0 of shape \(8,\), the model of \(4,\)"):
        LearnedFeedback(net_of(2, 4, 2), bins=4).load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="the state is of an earlier version"):
        other.load_state_dict({"steps": 3, "layers": {"0": {"feedback": torch.zeros(4, 2), "slopes": torch.ones(8)}}})
    other.model.forward = lambda rows: rows
    with pytest.raises(InputError, match="called none of its trained layers"):
        other(inputs, targets)


def test_a_state_of_before_the_first_batch_forgets_what_was_learned() -> None:
    net, (inputs, targets) = net_of(2, 4, 2), batch_of(8, 2, 2)
    estimate = LearnedFeedback(net)
    begun, found = estimate.state_dict(), []
    for _ in range(2):
        net.zero_grad()
        estimate(inputs, targets)
        found.append([parameter.grad.clone() for parameter in net.parameters()])
        estimate.load_state_dict(begun)
    assert all(map(torch.equal, *found))


def test_a_layer_that_the_first_batch_did_not_reach_is_refused_and_one_that_is_left_out_is_not() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.on = net_of(2, 2)[0], net_of(2, 2)[0], True

        def forward(self, rows: Tensor) -> Tensor:
            return self.second(self.first(rows)) if self.on else self.second(rows)

    net, (inputs, targets) = Sometimes().double(), batch_of(4, 2, 2)
    estimate = LearnedFeedback(net)
    estimate(inputs, targets)
    net.on = False
    net.zero_grad()
    estimate(inputs, targets)
    assert net.first.weight.grad is None
    assert net.second.weight.grad is not None
    late = LearnedFeedback(net)
    late(inputs, targets)
    net.on = True
    with pytest.raises(InputError, match="layer first is called for the batch of step 1 and was not for the first"):
        late(inputs, targets)


class Tokens(nn.Module):
    """Three dense layers on every token, and between the first two what each token has of those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (net_of(one, other)[0] for one, other in ((4, 6), (6, 5), (5, 3)))

    def forward(self, rows: Tensor) -> Tensor:
        """Return (batch, tokens, 3)."""
        hidden = self.first(rows).tanh()
        hidden = hidden + 0.1 * hidden.cumsum(dim=1)
        return self.last(self.second(hidden).tanh())


def tokens_of(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    inputs, targets = batch_of(batch * tokens, 4, 3)
    return inputs.view(batch, tokens, 4), targets.view(batch, tokens)


def cosines(model: nn.Module, found: list[Tensor], exact: list[Tensor]) -> dict[str, float]:
    names = [name for name, _ in model.named_parameters()]
    return {
        name: float(nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))
        for name, one, other in zip(names, found, exact, strict=True)
    }


def test_tokens_are_rows_of_their_own_and_the_last_layer_has_its_gradient() -> None:
    model, (inputs, targets) = Tokens(), tokens_of(16, 8)
    targets[:, :2] = -100  # do not count
    nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    exact = [parameter.grad.clone() for parameter in model.parameters()]
    estimate = LearnedFeedback(model, "tokens", eps=0.01)
    for _ in range(40):
        model.zero_grad()
        estimate(inputs, targets)
    found = [parameter.grad.clone() for parameter in model.parameters()]
    torch.testing.assert_close(found[4], exact[4], rtol=1e-2, atol=1e-5)
    assert cosines(model, found, exact)["second.weight"] > 0.98
    assert cosines(model, found, exact)["first.weight"] > 0.8  # what tokens pass on to others is left out of the fit


def test_of_tokens_too_the_mean_with_the_whole_residual_is_the_gradient(monkeypatch) -> None:
    """One example of two tokens: the residual knows of what the first passes on to the second, which no fit does."""
    model, (inputs, _) = Tokens(), tokens_of(1, 2)
    model.first, model.second, model.last = net_of(4, 1)[0], net_of(1, 1)[0], net_of(1, 2)[0]
    targets = torch.tensor([[0, 1]])
    nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    exact = [parameter.grad.clone() for parameter in model.parameters()]
    sums = [torch.zeros_like(gradient) for gradient in exact]
    for signs in itertools.product((1.0, -1.0), repeat=4):
        drawn = iter(torch.tensor(signs).double().split(2))
        first = LearnedFeedback(model, "tokens", eps=1e-3, residual=1.0)
        first._graph = layer_graph(model, first._layers, inputs, Noise(0))
        monkeypatch.setattr(Noise, "signs", lambda _, count, drawn=drawn, **__: next(drawn))
        model.zero_grad()
        first(inputs, targets)
        monkeypatch.undo()
        for total, parameter in zip(sums, model.parameters(), strict=True):
            total += parameter.grad / 16
    for found, gradient in zip(sums, exact, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


def test_layers_that_see_tokens_and_layers_that_see_examples_do_not_go_together() -> None:
    class Pooled(Tokens):
        def forward(self, rows: Tensor) -> Tensor:
            return self.last(self.second(self.first(rows).tanh()).mean(dim=1))

    inputs, targets = tokens_of(4, 2)
    with pytest.raises(InputError, match="8 rows for 4 examples"):
        LearnedFeedback(Pooled())(inputs, targets[:, 0])


def test_squared_errors_of_tokens_are_those_of_the_mean_over_all_of_an_example() -> None:
    model, (inputs, _) = Tokens(), tokens_of(4, 5)
    targets = Noise(3).normal(4 * 5 * 3).view(4, 5, 3)
    (model(inputs) - targets).square().mean().backward()
    exact = model.last.weight.grad.clone()
    model.zero_grad()
    LearnedFeedback(model, "values", eps=1e-3)(inputs, targets)
    torch.testing.assert_close(model.last.weight.grad, exact, rtol=1e-2, atol=1e-4)


def test_tokens_in_another_order_tied_embeddings_and_losses_without_a_closed_form_are_refused() -> None:
    class TokensFirst(Tokens):
        def forward(self, rows: Tensor) -> Tensor:
            return super().forward(rows.transpose(0, 1)).transpose(0, 1)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.last = nn.Embedding(3, 4), nn.Linear(4, 3)
            self.last.weight = self.rows.weight

    inputs, targets = tokens_of(4, 2)
    with pytest.raises(InputError, match=r"rows in the order \(2, 4\).*batch_first"):
        LearnedFeedback(TokensFirst(), "tokens")(inputs, targets)
    with pytest.raises(InputError, match=r"rows.weight is shared by an nn.Linear"):
        LearnedFeedback(Tied(), "tokens")
    with pytest.raises(InputError, match=r"a row for each token.*cotangent"):
        LearnedFeedback(Tokens(), lambda outputs, _: outputs.square().flatten(1).mean(dim=1))(inputs, targets)
