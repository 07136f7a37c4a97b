"""Flower's rounds with scalars in place of weights: a strategy for its ServerApp, and the ClientApp that goes with it.

configure_train: an invitation a node -> Client.answer on the node -> aggregate_train: Server.close_round
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from sidestep.data.objective import Objective
from sidestep.errors import InputError
from sidestep.federated import Client, Round, Server
from sidestep.rules.protocol import Rule

try:
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp.strategy import Strategy as _Strategy
except ImportError:  # the module can be read without it; what it has says what is missing
    _Strategy = object

__all__ = ["ScalarStrategy", "client_app"]

_RECORD, _ENTRY = "sidestep", "message"
_WEIGHTS, _PLACE = "sidestep-state", "sidestep-place"  # of a node between rounds

NodeData = Callable[[Any], tuple[Callable[[int], Sequence[Any] | Callable[[], Tensor]], int]]


class ScalarStrategy(_Strategy):
    """A strategy of Flower's whose messages hold the scalars of a `sidestep.federated.Server`.

    `ScalarStrategy(Server(model, rule)).start(grid, num_rounds=100)`; nodes run `client_app`. Weights never travel:
    `evaluate_fn` and the result get those of the server's own model.

    Args:
        server: with the model, the rule, and how a round is summed up.
        fraction_train: share of the nodes that are asked in a round, drawn from the server's seed.
        min_train_nodes: the fewest that are asked.
        min_available_nodes: a round waits until so many are there.
        rate: learning rate of a round, from its number, which counts from 1; the rule's by default.

    Raises:
        InputError: without flwr.

    rounds: what became of each round, with the bytes of its messages.
    """

    def __init__(
        self,
        server: Server,
        *,
        fraction_train: float = 1.0,
        min_train_nodes: int = 1,
        min_available_nodes: int = 1,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        _check_flwr("ScalarStrategy")
        if not 0 < fraction_train <= 1:
            raise InputError(f"fraction_train is a share of the nodes, above 0 and up to 1, got {fraction_train}")
        self.server, self.rounds = server, list[Round]()
        self._fraction, self._fewest, self._rate = fraction_train, min_train_nodes, rate
        self._available = max(min_available_nodes, min_train_nodes)

    @property
    def arrays(self) -> Any:
        """The server's weights, as an ArrayRecord."""
        return ArrayRecord({name: value.detach().clone() for name, value in self.server.model.state_dict().items()})

    def start(self, grid: Any, initial_arrays: Any = None, **named: Any) -> Any:
        """Run all rounds, as Flower's `Strategy.start`; the first weights are those of the server's model."""
        return super().start(grid, self.arrays if initial_arrays is None else initial_arrays, **named)

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
        """Return an invitation for every node that this round asks."""
        while len(nodes := sorted(grid.get_node_ids())) < self._available:
            time.sleep(1)
        if self._rate is not None:
            for group in self.server.optimizer.param_groups:
                group["lr"] = float(self._rate(server_round))
        asked = self.server.sample(nodes, max(int(len(nodes) * self._fraction), self._fewest))
        return [
            Message(_content(self.server.invitation(node), config), dst_node_id=node, message_type="train")
            for node in asked
        ]

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """Take the round's steps, and return the server's weights and what became of the round.

        A node that has failed may have lost its state, say by a restart: it is sent all steps the next time.
        """
        answers = {}
        for reply in replies:
            if reply.has_error():
                self.server.forget(reply.metadata.src_node_id)
            else:
                answers[reply.metadata.src_node_id] = _held(reply.content)
        found = self.server.close_round(answers)
        self.rounds.append(found)
        told: dict[str, float] = {
            "clients": len(found.taken),
            "down-bytes": found.down_bytes,
            "up-bytes": found.up_bytes,
        }
        return self.arrays, MetricRecord(told if found.loss is None else {"loss": found.loss, **told})

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Any]:
        """Ask no node: the server's own model is evaluated, by `evaluate_fn`."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Any]) -> Any:
        """Return nothing: no node is asked."""
        return None

    def summary(self) -> None:
        """Say nothing: Flower's own lines are enough."""


def client_app(  # long: what a client is made from
    make_model: Callable[[], nn.Module],
    rule: Rule,
    data: NodeData,
    *,
    seed: int = 0,
    objective: Objective | Callable[[Tensor, Tensor], Tensor] | str | None = None,
    clip: float | None = None,
) -> Any:
    """Return a ClientApp whose nodes answer a `ScalarStrategy`.

    Args:
        make_model: makes the model with its first weights, the server's.
        rule, seed: the server's.
        data: called with Flower's Context of a node; returns its batches, a function of the step that `Client.answer`
            takes, and how many examples it has.
        objective, clip: as `Client` takes them.

    Weights and optimiser memory of a node stay in its `context.state` between rounds, and never leave it.

    Raises:
        InputError: without flwr.
    """
    _check_flwr("client_app")
    app = ClientApp()

    def train(message: Any, context: Any) -> Any:
        client = Client(make_model(), rule, seed, objective=objective, clip=clip)
        if _WEIGHTS in context.state:
            place = json.loads(str(context.state[_PLACE]["record"]))
            client.restore(context.state[_WEIGHTS].to_torch_state_dict(), place)
        batch, examples = data(context)
        answer = client.answer(_held(message.content), batch, examples)
        tensors, record = client.state()
        context.state[_WEIGHTS] = ArrayRecord({name: value.detach().clone() for name, value in tensors.items()})
        context.state[_PLACE] = ConfigRecord({"record": json.dumps(record)})
        return Message(_content(answer), reply_to=message)

    app.train()(train)
    return app


def _content(data: bytes, config: Any = None) -> Any:
    held = {_RECORD: ConfigRecord({_ENTRY: data})}
    return RecordDict({**held, "config": config} if config else held)


def _held(content: Any) -> bytes:
    found = content.get(_RECORD, {}).get(_ENTRY, b"") if content is not None else b""
    return found if isinstance(found, bytes) else b""


def _check_flwr(name: str) -> None:
    if _Strategy is object:
        raise InputError(f"{name} needs flwr, which is missing: pip install 'sidestep[flwr]'")
