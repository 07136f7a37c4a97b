"""Flower's rounds with scalars: its own messages and contexts, without its engine, which takes seconds to start."""

import pytest
import torch
from torch import nn

from sidestep import rules
from sidestep.errors import InputError
from sidestep.federated import Client, Server
from sidestep.integrations import flwr as ours
from sidestep.noise import Noise

RULE = rules.SPSA(pairs=4, learning_rate=0.01, optimizer_kind="adam")
NODES = {7: 0, 11: 1, 13: 2}
INPUTS = Noise(3).normal(30 * 4).view(3, 10, 4)
TARGETS = Noise(4).integers(30, 2).view(3, 10)


def made():
    with Noise(1).torch_seeded():
        return nn.Linear(4, 2)


def data(context):
    place = context.node_config["partition-id"]
    return (lambda step: (INPUTS[place], TARGETS[place])), 10


def test_without_flwr_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(ours, "_Strategy", object)  # as it is where the import fails
    with pytest.raises(InputError, match=r"pip install 'sidestep\[flwr\]'"):
        ours.ScalarStrategy(Server(made(), RULE))
    with pytest.raises(InputError, match=r"pip install 'sidestep\[flwr\]'"):
        ours.client_app(made, RULE, data)


@pytest.fixture
def flower(monkeypatch):
    """Who this process is, as Flower's own engine sets it before a strategy starts."""
    pytest.importorskip("flwr")
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Grid:
    """What a strategy calls: nodes of one process, each with its context, of which one may fail or be away."""

    def __init__(self, app, failing=()):
        from flwr.app import Context, RecordDict

        self.app, self.failing, self.sizes = app, failing, []
        self.contexts = {
            node: Context(
                run_id=1, node_id=node, node_config={"partition-id": place}, state=RecordDict(), run_config={}
            )
            for node, place in NODES.items()
        }

    def get_node_ids(self):
        return list(NODES)

    def send_and_receive(self, messages, *, timeout=None):
        from flwr.app import Error, Message, Metadata

        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            content = message.content
            self.sizes.append(len(content["sidestep"]["message"]))
            assert not content.array_records
            whole = Message(content=content, metadata=Metadata(1, "m", 0, node, "", "", 0.0, 60.0, "train"))
            if node in self.failing:
                replies.append(Message(Error(0, "down"), reply_to=whole))
                continue
            try:
                replies.append(self.app(whole, self.contexts[node]))
            except InputError as error:
                replies.append(Message(Error(1, str(error)), reply_to=whole))
        return replies


@pytest.mark.usefixtures("flower")
def test_nodes_train_the_servers_model_and_no_weights_travel():
    grid = Grid(ours.client_app(made, RULE, data))
    strategy = ours.ScalarStrategy(Server(made(), RULE, local_steps=2), fraction_train=0.7)
    result = strategy.start(grid, num_rounds=6)
    assert strategy.server.steps == 12
    assert [len(found.taken) for found in strategy.rounds] == [2] * 6
    assert sum(grid.sizes) == sum(found.down_bytes for found in strategy.rounds)
    weights = result.arrays.to_torch_state_dict()
    assert torch.equal(weights["weight"], strategy.server.model.weight)
    assert not torch.equal(weights["weight"], made().weight)
    plain = Server(made(), RULE, local_steps=2)  # the same rounds without Flower
    clients = {node: Client(made(), RULE) for node in NODES}
    for _ in range(6):
        asked = plain.sample(list(NODES), 2)
        contexts = {node: grid.contexts[node] for node in asked}
        plain.close_round({n: clients[n].answer(plain.invitation(n), *data(contexts[n])) for n in asked})
    assert torch.equal(plain.model.weight, strategy.server.model.weight)


@pytest.mark.usefixtures("flower")
def test_a_node_that_fails_is_left_out():
    grid = Grid(ours.client_app(made, RULE, data), failing=(11,))
    strategy = ours.ScalarStrategy(Server(made(), RULE), rate=lambda number: 0.0)
    strategy.start(grid, num_rounds=2)
    assert [(found.taken, found.missing) for found in strategy.rounds] == [((7, 13), (11,))] * 2
    assert torch.equal(strategy.server.model.weight, made().weight)  # the rate was the strategy's


@pytest.mark.usefixtures("flower")
def test_a_node_that_has_lost_its_state_is_sent_all_steps_and_takes_part_again():
    from flwr.app import RecordDict

    grid = Grid(ours.client_app(made, RULE, data))
    strategy = ours.ScalarStrategy(Server(made(), RULE))
    strategy.start(grid, num_rounds=2)
    grid.contexts[11].state = RecordDict()  # as after a restart
    strategy.start(grid, num_rounds=2)
    assert [found.taken for found in strategy.rounds[2:]] == [(7, 13), (7, 11, 13)]
