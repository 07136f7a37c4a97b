"""Studies: the chain taken apart, the gradient by time, and the commands that report them."""

import inspect
import json
import math
from contextlib import nullcontext
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from experiments.noprop_weights import gradient_by_time as weight_study
from experiments.noprop_weights.__main__ import weights
from sidestep import Options, data, rules
from sidestep.bench.studies import blocks as blocks_study
from sidestep.bench.studies import chain as chain_study
from sidestep.bench.studies.chain import (
    CHAIN_READINGS,
    READINGS_BY_BLOCK,
    chain_answers,
    logits_on_noise,
    oracle_logits,
    random_cycle,
    running_mean,
    shuffled_chain,
)
from sidestep.cli import main
from sidestep.cli import study as study_commands
from sidestep.errors import InputError
from sidestep.nets import DenoisingStack, SoftmaxReadout
from sidestep.nets.noprop.denoiser import Denoiser, TimedBlock
from sidestep.nets.noprop.losses import LOSSES, denoising_loss
from sidestep.nets.noprop.readouts import NearestReadout
from sidestep.nets.noprop.schedules import cosine_alpha_bar
from sidestep.nets.noprop.stack_readings import ancestral_chain, ddim_chain, stack_predictions
from sidestep.noise import Noise
from sidestep.rules.protocol import Task
from sidestep.training import Silent, Stopped

NOISE = Noise(5).stream("test")
SHAPE = (1, 4, 4)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIDESTEP_DATA", raising=False)


def stack_of(blocks=3, classes=4, deaf=False):
    """A small stack; with `deaf`, its blocks do not look at z."""
    with NOISE.torch_seeded():
        paths = [nn.Sequential(nn.Flatten(), nn.Linear(16, 8)) for _ in range(blocks)]
        embedding = torch.eye(classes)
        stack = DenoisingStack(paths, SHAPE, embedding, cosine_alpha_bar(blocks), SoftmaxReadout(embedding))
    for index in range(blocks if deaf else 0):
        first = stack.block(index).fuse[0]
        first.weight.data[:, 8:] = 0
    return stack.eval().requires_grad_(False)


def images_of(count, alike=False):
    images = NOISE.stream("images").normal(count * 16).view(count, *SHAPE)
    return images[:1].expand(count, *SHAPE).contiguous() if alike else images


# --- the chain taken apart ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 50])
def test_a_random_cycle_is_an_order_in_which_nobody_keeps_its_place(count):
    order = random_cycle(NOISE, count)
    assert sorted(order.tolist()) == list(range(count))
    assert not (order == torch.arange(count)).any()
    place, seen = 0, set()
    while place not in seen:
        seen.add(place)
        place = int(order[place])
    assert len(seen) == count  # one cycle


def test_the_running_mean_is_the_mean_of_the_first_k():
    values = NOISE.normal(5 * 6).view(5, 2, 3)
    found = running_mean(values)
    for k in range(1, 6):
        torch.testing.assert_close(found[k - 1], values[:k].mean(dim=0))


def test_without_orders_the_shuffled_chain_is_the_deterministic_chain():
    stack = stack_of()
    features = stack.image_features(images_of(6))
    plain, same = ddim_chain(stack, features), shuffled_chain(stack, features, {})
    assert torch.equal(plain.latent, same.latent)
    assert torch.equal(plain.logits, same.logits)


def test_shuffling_hands_the_state_on_exactly():
    """Walked by hand: block 2 of example i starts from what block 1 made of example order[i]."""
    stack = stack_of(blocks=2)
    features = stack.image_features(images_of(5))
    order = random_cycle(NOISE, 5)
    first = ddim_chain(stack, features[:1])  # stops after block 1
    wanted = stack.block(1).logits(features[1], first.latent[order])
    found = shuffled_chain(stack, features, {1: order})
    torch.testing.assert_close(found.logits[1], wanted)
    assert torch.equal(found.logits[0], first.logits[0])


def test_shuffling_between_identical_images_changes_nothing():
    stack = stack_of()
    answers = chain_answers(stack, stack.image_features(images_of(8, alike=True)), NOISE)
    assert torch.equal(answers["chain"], answers["chain, z shuffled at every step"])
    assert torch.equal(answers["mean of blocks"], answers["mean of blocks, z shuffled at every step"])
    assert torch.equal(answers["chain, read after block k"], answers["chain, z shuffled, read after block k"])


def test_shuffling_changes_the_answers_of_blocks_that_look_at_z():
    stack = stack_of()
    features = stack.image_features(images_of(40))
    order = {index: random_cycle(NOISE.sub(index), 40) for index in (1, 2)}
    assert not torch.allclose(shuffled_chain(stack, features, order).logits[2], ddim_chain(stack, features).logits[2])


def test_shuffled_readings_equal_a_plain_walk_and_half_way_is_before_block_four_of_six():
    stack, pixels = stack_of(blocks=6).double(), images_of(40).double().flatten(1)[:, :4]
    for index in range(6):  # blocks that react to all they are given, as untrained ones hardly do
        stack.block(index).logits = lambda rows, latent, index=index: 3 * (4 * latent + rows + index).sin()
    levels, cycles = stack.alpha_bar.tolist(), NOISE.stream("shuffle").at(30)

    def walk(*shuffled):
        """z_6 and the blocks' probabilities; before the blocks of these numbers, from 1 on, z is handed on."""
        z, own = torch.zeros(40, 4).double(), []
        for number in range(1, 7):
            z = z[random_cycle(cycles.sub(number - 1), 40)] if number in shuffled else z
            own.append((3 * (4 * z + pixels + number - 1).sin()).softmax(dim=1))
            uhat, low, high = own[-1] @ stack.embedding, levels[number - 1], levels[number]
            z = math.sqrt(high) * uhat + math.sqrt((1 - high) / (1 - low)) * (z - math.sqrt(low) * uhat)
        return stack.readout(z, stack.embedding).argmax(dim=1), torch.stack(own)

    answers = chain_answers(stack, [pixels] * 6, NOISE, start=30)
    always, own = walk(2, 3, 4, 5, 6)
    assert torch.equal(answers["chain, z shuffled at every step"], always)
    assert torch.equal(answers["chain, z shuffled, read after block k"], own.argmax(dim=2))
    assert torch.equal(answers["mean of blocks, z shuffled at every step"], own.mean(dim=0).argmax(dim=1))
    assert torch.equal(answers["chain"], walk()[0])
    assert torch.equal(answers["chain, z shuffled once, half way"], walk(4)[0])
    for elsewhere in ((), (2,), (3,), (5,), (6,), (2, 3, 4, 5, 6)):  # which no equal answers may hide
        assert not torch.equal(walk(*elsewhere)[0], walk(4)[0]), elsewhere


def test_blocks_that_ignore_z_answer_the_same_whatever_is_in_it():
    stack = stack_of(deaf=True)
    images, labels = images_of(30), torch.arange(30) % 4
    features = stack.image_features(images)
    answers = chain_answers(stack, features, NOISE)
    wanted = answers["chain, read after block k"]
    assert torch.equal(wanted, answers["chain, z shuffled, read after block k"])
    assert torch.equal(wanted, answers["block k on pure noise"])
    assert torch.equal(wanted, oracle_logits(stack, features, labels, NOISE).argmax(dim=2))
    assert torch.equal(answers["mean of blocks"], answers["mean of blocks, z shuffled at every step"])
    assert torch.equal(answers["mean of blocks"], answers["mean of blocks on pure noise"])


def test_the_readings_are_those_of_the_samplers():
    stack = stack_of()
    images = images_of(30)
    features = stack.image_features(images)
    answers = chain_answers(stack, features, NOISE, start=30)
    assert tuple(answers) == READINGS_BY_BLOCK + CHAIN_READINGS
    known = stack_predictions(stack, images, NOISE, 30, 1, ("ddim", "block 1 alone", "mean of blocks"))
    for ours, theirs in {"chain": "ddim", "block 1 alone": "block 1 alone", "mean of blocks": "mean of blocks"}.items():
        assert torch.equal(answers[ours], known[theirs].argmax(dim=1))
    logits = ddim_chain(stack, features).logits
    assert torch.equal(answers["chain, read after block k"], logits.argmax(dim=2))
    for k in (1, 2, 3):
        mean = logits[:k].softmax(dim=2).mean(dim=0)
        assert torch.equal(answers["mean of the first k blocks"][k - 1], mean.argmax(dim=1))
    blind = logits_on_noise(stack, features, NOISE.stream("pure noise"), 30)
    assert torch.equal(answers["block k on pure noise"], blind.argmax(dim=2))
    latent = ancestral_chain(stack, features, NOISE.stream("ancestral"), 30).latent
    assert torch.equal(answers["ancestral chain"], stack.readout(latent, stack.embedding).argmax(dim=1))


def test_noise_does_not_depend_on_the_batching():
    stack, labels = stack_of(), torch.arange(10) % 4
    whole = stack.image_features(images_of(10))
    late = [rows[6:] for rows in whole]
    torch.testing.assert_close(logits_on_noise(stack, whole, NOISE)[:, 6:], logits_on_noise(stack, late, NOISE, 6))
    torch.testing.assert_close(
        oracle_logits(stack, whole, labels, NOISE)[:, 6:], oracle_logits(stack, late, labels[6:], NOISE, 6)
    )


def test_the_oracle_sees_the_noised_label_and_is_the_only_one_that_sees_labels():
    taking = [name for name in chain_study.__all__ if callable(getattr(chain_study, name))]
    taking = [name for name in taking if "labels" in inspect.signature(getattr(chain_study, name)).parameters]
    assert taking == ["oracle_logits"]
    stack, labels = stack_of(), torch.arange(6) % 4
    features = stack.image_features(images_of(6))
    normal = NOISE.sub(2).normal(24).view(6, 4)
    wanted = stack.block(2).logits(features[2], stack.noised_label(labels, 2, normal))
    torch.testing.assert_close(oracle_logits(stack, features, labels, NOISE)[2], wanted)


def test_one_block_has_nothing_to_shuffle():
    stack = stack_of(blocks=1)
    answers = chain_answers(stack, stack.image_features(images_of(9)), NOISE)
    assert torch.equal(answers["chain"], answers["chain, z shuffled at every step"])
    assert torch.equal(answers["chain"], answers["chain, z shuffled once, half way"])


# --- the gradient by time ----------------------------------------------------------------------------------------


def timed_net(schedule="learned"):
    rule = rules.NoPropCT(loss="paper", schedule=schedule, embedding="learned", dimension=5)
    task = Task(SHAPE, ("a", "b", "c", "d"), (0.0,), (1.0,))
    path = lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8))  # noqa: E731
    return rule.build(task, NOISE, None, path).eval()


def test_gradients_by_time_are_those_of_each_loss_itself():
    """`paper` and `clipped` are scaled from `unweighted`; here each is differentiated as it stands."""
    net = timed_net()
    images, labels = images_of(12), torch.arange(12) % 4
    normal, times, eta, largest = NOISE.normal(60).view(12, 5), weight_study.bin_centres(4), 2.0, 5.0
    found = weight_study.squared_gradients(net, net.schedule, images, labels, normal, times, eta, largest)
    assert tuple(found) == LOSSES
    parameters = list(net.block.parameters())
    for place, time in enumerate(times):
        level = net.schedule.alpha_bar(time)
        latent = level.sqrt() * net.label_embedding(labels) + (1 - level).sqrt() * normal
        weight = eta / 2 * net.schedule.snr_slope(time)
        logits = net.block.outputs(net.block.prepare(images), latent, time[None])
        for name in LOSSES:
            loss = denoising_loss(name, logits, net.embedding, labels, weight, largest).mean()
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            squared = sum(float(gradient.double().square().sum()) for gradient in gradients)
            assert float(found[name][place]) == pytest.approx(squared, rel=1e-4), (name, place)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_effective_share_counts_the_fewest_times():
    assert weight_study.effective_share(torch.tensor([0.0, 0.0, 0.0, 3.0])) == 0.25
    assert weight_study.effective_share(torch.ones(20)) == 0.9
    assert weight_study.effective_share(torch.tensor([8.9, 0.5, 0.6, 0.0])) == 0.5
    with pytest.raises(InputError, match="bins must lie"):
        weight_study.bin_centres(1)


def test_accuracy_by_time_given_the_true_z():
    net, labels = timed_net("linear"), torch.arange(40) % 4
    normal, times = NOISE.normal(200).view(40, 5), torch.tensor([0.001, 0.999])
    early, late = weight_study.nearest_accuracy_at_times(net, net.schedule, labels, normal, times)
    assert early < 0.6
    assert late == 1.0
    found = weight_study.accuracy_at_times(net, net.schedule, images_of(40), labels, normal, times)
    latent = weight_study.noised_labels(net, net.schedule, labels, normal, times[1:])
    answers = net.block.outputs(net.block.prepare(images_of(40)), latent, times[1:]).argmax(dim=1)
    assert found[1] == pytest.approx(float((answers == labels).double().mean()))


def test_a_net_without_a_schedule_is_refused():
    from experiments.noprop_weights.study import WeightStudy

    with NOISE.torch_seeded():
        block = TimedBlock(nn.Flatten(), SHAPE, 4, 4, image_latent=False)
    net = Denoiser(block, torch.eye(4), NearestReadout())
    with pytest.raises(InputError, match="without a schedule"):
        WeightStudy().at(rules.NoPropFM(), net, data.load("digits"), Options())


# --- the commands ------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    """Return exit status, standard output, standard error."""
    status = 0
    try:
        main(("study", *arguments))
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, " ".join(captured.err.split())


BLOCKS = ("noprop-blocks", "--blocks", "2", "--epochs", "1", "--device", "cpu", "--out", "study")


def test_the_study_of_blocks_runs_resumes_and_reports(capsys, monkeypatch):
    status, out, error = run(capsys, *BLOCKS, "--seeds", "1")
    assert status == 0, error
    assert "mean of blocks" in out
    record = json.loads(Path("study/study.json").read_text())
    result = json.loads(Path("study/noprop-dt-0/result.json").read_text())
    assert record["mean"]["chain"] == pytest.approx(result["readings"]["ddim"])
    assert record["mean"]["mean of blocks"] == pytest.approx(result["readings"]["mean of blocks"])
    baseline = json.loads(Path("study/backprop-0/result.json").read_text())
    assert record["mean"]["backprop"] == baseline["test_accuracy"]
    assert record["mean"]["block k agrees with block 1"][0] == 1
    assert record["standard_error"]["chain"] is None
    assert Path("study/study.png").read_bytes().startswith(b"\x89PNG")
    page = Path("study/study.md").read_text()
    p, n = record["mean"]["block 1 alone"], record["test_images"]
    assert f"| block 1 alone | {100 * p:.2f} (-; {100 * (p * (1 - p) / n) ** 0.5:.2f}) |" in page
    html = Path("study/study.html").read_text()
    assert html.count("<svg") >= 2
    first = html[html.index("<tbody>") :]
    assert first.index("backprop") < first.index("block 1 alone")  # the baseline's row stands first

    trained = []
    monkeypatch.setattr(
        blocks_study, "train", lambda rule, *rest, real=blocks_study.train, **more: (
            trained.append((rule.name, rest[1].seed)), real(rule, *rest, **more))[1]
    )  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in Path("study").rglob("*.safetensors")}
    status, out, error = run(capsys, *BLOCKS, "--seeds", "2", "--json")
    assert status == 0, error
    assert trained == [("noprop-dt", 1), ("backprop", 1)]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    again = json.loads(out.strip().splitlines()[-1])
    assert again["by_seed"][0] == record["by_seed"][0]
    first, second = (part["chain"] for part in again["by_seed"])
    assert again["mean"]["chain"] == pytest.approx((first + second) / 2)
    assert again["standard_error"]["chain"] == pytest.approx(abs(first - second) / 2)
    assert again["mean"]["chain minus block 1 alone"] == pytest.approx(
        again["mean"]["chain"] - again["mean"]["block 1 alone"]
    )

    status, _, error = run(capsys, *BLOCKS, "--seeds", "1")
    assert (status, "holds a study of 2 seeds, which 1 would replace; give --seeds 2 or more" in error) == (2, True)
    assert json.loads(Path("study/study.json").read_text())["seeds"] == [0, 1]

    for other in (["--blocks", "3"], ["--batch", "64"], ["--validation", "0.2"]):
        status, _, error = run(capsys, *BLOCKS, "--seeds", "2", *other)
        assert (status, "choose another --out" in error) == (2, True), error
    assert len(trained) == 2

    status, _, error = run(capsys, *BLOCKS, "--seeds", "1", "--overwrite")
    assert status == 0, error
    assert json.loads(Path("study/study.json").read_text())["seeds"] == [0]
    assert len(trained) == 2


def stop(*_, **__):
    raise Stopped("stopped after step 3 of 10", 3, 2)


def test_a_stop_says_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr(blocks_study, "train", stop)
    status, _, error = run(capsys, *BLOCKS)
    assert (status, "running the same command again" in error) == (130, True)


def test_a_run_that_was_stopped_goes_on_from_where_it_was():
    """To the same accuracy as one that was never stopped."""

    class Impatient(Silent):
        def step(self, step, examples):
            if step == 4:
                import signal

                signal.raise_signal(signal.SIGINT)

    rule, digits = rules.NoPropDT(blocks=1), data.load("digits")
    options = Options(epochs=1, device="cpu", out=Path("a"))
    source = {"name": "digits"}
    with pytest.raises(Stopped):
        blocks_study.trained_run(rule, digits, options, source, lambda line: nullcontext(Impatient()))
    stopped = blocks_study.trained_run(rule, digits, options, source, lambda line: nullcontext(Silent()))
    whole = Options(epochs=1, device="cpu", out=Path("b"))
    whole = blocks_study.trained_run(rule, digits, whole, source, lambda line: nullcontext(Silent()))
    assert stopped.result["readings"] == whole.result["readings"]


def test_the_study_of_weights_runs_and_reports(capsys):
    few = {"data": "digits", "device": "cpu"}
    weights(**few, steps=3, bins=4, images=32, out=Path("study"))
    assert "written: study/study.json" in capsys.readouterr().out
    record = json.loads(Path("study/study.json").read_text())
    assert list(record["nets"]) == ["untrained", "paper", "cross-entropy"]
    for net in record["nets"].values():
        for shares in net["gradient_share"].values():
            assert len(shares) == 4
            assert sum(shares) == pytest.approx(1)
    paper = record["nets"]["untrained"]["gradient_share"]["paper"]
    assert paper[-1] > record["nets"]["untrained"]["gradient_share"]["unweighted"][-1]
    untrained = record["nets"]["untrained"]
    plain = [place for place, right in enumerate(untrained["accuracy_of_z_alone"]) if right >= 0.95]
    assert plain
    assert untrained["gradient_share_where_z_is_plain"]["paper"] == pytest.approx(sum(paper[place] for place in plain))
    assert all(len(losses) == 3 for losses in record["training"]["paper"]["losses"].values())
    assert record["training"]["paper"]["watched_at"] == [0, 1, 2, 3]
    assert record["training"]["paper"]["watched"]["smallest embedding distance"][0] == pytest.approx(math.sqrt(2))
    assert Path("study/study.png").read_bytes().startswith(b"\x89PNG")
    page = Path("study/study.md").read_text()
    assert "under each loss" in page
    p, n = next(iter(record["nets"]["paper"]["accuracy"].values())), record["images"]
    assert f"{100 * p:.2f} (-; {100 * (p * (1 - p) / n) ** 0.5:.2f}) |" in page
    weights(**few, steps=0, bins=2, images=8, out=Path("none"))
    assert list(json.loads(Path("none/study.json").read_text())["nets"]) == ["untrained"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": -1}, "steps must be 0"),
        ({"bins": 1}, "bins must lie"),
        ({"images": 1}, "images must lie"),
        ({"eta": 0.0}, "eta must be above 0"),
    ],
)
def test_the_study_of_weights_refuses_what_it_cannot_measure(wrong, words):
    with pytest.raises(InputError, match=words):
        weights(data="digits", out=Path("study"), **wrong)
    assert not Path("study/study.json").exists()


def test_a_study_does_not_replace_one_of_other_options():
    few = {"data": "digits", "bins": 2, "images": 8, "out": Path("s")}
    weights(**few, steps=0)
    before = Path("s/study.json").read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        weights(**few, steps=1)
    assert Path("s/study.json").read_bytes() == before
    weights(**few, steps=1, overwrite=True)
    assert Path("s/study.json").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "there are: noprop-blocks"),
        (["noprop-block"], "did you mean noprop-blocks?"),
        ([*BLOCKS, "--seeds", "0"], "seeds must lie"),
        ([*BLOCKS, "--data", "mnits"], "did you mean 'mnist'?"),
        (["noprop-blocks", "--blocks", "0"], "blocks must lie between 1"),
        (["noprop-blocks", "--batch", "1"], "a batch of 1"),
        (["noprop-blocks", "--out", "file/study"], "cannot be made"),
        (["noprop-blocks", "--data", "own.npz"], "no test split"),
    ],
)
def test_wrong_input_ends_in_one_clear_line_and_status_2(capsys, arguments, words):
    Path("file").write_text("x")
    numpy.savez("own.npz", x_train=numpy.zeros((40, 8, 8), "uint8"), y_train=numpy.arange(40) % 2)
    status, _, error = run(capsys, *arguments)
    assert status == 2
    assert words in error
    assert "Traceback" not in error
    assert not list(Path().rglob("config.toml"))


def test_a_run_s_folder_is_not_taken_for_a_study_s(capsys):
    Path("config.toml").write_text("")
    status, _, error = run(capsys, "noprop-blocks", "--out", ".")
    assert (status, "is the folder of a run" in error) == (2, True)


def test_help_lists_the_studies_and_explains_the_options(capsys):
    assert all(name in run(capsys)[1] for name in study_commands.STUDIES)
    for name in study_commands.STUDIES:
        status, out, _ = run(capsys, name, "--help-all")
        assert (status, "--data-dir" in out) == (0, True)
