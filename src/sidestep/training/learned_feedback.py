"""Training of dense layers inside any module by noise on their outputs, in a loop and with an optimiser of the user's.

    for inputs, targets in loader:
        estimate(inputs, targets)         fills `.grad`, as loss.backward() does
        optimizer.step(); optimizer.zero_grad()

What is between the layers (hard thresholds, rounding, argmax, time steps) need have no derivative; see
`gradients/learned_feedback` for the estimate. The layer whose outputs are the net's has the error there itself.

Where layers see a row for each token, each token is a row with noise of its own: the fit is of what a layer does to
later layers at the same token, and what attention carries from one token to another is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.checks import check_positive, check_range, check_whole
from sidestep.data.objective import Objective
from sidestep.errors import InputError, NonFiniteError
from sidestep.gradients.any_module import check_trainable
from sidestep.gradients.layer_passes import OUTPUTS, LayerGraph, LayerPass, layer_graph, layer_pass, spread_of
from sidestep.gradients.learned_feedback import REFIT, Measured, Responses, errors_of
from sidestep.keywords import known_keywords
from sidestep.nets.precision import at_least_float32
from sidestep.nets.trained import trained
from sidestep.noise import Noise
from sidestep.training.attached_rule import as_objective

__all__ = ["LearnedFeedback"]


class LearnedFeedback:
    """Estimates gradients of the dense layers (`nn.Linear`) of any module, from two forward passes and the loss.

    The first batch takes one pass more, and one for each layer, that find which layer feeds which.

    steps: how many batches it has seen.
    """

    @known_keywords()
    def __init__(  # long: what an estimate is made of
        self,
        model: nn.Module,
        objective: Objective | Callable[[Tensor, Tensor], Tensor] | str | None = None,
        *,
        eps: float = 0.1,
        error_eps: float = 0.01,
        pairs: int = 1,
        bins: int = 8,
        memory: float = 0.98,
        residual: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Look at the layers.

        Args:
            model: of trained `nn.Linear` layers, or classes made of it, and anything else without trained parameters.
            objective: as in `attach`: one loss per example, classes by default; "tokens" for outputs (batch, tokens,
                vocabulary), whose errors come in closed form. It need not be differentiable.
            eps: size of the noise on a layer's outputs, in their standard deviations.
            error_eps: size of the steps, in that of the outputs, by which the objective alone is tried; for one that
                jumps, such as a count of errors, take 1.
            pairs: of passes for each batch.
            bins: ranges of a layer's outputs, each with a slope of its own.
            memory: what earlier steps count for beside the next.
            residual: the part of what the fit leaves that is added: with 1 the estimate is unbiased to the second order
                in eps, with the noise of one draw; for tokens too.
            seed: of the noise, and of what the module draws.

        Raises:
            InputError: for trained parameters that are in no such layer, or settings out of range.

        >>> from sidestep.noise import Noise
        >>> with Noise(0).torch_seeded():
        ...     model = nn.Sequential(nn.Linear(2, 16), nn.Threshold(0.5, 0.0), nn.Linear(16, 2))
        >>> inputs = Noise(1).normal(256).view(128, 2)
        >>> targets = (inputs[:, 0] > inputs[:, 1]).long()
        >>> estimate, optimizer = LearnedFeedback(model), torch.optim.Adam(model.parameters(), lr=0.02)
        >>> for _ in range(200):
        ...     loss = estimate(inputs, targets)
        ...     optimizer.step(); optimizer.zero_grad()
        >>> bool((model(inputs).argmax(dim=1) == targets).float().mean() > 0.95)
        True
        """
        check_trainable(model)
        check_positive(100, eps=eps, error_eps=error_eps)
        check_whole(1, 1 << 16, pairs=pairs)
        check_whole(1, 1 << 10, bins=bins)
        check_range(0, 1, memory=memory, residual=residual)
        self.model, self.steps = model, 0
        self._objective, self._noise = as_objective(objective), Noise(seed).stream("learned-feedback")
        self._eps, self._error_eps, self._pairs, self._residual = eps, error_eps, pairs, residual
        self._bins, self._memory = bins, memory
        self._layers = _layers_of(model)
        self._graph: LayerGraph | None = None
        self._spreads: dict[str, Tensor] = {}
        self._responses: Responses | None = None

    @torch.no_grad()
    def __call__(self, inputs: Any, targets: Any) -> Tensor:
        """Add an estimate of the gradient of the mean loss to `.grad`, and return that loss, (), noise and all.

        Running statistics of the module are those of the first pass.

        Raises:
            InputError: for layers that do not see one row for each example, or outputs that are not (batch, k); for a
                layer that the first batch did not reach, and this one does.
            NonFiniteError: for a loss that is no finite number; nothing has changed then.
        """
        noise, pairs = self._noise.at(self.steps), []
        graph = self._graph or layer_graph(self.model, self._layers, inputs, noise.stream("look"))
        for number in range(self._pairs):
            pairs.append(self._pair(graph, inputs, targets, noise.sub(number)))
        self._graph = graph
        for pair in pairs:
            self._add(graph, pair, targets)
        buffers = dict(self.model.named_buffers())
        for name, value in pairs[0].plus.statistics.items():
            buffers[name].copy_(value)
        self.steps += 1
        return torch.stack([loss.mean() for pair in pairs for loss in pair.losses]).mean()

    def _pair(self, graph: LayerGraph, inputs: Any, targets: Any, noise: Noise) -> "_Pair":
        """Run the module with noise, and with the noise of the other sign."""
        signs: dict[str, Tensor] = {}
        sizes: dict[str, Tensor] = {}

        def run(sign: int) -> LayerPass:
            def change(name: str, output: Tensor) -> Tensor:
                if name == graph.last:
                    return output  # its error is known
                if name not in signs:
                    drawn = noise.stream(name).signs(output.numel(), device=output.device)
                    signs[name] = drawn.view_as(output).to(output.dtype)
                    sizes[name] = self._eps * self._spreads.get(name, spread_of(output))
                return output + (sign * sizes[name]) * signs[name]

            return layer_pass(self.model, self._layers, inputs, noise, change)

        plus, minus = run(1), run(-1)
        if new := next((name for name in plus.seen if name not in graph.order), None):
            raise InputError(
                f"layer {new} is called for the batch of step {self.steps} and was not for the first; let the model "
                "call every trained layer for every batch, or freeze it"
            )
        if plus.outputs.ndim == 3 and self._objective.kind == "classes":
            raise InputError(
                f"the model gives outputs of shape {tuple(plus.outputs.shape)}, a row for each token, and the "
                "objective is a class for each example; for next tokens give objective='tokens'"
            )
        if plus.outputs.ndim == 3 and self._objective.cotangent is None:
            raise InputError(
                f"the loss {self._objective.name!r} is of outputs of shape {tuple(plus.outputs.shape)}, a row for each "
                "token, whose errors come in closed form: give an Objective with a cotangent, or objective='tokens'"
            )
        losses = [at_least_float32(self._objective.each(each.outputs, targets)) for each in (plus, minus)]
        if not all(bool(each.isfinite().all()) for each in losses):
            raise NonFiniteError(f"the loss of step {self.steps} is not finite; take a smaller learning rate")
        return _Pair(plus, minus, losses, signs, sizes)

    def _add(self, graph: LayerGraph, pair: "_Pair", targets: Any) -> None:
        """Add what is expected of every layer to its gradients, and learn from the pair."""
        errors = self._errors(pair, targets).to(pair.losses[0].dtype)
        responses = self._responses = self._responses or self._new_responses(graph, errors)
        seen = {name: self._measured(pair, name, responses) for name in pair.plus.seen}
        expected = responses.expected(errors, seen)
        left = (pair.losses[0] - pair.losses[1]) / 2  # (batch,)
        told = torch.stack([(seen[name].noise * expected[name]).sum(dim=1) for name in seen]).sum(dim=0)  # (rows,)
        tokens = len(told) // len(left)
        left = (left.to(errors.dtype) - told.view(-1, tokens).sum(dim=1)).repeat_interleave(tokens)
        for name, own in seen.items():
            rows = (expected[name] + self._residual * left[:, None] * own.noise) / own.size
            rows = rows * (tokens / (len(errors) * self._pairs))
            # one noise for all calls: `rows` is the sum of their gradients, of which none says which call's it is
            plus, minus = pair.plus.seen[name], pair.minus.seen[name]
            inputs = (plus.inputs + minus.inputs).to(rows.dtype) / (2 * plus.calls)
            _add_grad(self._layers[name].weight, rows.T @ inputs)
            _add_grad(self._layers[name].bias, rows.sum(dim=0))
        change = (pair.plus.outputs - pair.minus.outputs).to(errors.dtype).flatten(0, -2) / 2
        responses.learn(seen, change, refit=self.steps % REFIT == 0)

    def _errors(self, pair: "_Pair", targets: Any) -> Tensor:
        """Return how each example's loss changes with the outputs of its rows, (rows, k)."""
        middle = (pair.plus.outputs + pair.minus.outputs) / 2
        if middle.ndim == 3 and self._objective.cotangent is not None:  # in closed form: vocabularies are large
            errors = self._objective.cotangent(at_least_float32(middle), targets).flatten(0, -2)
            return errors / middle.shape[1] if self._objective.kind == "values" else errors  # which is of one row
        middle = middle.double()  # or rounding would drown short differences
        size = self._error_eps * float(spread_of(middle))
        return errors_of(lambda moved: self._objective.each(moved, targets), middle, size)

    def _measured(self, pair: "_Pair", name: str, responses: Responses) -> Measured:
        plus, minus = pair.plus.seen[name], pair.minus.seen[name]
        middle = at_least_float32(plus.outputs + minus.outputs) / (2 * plus.calls)
        here = spread_of(middle)
        self._spreads[name] = torch.lerp(here, self._spreads.get(name, here), 0.95)
        noise = pair.signs[name].flatten(0, -2).to(middle.dtype) if name in pair.signs else torch.zeros_like(middle)
        size = pair.sizes[name].to(middle.dtype) if name in pair.sizes else here.new_ones(())
        change = at_least_float32(plus.outputs - minus.outputs) / (2 * plus.calls * size)
        return Measured(noise, size, change, responses.ranges(middle, self._spreads[name]))

    def _new_responses(self, graph: LayerGraph, like: Tensor) -> Responses:
        widths = {name: self._layers[name].out_features for name in graph.order}
        return Responses(graph, widths | {OUTPUTS: like.shape[1]}, self._bins, self._memory, like)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on: the number of steps, which layer feeds which, and tensors."""
        if self._graph is None or self._responses is None:
            return {"steps": self.steps}
        graph = {"order": self._graph.order, "sources": dict(self._graph.sources), "last": self._graph.last}
        fit = {name: value.clone() for name, value in self._responses.state.items()}
        return {
            "steps": self.steps,
            "graph": graph,
            "spreads": dict(self._spreads),
            "fit": fit,
            "classes": self._responses.outputs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises InputError for a state of other layers, or of a version that learned something else.
        """
        if "layers" in state:
            raise InputError(
                "the state is of an earlier version, which learned how the loss depends on each layer, and not how "
                "layers depend on each other; begin anew, which takes some hundred batches"
            )
        if "graph" not in state:  # of before the first batch
            self._graph, self._responses, self._spreads = None, None, {}
        else:
            graph, fit = LayerGraph(**state["graph"]), state["fit"]
            if unknown := next((name for name in graph.order if name not in self._layers), None):
                raise InputError(
                    f"the state has a layer {unknown}, which the model lacks; load it for the model it is of"
                )
            like = next(iter(state["spreads"].values())).new_zeros(1, state["classes"])
            responses = self._new_responses(graph, like)
            for name, value in responses.state.items():
                if name not in fit or fit[name].shape != value.shape:
                    given = tuple(fit[name].shape) if name in fit else "none"
                    raise InputError(
                        f"the state has {name} of shape {given}, the model of {tuple(value.shape)}; load it for a "
                        "model of the same layers and as many bins"
                    )
                responses.state[name] = fit[name].clone()
            self._graph, self._responses, self._spreads = graph, responses, dict(state["spreads"])
        self.steps = int(state["steps"])


@dataclass(frozen=True)
class _Pair:
    """Two passes, their losses, (batch,), and the noise of every layer that had any."""

    plus: LayerPass
    minus: LayerPass
    losses: list[Tensor]
    signs: dict[str, Tensor]
    sizes: dict[str, Tensor]


def _layers_of(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the trained layers by name; InputError for other trained parameters."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and trained(layer)}
    reached = {id(parameter) for layer in found.values() for parameter in (layer.weight, layer.bias)}
    outside = [part for part in model.modules() if not isinstance(part, nn.Linear)]
    elsewhere = {id(parameter) for part in outside for parameter in part.parameters(recurse=False)}
    for name, parameter in trained(model).items():
        if id(parameter) not in reached:
            raise InputError(
                f"the parameter {name} is in no nn.Linear, whose outputs could have noise; freeze it, or take a rule "
                "that shifts weights"
            )
        if id(parameter) in elsewhere:
            raise InputError(
                f"the parameter {name} is shared by an nn.Linear and by a module of another kind, such as an "
                "embedding, whose part of the gradient would be left out; give each its own, or freeze it"
            )
    return found


def _add_grad(parameter: Tensor | None, gradient: Tensor) -> None:
    if parameter is not None and parameter.requires_grad:
        gradient = gradient.to(parameter.dtype)
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
