"""MNIST cut by label among 20 clients, by Flower's own simulation engine: scalars, and FedAvg, accuracy by bytes.

    python -m experiments.federated_flwr --alpha 0.5 --seed 0 --rounds 60

Needs `pip install 'flwr[simulation]'`. A line for each round that is looked at: what trained, bytes of all messages of
all rounds, up and down, and test accuracy. FedAvg's bytes are those of its weights in float32, without what is around
them; its learning rate is chosen on validation images after one round, in this process.
"""

import argparse
import functools

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.given import a_count, a_seed
from sidestep import data, rules
from sidestep.federated import Server, split_by_label
from sidestep.integrations.flwr import ScalarStrategy, client_app
from sidestep.noise import Noise

CLIENTS, ASKED, BATCH, LOCAL_STEPS = 20, 10, 64, 10
RULE = rules.SPSA(pairs=32, learning_rate=0.003, optimizer_kind="adam")
FEDAVG_RATES = (0.03, 0.1, 0.3)


def make_model() -> nn.Module:
    """An MLP with the first weights that all parties share."""
    with Noise(0).stream("model").torch_seeded():
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))


@functools.cache
def mnist() -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs and labels of each split."""
    found = data.load("mnist")
    parts = {"train": found.train, "validation": found.validation, "test": found.read_test()}
    scaled = {name: ((part.images.float() / 255 - 0.1307) / 0.3081, part.labels) for name, part in parts.items()}
    return {name: (images.view(-1, 1, 28, 28), labels) for name, (images, labels) in scaled.items()}


@functools.cache
def cut(alpha: float, seed: int) -> list[Tensor]:
    """The places of each client's examples."""
    return split_by_label(mnist()["train"][1], CLIENTS, alpha, Noise(seed).stream("cut"), least=BATCH)


def accuracy(model: nn.Module, part: str) -> float:
    """Per cent right of a split."""
    inputs, labels = mnist()[part]
    with torch.no_grad():
        return 100 * float((model(inputs).argmax(1) == labels).float().mean())


def batches(alpha: float, seed: int, client: int, step: int) -> tuple[Tensor, Tensor]:
    """One client's batch of one step."""
    places = cut(alpha, seed)[client]
    drawn = Noise(seed).stream(f"batch {client}").at(step).integers(BATCH, len(places))
    return tuple(each[places[drawn]] for each in mnist()["train"])


def scalars(alpha: float, seed: int, rounds: int) -> None:
    """Train by scalars, and print what test images say."""
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    def of_node(context):
        client = int(context.node_config["partition-id"])
        return functools.partial(batches, alpha, seed, client), len(cut(alpha, seed)[client])

    server = ServerApp()

    @server.main()
    def main(grid, context):
        strategy = ScalarStrategy(
            Server(make_model(), RULE, seed, local_steps=LOCAL_STEPS),
            fraction_train=ASKED / CLIENTS,
            min_available_nodes=CLIENTS,
        )

        def look(number, arrays):
            if number in (1, 2, 5, rounds) or number % 10 == 0:
                down, up = (sum(getattr(each, k) for each in strategy.rounds) for k in ("down_bytes", "up_bytes"))
                show("scalars", alpha, seed, number, down, up, accuracy(strategy.server.model, "test"))

        strategy.start(grid, num_rounds=rounds, evaluate_fn=look)

    app = client_app(make_model, RULE, of_node, seed=seed)
    run_simulation(server, app, CLIENTS, backend_config={"client_resources": {"num_cpus": 1.0}})


def epoch(model: nn.Module, inputs: Tensor, labels: Tensor, rate: float, noise: Noise) -> None:
    """One epoch of plain SGD, in place."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for places in noise.permutation(len(labels)).split(BATCH):
        optimizer.zero_grad()
        cross_entropy(model(inputs[places]), labels[places]).backward()
        optimizer.step()


def of_client(alpha: float, seed: int, client: int) -> tuple[Tensor, Tensor]:
    """One client's inputs and labels."""
    places = cut(alpha, seed)[client]
    return tuple(each[places] for each in mnist()["train"])


def best_rate(alpha: float, seed: int) -> float:
    """The rate whose first round does best on validation images, with clients 0 to 9."""

    def reached(rate: float) -> float:
        total, count = None, 0
        for client in range(ASKED):
            model, (inputs, labels) = make_model(), of_client(alpha, seed, client)
            epoch(model, inputs, labels, rate, Noise(seed).stream(f"epoch {client}"))
            weights = [len(labels) * parameter.detach() for parameter in model.parameters()]
            total = weights if total is None else [a + b for a, b in zip(total, weights, strict=True)]
            count += len(labels)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), total, strict=True):
                parameter.copy_(value / count)
        return accuracy(model, "validation")

    return max(FEDAVG_RATES, key=reached)


def fedavg(alpha: float, seed: int, rounds: int) -> None:
    """Train by FedAvg, one local epoch a round."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    rate = best_rate(alpha, seed)
    print(f"fedavg alpha {alpha} seed {seed}: learning rate {rate}", flush=True)
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message, context):
        model, number = make_model(), int(context.node_config["partition-id"])
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        inputs, labels = of_client(alpha, seed, number)
        turn = int(message.content["config"]["server-round"])
        epoch(model, inputs, labels, rate, Noise(seed).stream(f"epoch {number}").at(turn))
        metrics = MetricRecord({"num-examples": len(labels)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    @server.main()
    def main(grid, context):
        strategy = FedAvg(fraction_train=ASKED / CLIENTS, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
        model = make_model()
        size = 4 * sum(parameter.numel() for parameter in model.parameters()) * ASKED

        def look(number, arrays):
            model.load_state_dict(arrays.to_torch_state_dict())
            show("fedavg", alpha, seed, number, number * size, number * size, accuracy(model, "test"))

        strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=rounds, evaluate_fn=look)

    run_simulation(server, client, CLIENTS, backend_config={"client_resources": {"num_cpus": 1.0}})


def show(what: str, alpha: float, seed: int, number: int, down: int, up: int, test: float) -> None:
    """Print one line."""
    print(
        f"{what:8} alpha {alpha} seed {seed} round {number:3}: {down:10,} B down {up:10,} B up, test {test:.2f} %",
        flush=True,
    )


def compare() -> None:
    """Run both ways for every cut and seed that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.1, 0.5])
    parser.add_argument("--seed", type=a_seed, nargs="+", default=[0])
    parser.add_argument("--rounds", type=a_count, default=60)
    parser.add_argument("--fedavg-rounds", type=a_count, default=20)
    given = parser.parse_args()
    for alpha in given.alpha:
        for seed in given.seed:
            fedavg(alpha, seed, given.fedavg_rounds)
            scalars(alpha, seed, given.rounds)


if __name__ == "__main__":
    from experiments.federated_flwr import compare as imported  # by a name that the engine's own processes can import

    imported()
