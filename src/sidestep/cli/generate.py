"""`sidestep generate RUN`: text from a trained net of next tokens."""

from pathlib import Path
from typing import Annotated

import tyro

from sidestep.cli.options import run_in
from sidestep.cli.output import notice, show, show_json
from sidestep.cli.parse import parsed
from sidestep.training.folder import RunFolder
from sidestep.training.generate import generate

__all__ = ["generate_command"]


def generate_command(arguments: list[str]) -> None:
    """Parse the options, draw, and print the text."""
    parsed(_generate, "sidestep generate", arguments)


def _generate(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    prompt: str = "\n",
    length: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    reading: str | None = None,
    module: str | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Print text that a net of next tokens goes on with, the prompt first.

    Args:
        run: Folder of the run, trained on a text or on rows of tokens.
        prompt: What comes before; its characters are among those of the text trained on. Default: an end of line.
        length: How many tokens to draw.
        temperature: 1 draws from the net's own probabilities, less from the likelier tokens; 0 takes the likeliest.
        seed: Seed of the draws; the same seed gives the same text.
        reading: Which of the rule's readings to use (see `sidestep rules`); by default the first.
        module: Module the run was trained with, FILE.py:NAME, if it was one of your own.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        json: Print one JSON object.
    """
    trained = run_in(run, module, device, ())
    unfinished = RunFolder(run).unfinished(trained.step)
    if unfinished:
        notice(f"{run} is not finished: {unfinished}")
    text = generate(trained, prompt, length, temperature, seed, reading)
    if json:
        show_json({"run": str(run), "prompt": prompt, "text": text, "seed": seed, "temperature": temperature})
        return
    between = "" if all(len(token) == 1 for token in trained.task.class_names) else " "
    show(*f"{prompt}{between}{text}".split("\n"))
