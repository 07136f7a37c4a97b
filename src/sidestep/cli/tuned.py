"""`eval`, `predict`, `replay` and `verify` of a fine-tune, which those commands hand over to."""

import time
from pathlib import Path
from typing import Annotated

import tyro

from sidestep.cli.output import check_new, fail, show, show_json, show_table
from sidestep.cli.parse import parsed
from sidestep.errors import InputError
from sidestep.files import write_text
from sidestep.wording import counted, csv_text

__all__ = ["eval_tuned", "names_tuned", "predict_tuned", "replay_tuned_command", "verify_tuned"]


def names_tuned(arguments: list[str]) -> bool:
    """Whether the first argument is the folder of a fine-tune."""
    return bool(arguments) and (Path(arguments[0]) / "tune.json").is_file()


def eval_tuned(arguments: list[str]) -> None:
    """Parse the options, evaluate, and print the accuracy."""
    parsed(_evaluate, "sidestep eval", arguments)


def predict_tuned(arguments: list[str]) -> None:
    """Parse the options, and print or write the answers."""
    parsed(_predict, "sidestep predict", arguments)


def _evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    data: Path | None = None,
    target: str | None = None,
    text: str | None = None,
    base: str | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Print accuracy and negative log-likelihood of a fine-tuned model on a file of texts.

    Args:
        run: Folder of the fine-tune.
        data: Texts and labels (.csv, .tsv, .parquet), or a text (.txt) for a model of next tokens.
        target: Column of the labels. Default: that of training.
        text: Column of the texts. Default: that of training.
        base: Where the base model is now, if it has moved.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        json: Print one JSON object.
    """
    from sidestep.integrations.tuning.use import evaluate_tuned

    if data is None:
        raise InputError("--data names the texts to evaluate on: a file that the model was not tuned on")
    count, score = evaluate_tuned(run, data, target, text, base, device)
    bits = score.loss / 0.6931471805599453
    if json:
        named = {"accuracy": score.accuracy, "nll": score.loss, "bits": bits}
        show_json({"run": str(run), "data": str(data), "rows": count, **named})
        return
    show_table(
        f"{run} on {data}, {counted(count, 'row')}", ["accuracy", "NLL", "bits"],
        [[f"{score.accuracy:.2%}", f"{score.loss:.4f}", f"{bits:.4f}"]],
    )  # fmt: skip


def _predict(
    run: Annotated[Path, tyro.conf.Positional],
    file: Annotated[Path, tyro.conf.Positional],
    /,
    text: str | None = None,
    out: Path | None = None,
    base: str | None = None,
    device: str = "auto",
    most: int = 20,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Print the label of every text in a file: a line each of a .txt, a row each of a table.

    Args:
        run: Folder of the fine-tune.
        file: The texts.
        text: Column of the texts in a table.
        out: Write all answers there, .csv: label, probability, text.
        base: Where the base model is now, if it has moved.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        most: How many answers to print.
        overwrite: Let --out replace a file that exists.
        json: Print one JSON object with all answers.
    """
    from sidestep.integrations.tuning.use import answers_of

    if out:
        check_new(out, overwrite, (".csv",))
    texts, labels, shares = answers_of(run, file, text, base, device)
    if out:
        answers = zip(labels, (f"{share:.6f}" for share in shares), texts, strict=True)
        write_text(out, csv_text([["label", "probability", "text"], *answers]))
    if json:
        show_json({"run": str(run), "labels": labels, "probabilities": shares})
        return
    rows = [[labels[i], f"{shares[i]:.1%}", texts[i][:100]] for i in range(min(len(texts), max(0, most)))]
    show_table(counted(len(texts), "text"), ["label", "probability", "text"], rows)
    if len(texts) > len(rows):
        show(f"... and {len(texts) - len(rows)} more" + ("" if out else "; --out FILE.csv writes all"))
    if out:
        show(f"written: {out}")


def replay_tuned_command(log: Path, base: str | None, out: Path | None, to_step: int | None, json: bool) -> None:
    """Replay the log of a fine-tune into its base model, and write the trained weights."""
    from sidestep.integrations.tuning.use import replayed, write_replayed

    started = time.process_time()
    net, found = replayed(log, base, to_step)
    seconds = time.process_time() - started
    if out:
        write_replayed(net, found, out)
    if json:
        record = {"log": str(log), "steps": found.step, "parameters": list(found.names), "seconds": round(seconds, 3)}
        show_json({**record, "out": str(out) if out else None})
        return
    show(f"{log}: {found.step:,} steps replayed into {base or net.recipe.base} in {seconds:.2f} s")
    show(f"written: {out}" if out else "nothing is written; --out FILE.safetensors keeps the trained weights")


def verify_tuned(log: Path, run: Path, base: str | None, json: bool) -> None:
    """Replay a log into the base model of a fine-tune, and compare with its weights; status 2 where they differ."""
    from sidestep.integrations.tuning.use import different_weights

    step, different = different_weights(log, run, base)
    if json:
        show_json({"log": str(log), "run": str(run), "steps": step, "same": not different, "different": different})
    if different:
        fail(f"{log} does not give the weights of {run} at step {step:,}: {', '.join(different[:8])}", 2)
    if not json:
        show(f"{log} gives the trained weights of {run} at step {step:,}, bit for bit")
