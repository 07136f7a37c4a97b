"""Train NoProp-DT and back-propagation on scikit-learn's 8 x 8 digits, compare them, and draw what the blocks do.

    python examples/demo.py [--out demo.png] [--epochs 20] [--seed 0]

Both train the same ten blocks: NoProp each on its own, to denoise the label; back-propagation all of them as one net.
"""

import argparse
import time
from collections.abc import Mapping

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sidestep import Options, Run, data, rules, train
from sidestep.data import DataSet, standardise
from sidestep.nets import ddim_chain
from sidestep.training import Silent


class Curve(Silent):
    """Prints a line every few epochs and keeps the validation accuracies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.accuracies: list[float] = []

    def epoch(self, epoch: int, losses: Mapping[str, float], accuracy: float | None, seconds: float) -> None:
        """Keep the accuracy."""
        self.accuracies.append(accuracy or 0.0)
        if epoch % 5 == 0:
            print(f"  {self.name:9}  epoch {epoch:2}  validation {accuracy or 0.0:6.1%}  {seconds:5.1f} s", flush=True)


def main() -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="demo.png", help="where to write the picture")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    begun = time.perf_counter()
    digits = data.load("digits")
    print(f"{digits.name}: {len(digits.train)} training images of 8 x 8 pixels, {len(digits.test)} test images")
    runs: dict[str, Run] = {}
    curves: dict[str, Curve] = {}
    for rule in (rules.NoPropDT(), rules.Backprop()):
        curves[rule.name] = Curve(rule.name)
        options = Options(epochs=given.epochs, seed=given.seed)
        runs[rule.name] = train(rule, digits, options, progress=curves[rule.name])
    noprop, backprop = (run.result for run in runs.values())
    print(f"\ntest accuracy, {given.epochs} epochs, {noprop['parameters'] / 1e6:.1f} million parameters:")
    print(f"  NoProp-DT   {noprop['test_accuracy']:.2%}   ten blocks, none of which sees another's gradient")
    print(f"  backprop    {backprop['test_accuracy']:.2%}   the same ten blocks, trained end to end")
    others = ", ".join(f"{name} {share:.2%}" for name, share in noprop["readings"].items() if name != "ddim")
    print(f"  NoProp-DT by other readings: {others}")
    draw(runs["noprop-dt"], curves, digits, given.out)
    print(f"\npicture: {given.out}    all of it took {time.perf_counter() - begun:.0f} s")
    print("next: .venv/bin/sidestep --help, or, to fetch MNIST and train most of an hour on one core:")
    print("      .venv/bin/sidestep train noprop-dt --data mnist --epochs 3")


def draw(run: Run, curves: Mapping[str, Curve], digits: DataSet, path: str) -> None:
    """Write a picture: predictions, the way of one label through the blocks, and the two training curves."""
    unsure = int(run.predict(digits.test.images, "block 1 alone").amax(dim=1).argmin())  # the one worth looking at
    chosen = [unsure, *(index for index in range(16) if index != unsure)][:16]
    images, labels = digits.test.images[chosen], digits.test.labels[chosen]
    found = run.predict(images).argmax(dim=1)
    with torch.no_grad():
        stack = run.net.eval()
        features = stack.image_features(standardise(images[:1], digits.mean, digits.std).to(run.compute.device))
        beliefs = ddim_chain(stack, features).logits.softmax(dim=2)[:, 0].cpu()  # (blocks, classes)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subfigures(1, 3, width_ratios=[1, 1, 1.1])
    left.suptitle("NoProp-DT's predictions (red: wrong)")
    for axis, image, guess, label in zip(left.subplots(4, 4).flat, images, found, labels, strict=True):
        axis.imshow(image[0], cmap="gray_r")
        axis.set_title(str(int(guess)), color="tab:green" if guess == label else "tab:red", fontsize=10, pad=2)
        axis.set_axis_off()
    axis = middle.subplots()
    shown = axis.imshow(beliefs.T, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="lower")
    middle.suptitle(f"what each block says of the first ({int(labels[0])})")
    axis.set(xlabel="block", ylabel="class")
    axis.set_xticks(range(len(beliefs)), [str(index + 1) for index in range(len(beliefs))])
    axis.set_yticks(range(10))
    middle.colorbar(shown, ax=axis, label="probability")
    axis = right.subplots()
    for name, curve in curves.items():
        axis.plot(range(1, len(curve.accuracies) + 1), curve.accuracies, label=name)
    right.suptitle("validation accuracy")
    axis.set(xlabel="epoch", ylim=(0, 1.02))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
