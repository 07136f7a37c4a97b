"""`sidestep replay LOG`, `sidestep inspect LOG` and `sidestep verify LOG RUN`: a trained model as its steps."""

import time
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from sidestep import checkpoint
from sidestep.cli.options import module_from
from sidestep.cli.output import check_new, fail, notice, show, show_json, show_table
from sidestep.cli.parse import parsed
from sidestep.cli.tuned import names_tuned, replay_tuned_command, verify_tuned
from sidestep.errors import CheckpointError, InputError
from sidestep.files import check_plain
from sidestep.steplog import LogReader, Replayed, rebuild, summary
from sidestep.training.folder import RunFolder
from sidestep.training.options import Compute
from sidestep.training.resume import same_bits

__all__ = ["inspect_command", "replay_command", "verify_command"]

_ROUNDING = "; float weights have the bits of training on its processor alone, with its torch and number of threads"


def replay_command(arguments: list[str]) -> None:
    """Parse the options, replay, and print or write what came out."""
    parsed(_replay, "sidestep replay", arguments)


def inspect_command(arguments: list[str]) -> None:
    """Parse the options and print what a log holds."""
    parsed(_inspect, "sidestep inspect", arguments)


def verify_command(arguments: list[str]) -> None:
    """Parse the options, replay, and compare with a run."""
    parsed(_verify, "sidestep verify", arguments)


def _log(path: Path) -> Path:
    if not path.is_dir():
        return path
    log = RunFolder(path).log_file
    check_plain(log)  # somebody's folder may hold a link or a pipe in its place
    return log


def _replay(
    log: Annotated[Path, tyro.conf.Positional],
    /,
    to_step: int | None = None,
    only: str | None = None,
    out: Path | None = None,
    drop_steps: str | None = None,
    module: str | None = None,
    base: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Rebuild weights from a step log, without data and bit for bit; float weights so on like machines only.

    Args:
        log: A step log, or the folder of a run that has one.
        to_step: Stop after this many steps. Default: all of the log.
        only: Rebuild only this layer or parameter, e.g. 0 or 0.weight.
        out: Write the weights there, .safetensors, in the form of a run's model.safetensors.
        drop_steps: Experimental: leave out steps FIRST:END (END not included), e.g. 100:120.
        module: Image path the run was trained with, FILE.py:NAME, if it was one of your own.
        base: Folder of the model that the log of a fine-tune (`sidestep tune`) starts from.
        device: Where to replay; ternary weights do not depend on it, float ones up to rounding.
        overwrite: Let --out replace a file that exists.
        json: Print one JSON object.
    """
    if out:
        check_new(out, overwrite, (".safetensors",))
    if base or names_tuned([str(log)]):
        _check_alone({"--only": only, "--drop-steps": drop_steps, "--module": module})
        return replay_tuned_command(log, base, out, to_step, json)
    started, where = time.perf_counter(), Compute.find(device, "float32").device
    made = module_from(module) if module else None
    found = rebuild(_log(log), to_step=to_step, only=only, drop=_span(drop_steps), module=made, device=where)
    seconds = time.perf_counter() - started
    if found.damage:
        notice(f"{log} is damaged, its first {found.step:,} steps are used: {found.damage}")
    _tell_stale(found)
    weights = _weights(found)
    if out:
        checkpoint.save(out, weights, {"kind": "model", "step": found.step})
    record = {"log": str(log), "steps": found.step, "skipped": found.skipped, "parameters": list(found.names)}
    record |= {"buffers_step": found.buffers_step}
    if json:
        show_json({**record, "seconds": round(seconds, 3), "out": str(out) if out else None, "damage": found.damage})
    else:
        dropped = f" ({found.skipped} left out: experimental)" if found.skipped else ""
        show(f"{log}: {found.step:,} steps{dropped} replayed in {seconds:.2f} s, {len(found.names)} parameters")
        show(f"written: {out}" if out else "nothing is written; --out FILE.safetensors keeps the weights")
    if found.damage:
        raise SystemExit(2)


def _check_alone(given: dict[str, str | None]) -> None:
    """Refuse options that the log of a fine-tune, which is replayed as a whole, has no use for."""
    other = next((name for name, value in given.items() if value is not None), None)
    if other:
        raise InputError(f"{other} has no use with the log of a fine-tune, which is replayed as a whole: leave it out")


def _tell_stale(found: Replayed) -> None:
    if found.stale_buffers:
        names = ", ".join(found.stale_buffers[:4]) + ", ..." * (len(found.stale_buffers) > 4)
        notice(
            f"the weights are those of step {found.step:,}, exactly, but the buffers ({names}) are those of step "
            f"{found.buffers_step:,}: the log has "
            f"them at the ends of its blocks only. For both, take the nearest: --to-step {found.buffers_step} or "
            f"--to-step {found.next_buffers_step}"
        )


def _weights(found: Replayed) -> dict[str, Tensor]:
    """What is written: the whole state, packed, or the rebuilt parameters alone."""
    state = found.net.state_dict()
    every = [name for name, _ in found.net.named_parameters()]
    return state if len(found.names) == len(every) else {name: state[name] for name in found.names}


def _span(text: str | None) -> range:
    """Return the steps that FIRST:END names."""
    if text is None:
        return range(0)
    first, colon, end = text.partition(":")
    if not (
        colon and first.isdecimal() and end.isdecimal() and max(len(first), len(end)) < 20 and int(first) < int(end)
    ):
        raise InputError(f"--drop-steps takes FIRST:END, for instance 100:120, got {text!r}")
    return range(int(first), int(end))


def _inspect(log: Annotated[Path, tyro.conf.Positional], /, json: bool = False) -> None:
    """Say what a step log holds, how large it is beside the packed weights, and whether it is damaged.

    Args:
        log: A step log, or the folder of a run that has one.
        json: Print one JSON object.
    """
    found = summary(LogReader(_log(log)))
    if json:
        show_json({"log": str(log), **found})
        return
    rows = [[name.replace("_", " "), _words(value)] for name, value in found.items() if value not in (None, "")]
    show_table(str(log), ["what", "value"], rows)
    if found["damage"] is None:
        show("no damage")


def _words(value: Any) -> str:
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {entry}" for key, entry in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _verify(
    log: Annotated[Path, tyro.conf.Positional],
    run: Annotated[Path, tyro.conf.Positional],
    /,
    module: str | None = None,
    base: str | None = None,
    json: bool = False,
) -> None:
    """Replay a log up to the step of a run's last checkpoint and compare all weights, bit for bit; 2 if they differ.

    Args:
        log: A step log, or the folder of a run that has one.
        run: Folder of the run.
        module: Image path the run was trained with, FILE.py:NAME, if it was one of your own.
        base: Folder where the base model of a fine-tune is now, if it has moved.
        json: Print one JSON object.
    """
    if names_tuned([str(run)]):
        return verify_tuned(log, run, base, json)
    wanted, step = _trained(run)
    path = _log(log)
    scan = LogReader(path).scan()
    damage = scan.damage
    if damage:
        notice(f"{log} is damaged: {damage}")
    elif step is not None and scan.steps < step:
        raise InputError(
            f"{log} holds {scan.steps:,} steps, and {run} has taken {step:,}: it is the log of another run, or a copy "
            f"that was made before the run ended{_own_log(path, run, module)}"
        )
    found = rebuild(path, to_step=step, module=module_from(module) if module else None)
    different, stale = _different(found, wanted), found.stale_buffers
    if json:
        record = {"log": str(log), "run": str(run), "steps": found.step, "same": not different, "different": different}
        show_json({**record, "not_compared": list(stale), "damage": damage})
    if different:
        floats = any(parameter.is_floating_point() for parameter in found.net.parameters())
        names = ", ".join(different[:8]) + _ROUNDING * floats
        fail(f"{log} does not give the weights of {run} at step {found.step}: {names}", 2)
    if not json:
        show(f"{log} gives the weights of {run} at step {found.step:,}, bit for bit: {', '.join(wanted)}")
        if stale:
            show(f"not compared, for the log has no buffers of step {found.step:,}: {', '.join(stale[:8])}")


def _different(found: Replayed, wanted: dict[str, dict[str, Tensor]]) -> list[str]:
    """Return what differs between a rebuilt net and a run's files; buffers that are of another step are left out."""
    weights, different = found.net.state_dict(), []
    for file, tensors in wanted.items():
        for name in sorted((weights.keys() | tensors.keys()) - set(found.stale_buffers)):
            if name not in weights or name not in tensors or weights[name].shape != tensors[name].shape:
                different.append(f"{name} in {file}, which is of another net")
            elif not same_bits(weights[name], tensors[name]):
                different.append(f"{name} in {file}")
    return different


def _own_log(log: Path, run: Path, module: str | None) -> str:
    """Return what to type instead, unless the log is the run's own already."""
    if log.resolve().parent == run.resolve():
        return ""
    return f"; give the run's own log, `sidestep verify {run} {run}{f' --module {module}' if module else ''}`"


def _trained(path: Path) -> tuple[dict[str, dict[str, Tensor]], int | None]:
    """Return file -> its weights, and the step of the last checkpoint, if there is one (else that of the log's end)."""
    folder = RunFolder(path)
    folder.config()
    found: dict[str, dict[str, Tensor]] = {}
    step, state = None, folder.load_state()
    if state:
        tensors, record = state
        found["state.safetensors"] = {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("net/")}
        step = int(record["step"])
    model = folder.load_model()
    if model:
        found["model.safetensors"] = model[0]
    if not found:
        raise CheckpointError(f"{path} has no weights to compare with; let it train on with --resume")
    return found, step
