"""Training of dense layers inside any module by noise on their outputs, in a loop and with an optimiser of the user's.

    for inputs, targets in loader:
        estimate(inputs, targets)         fills `.grad`, as loss.backward() does
        optimizer.step(); optimizer.zero_grad()

What is between the layers (hard thresholds, rounding, argmax, time steps) need have no derivative; see
`gradients/learned_feedback` for the estimate.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.checks import check_positive, check_range
from sidestep.data.objective import Objective
from sidestep.errors import InputError, NonFiniteError
from sidestep.gradients.any_module import called, check_trainable
from sidestep.gradients.learned_feedback import LayerFeedback, errors_of, spread_of
from sidestep.keywords import known_keywords
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import at_least_float32
from sidestep.nets.trained import device_of, trained
from sidestep.noise import Noise
from sidestep.training.attached_rule import as_objective

__all__ = ["LearnedFeedback"]


class LearnedFeedback:
    """Estimates gradients of the dense layers (`nn.Linear`) of any module, from two forward passes and the loss.

    steps: how many batches it has seen.
    """

    @known_keywords()
    def __init__(  # long: what an estimate is made of
        self,
        model: nn.Module,
        objective: Objective | Callable[[Tensor, Tensor], Tensor] | str | None = None,
        *,
        eps: float = 0.3,
        error_eps: float = 0.01,
        pairs: int = 1,
        bins: int = 8,
        memory: float = 0.995,
        residual: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Look at the layers.

        Args:
            model: of trained `nn.Linear` layers, or classes made of it, and anything else without trained parameters.
            objective: as in `attach`: one loss per example, classes by default. It need not be differentiable.
            eps: size of the noise on a layer's outputs, in their standard deviations.
            error_eps: size of the steps, in that of the outputs, by which the objective alone is tried; for one that
                jumps, such as a count of errors, take 1.
            pairs: of passes for each batch.
            bins: ranges of a layer's outputs, each with a slope of its own.
            memory: what earlier steps count for beside the next.
            residual: the part of what the fit leaves that is added: with 1 the estimate is unbiased, with the noise of
                one draw.
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
        check_range(1, 1 << 16, pairs=pairs)
        check_range(1, 1 << 10, bins=bins)
        check_range(0, 1, memory=memory, residual=residual)
        self.model, self.steps = model, 0
        self._objective, self._noise = as_objective(objective), Noise(seed).stream("learned-feedback")
        self._eps, self._error_eps, self._pairs, self._residual = eps, error_eps, pairs, residual
        self._bins, self._memory = bins, memory
        self._layers = _layers_of(model)
        self._learned: dict[str, LayerFeedback] = {}

    @torch.no_grad()
    def __call__(self, inputs: Any, targets: Any) -> Tensor:
        """Add an estimate of the gradient of the mean loss to `.grad`, and return that loss, (), noise and all.

        Running statistics of the module are those of the first pass.

        Raises:
            InputError: for layers that do not see one row for each example, or outputs that are not (batch, k).
            NonFiniteError: for a loss that is no finite number; nothing has changed then.
        """
        noise, found = self._noise.at(self.steps), []
        for pair in range(self._pairs):
            sizes: dict[str, Tensor] = {}
            passes = [_Pass(self, noise.sub(pair), sign, sizes) for sign in (1, -1)]
            outputs, statistics = zip(*(each.run(inputs) for each in passes), strict=True)
            losses = [at_least_float32(self._objective.each(each, targets)) for each in outputs]
            if not all(bool(each.isfinite().all()) for each in losses):
                raise NonFiniteError(f"the loss of step {self.steps} is not finite; take a smaller learning rate")
            found.append((passes, outputs, losses, statistics[0]))
        for passes, outputs, losses, _ in found:
            self._add(passes, outputs, losses, targets)
        buffers = dict(self.model.named_buffers())
        for name, value in found[0][3].items():
            buffers[name].copy_(value)
        self.steps += 1
        return torch.stack([loss.mean() for _, _, losses, _ in found for loss in losses]).mean()

    def _add(self, passes: "list[_Pass]", outputs: Sequence[Tensor], losses: list[Tensor], targets: Any) -> None:
        """Learn from one pair, and add what is expected of every layer to its gradients."""
        middle = ((outputs[0] + outputs[1]) / 2).double()  # or rounding would drown the differences of short steps
        size = self._error_eps * float(spread_of(middle))
        errors = errors_of(lambda moved: self._objective.each(moved, targets), middle, size)
        errors = errors.to(outputs[0].dtype)
        for name, layer in self._layers.items():
            if name not in passes[0].seen:
                continue  # not called for this batch
            plus, minus = (each.seen[name] for each in passes)
            noise, middles = plus.noise, (plus.outputs + minus.outputs) / (2 * plus.calls)
            alpha = ((losses[0] - losses[1]) / (2 * plus.size)).to(noise.dtype)
            learned = self._learned_of(name, layer, errors)
            learned.see(middles)
            expected, plain, ranges = learned.expected(errors, middles)
            left = (alpha - (noise * expected).sum(dim=1))[:, None] * noise
            rows = (expected + self._residual * left) / (len(errors) * self._pairs)
            learned.learn(expected + left, errors, plain, ranges)
            # one noise for all calls: `rows` is the sum of their gradients, of which none says which call's it is
            _add_grad(layer.weight, rows.T @ ((plus.inputs + minus.inputs) / (2 * plus.calls)))
            _add_grad(layer.bias, rows.sum(dim=0))

    def _size_of(self, name: str, outputs: Tensor) -> Tensor:
        known = self._learned.get(name)
        return self._eps * (known.spread if known else spread_of(outputs))

    def _learned_of(self, name: str, layer: nn.Linear, errors: Tensor) -> LayerFeedback:
        if name not in self._learned:
            outputs = layer.out_features
            self._learned[name] = LayerFeedback(outputs, errors.shape[1], self._bins, self._memory, errors)
        return self._learned[name]

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on: the number of steps, and tensors by layer."""
        layers = {name: {key: value.clone() for key, value in learned.state.items()}
                  for name, learned in self._learned.items()}  # fmt: skip
        return {"steps": self.steps, "layers": layers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises InputError for a state of other layers.
        """
        if not state["layers"].keys() <= self._layers.keys():
            unknown = next(name for name in state["layers"] if name not in self._layers)
            raise InputError(f"the state has a layer {unknown}, which the model lacks; load it for the model it is of")
        for name, values in state["layers"].items():
            layer, outputs = self._layers[name], len(values["feedback"])
            if outputs != layer.out_features or len(values["slopes"]) != self._bins:
                raise InputError(f"the state of layer {name} has {outputs} outputs and {len(values['slopes'])} bins, "
                                 f"the model {layer.out_features} and {self._bins}")  # fmt: skip
            self._learned_of(name, layer, values["feedback"]).state.update(
                {key: value.clone() for key, value in values.items()}
            )
        self.steps = int(state["steps"])


class _Seen:
    """One layer during a pass: its noise, and the sums of what entered and left it over all calls."""

    def __init__(self, noise: Tensor, size: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        self.noise, self.size, self.inputs, self.outputs, self.calls = noise, size, inputs, outputs, 1


class _Pass:
    """A forward pass with noise on the outputs of every layer, the same at every call of it."""

    def __init__(self, estimate: LearnedFeedback, noise: Noise, sign: int, sizes: dict[str, Tensor]) -> None:
        self._estimate, self._noise, self._sign, self._sizes = estimate, noise, sign, sizes  # both sides share sizes
        self.seen: dict[str, _Seen] = {}

    def run(self, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the outputs, and the buffers that the module changed; they are as before again."""
        model, layers = self._estimate.model, self._estimate._layers
        hooks = [layer.register_forward_hook(self._hook(name)) for name, layer in layers.items()]
        try:
            drawing = self._noise.stream("module").torch_seeded(device_of(model))  # both passes draw the same
            with kept_statistics(model) as changed, drawing:
                outputs = called(model, inputs, "wrap the model so that it gives one")
                statistics = changed()
        finally:
            for hook in hooks:
                hook.remove()
        if outputs.ndim != 2:
            raise InputError(f"the model must give outputs (batch, k), got shape {tuple(outputs.shape)}")
        for name, seen in self.seen.items():
            if len(seen.outputs) != len(outputs):
                raise InputError(
                    f"layer {name} saw {len(seen.outputs)} rows for {len(outputs)} examples; call it with one row for "
                    "each example, or freeze it"
                )
        return outputs, statistics

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            rows = arguments[0]
            if rows.ndim != 2:
                raise InputError(
                    f"layer {name} is given shape {tuple(rows.shape)}; it can be trained so where it sees one row for "
                    "each example, (batch, features); freeze it, or take a rule that shifts weights"
                )
            if name in self.seen:
                seen = self.seen[name]
                seen.inputs, seen.outputs, seen.calls = seen.inputs + rows, seen.outputs + output, seen.calls + 1
            else:
                seen = self.seen[name] = self._first(name, rows, output)
            return output + (self._sign * seen.size) * seen.noise

        return hook

    def _first(self, name: str, rows: Tensor, output: Tensor) -> _Seen:
        signs = self._noise.stream(name).signs(output.numel(), device=output.device).view_as(output).to(output.dtype)
        size = self._sizes.setdefault(name, self._estimate._size_of(name, output))
        return _Seen(signs, size, rows, output)


def _layers_of(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the trained layers by name; InputError for other trained parameters."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and trained(layer)}
    reached = {id(parameter) for layer in found.values() for parameter in (layer.weight, layer.bias)}
    for name, parameter in trained(model).items():
        if id(parameter) not in reached:
            raise InputError(
                f"the parameter {name} is in no nn.Linear, whose outputs could have noise; freeze it, or take a rule "
                "that shifts weights"
            )
    return found


def _add_grad(parameter: Tensor | None, gradient: Tensor) -> None:
    if parameter is not None and parameter.requires_grad:
        gradient = gradient.to(parameter.dtype)
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
