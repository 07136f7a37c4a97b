"""`sidestep train RULE`: a rule's dataclass fields are its options; a preset gives them other defaults."""

import dataclasses
import json
import re
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sidestep.cli.bar import TrainingBar
from sidestep.cli.help import HELP, HELP_ALL, TRAIN_STEPS, named_apart
from sidestep.cli.join import listening
from sidestep.cli.launched import rank_in_words
from sidestep.cli.options import Extra, Given, TrainData, all_words, last_value, module_from, rule_named
from sidestep.cli.output import (
    default_data_dir,
    error_console,
    fail,
    notice,
    show,
)
from sidestep.cli.parse import parsed_groups
from sidestep.cli.place import check_place, label
from sidestep.cli.trained_report import report, show_columns
from sidestep.data import DataSet, load
from sidestep.errors import CheckpointError, InputError
from sidestep.presets.catalogue import Preset, check_fits, find_preset, other_presets
from sidestep.rules import RULES, Rule, rule_from_record
from sidestep.training import Options, Stopped, train
from sidestep.training.compatibility import table_form
from sidestep.training.folder import RunFolder
from sidestep.world import Host, World, world_here

__all__ = ["train_command"]


_HELP = f"""\
usage: sidestep train RULE [OPTIONS]
       sidestep train --preset NAME [OPTIONS]

rules: {", ".join(RULES)}

`sidestep train RULE --help` explains the options of a rule; `sidestep presets` lists the presets.
"""


def train_command(arguments: list[str]) -> None:
    """Parse the options, train, and print the result."""
    if not arguments or arguments[0] in (*HELP, HELP_ALL):
        show(*_HELP.splitlines())
        return
    name, rest, preset = _what_to_train(arguments)
    rest = [re.sub(f"^{TRAIN_STEPS}(?==|$)", _steps_option(RULES[name]), word) for word in rest]
    plain = RULES[name](), Options(), TrainData(), Extra()
    budget = last_value(rest, "--budget")
    if budget and not preset:
        raise InputError("--budget chooses the values of a preset: give --preset NAME, too")
    if preset and budget:
        preset = preset.for_budget(budget)
    given = _parse(name, rest, _without_end(rest, _preset_options(preset)) if preset else plain)
    if preset:
        check_fits(preset, name, given[2].data)
    world = world_here()
    with listening(given[3], world) as host:  # before anything is loaded: a port may be in use
        with world.together():
            given = _continued(name, rest, given, world)
            data = _loaded(given[2], given[1], world)
        _train(name, given, data, world, host)


def _continued(name: str, rest: list[str], given: Given, world: World) -> Given:
    """Return the options of a run that goes on: those that are not given again keep the values it was started with.

    Of several ranks the first alone may see the folder, and tells the others. Ranks that torchrun has started again go
    on with the run that they have left.
    """
    out = given[1].out
    if out and world.generation and not given[1].resume:
        given = given[0], dataclasses.replace(given[1], resume=True, overwrite=False), *given[2:]
    saved = RunFolder(out) if given[1].resume and out and world.leads else None
    there = saved is not None and saved.config_file.exists()
    config = json.loads(world.broadcast(json.dumps(saved.config() if saved and there else None).encode()))
    if config:
        again = [word for word in rest if word != "--overwrite"] if world.generation else rest
        return _parse(
            name, [*again, "--resume", "--out", str(out)], _without_end(rest, _saved_options(RULES[name], config))
        )
    if saved and saved.empty() and not world.generation:
        notice(f"{out} holds no run yet; starting one")
    return given


def _loaded(options: TrainData, run: Options, world: World) -> DataSet:
    """Return the data; where they have to be downloaded, the first rank is there before the others look."""
    again = run.resume and run.out and RunFolder(run.out).config_file.exists()  # columns are encoded as they were
    if not world.leads:
        world.gather(b"")
    data = load(
        options.data,
        data_dir=options.data_dir or default_data_dir(),
        validation=options.validation,
        size=options.image_size,
        targets=options.targets,
        target=options.target,
        form=table_form(Path(run.out)) if again and run.out else None,
        progress=error_console.is_terminal and world.leads,
    )
    if world.leads:
        world.gather(b"")
    return data


def _what_to_train(arguments: list[str]) -> tuple[str, list[str], Preset | None]:
    """Return the rule's name, the options, and the preset that these name, if any."""
    named = last_value(arguments, "--preset")
    preset = find_preset(named) if named else None
    if arguments[0].startswith("-"):
        if preset is None:
            raise InputError(f"give a rule ({', '.join(RULES)}) or --preset NAME before {arguments[0]}")
        return preset.rule, arguments, preset
    name = rule_named(arguments[0])
    if preset and preset.rule != name:
        raise InputError(
            f"preset {preset.name} is for the rule {preset.rule}, not {name}; {other_presets(preset.data, name)}"
        )
    return name, arguments[1:], preset


def _steps_option(rule: Rule | type[Rule]) -> str:
    return TRAIN_STEPS if "steps" in {field.name for field in dataclasses.fields(rule)} else "--steps"


def _without_end(arguments: Sequence[str], defaults: Given) -> Given:
    """Return defaults without epochs where steps are given, and the other way round: one of the two says the end."""
    rule, options, data_options, extra = defaults
    epochs, steps = (last_value(arguments, name) is not None for name in ("--epochs", _steps_option(rule)))
    if epochs != steps:
        options = dataclasses.replace(options, steps=None) if epochs else dataclasses.replace(options, epochs=None)
    return rule, options, data_options, extra


def _train(name: str, given: Given, data: DataSet, world: World, host: Host | None) -> None:
    rule, options, data_options, extra = given
    source = {key: value for key, value in dataclasses.asdict(data_options).items() if value is not None}
    if data_options.targets in ("auto", "classes"):
        source.pop("targets")
    source = {{"data": "name", "image_size": "size"}.get(key, key): value for key, value in source.items()}
    if options.out:
        check_place(Path(options.out), data_options.data)
    if world.leads and not extra.json:
        show_columns(data)
    found, asked = module_from(extra.module) if extra.module else None, all_words(extra.reading)
    readings = _readings(rule, asked, data_options.preset)
    source.update({"module": extra.module} if extra.module else {})
    try:
        with TrainingBar() if world.leads else nullcontext() as bar:
            run = train(rule, data, options, module=found, source=source, progress=bar, readings=readings, host=host)
    except Stopped as stopped:
        words = ["sidestep", "train", name, "--resume", "--out", str(options.out)]
        again = {"--module": [extra.module] if extra.module else [], "--reading": asked}
        again |= {"--listen": [extra.listen] if extra.listen else []}
        again |= {"--token-file": [str(extra.token_file)] if extra.token_file else []}
        command = shlex.join(words + [word for option, given in again.items() if given for word in (option, *given)])
        said = f"; saved in {options.out}. Continue with: {command}" if world.leads else ""
        fail(f"{rank_in_words()}{stopped}{said}", 128 + stopped.signal_number)
    if world.leads:
        report(run, extra.json)


def _readings(rule: Rule, asked: Sequence[str], preset: str | None) -> Sequence[str]:
    """Return what to evaluate by: as asked, or a preset's own reading beside the rule's; empty: the rule's alone."""
    if asked == ("all",):
        return rule.readings
    own = find_preset(preset).reading if preset and rule.at_end else None
    return asked if asked or own is None else tuple(dict.fromkeys([*rule.at_end, own]))


def _parse(name: str, arguments: Sequence[str], defaults: Given) -> Given:
    """Return the rule and the options; what is not given comes from `defaults`."""
    rule, options, data_options, extra = defaults
    kinds = {"run": named_apart(Options, RULES[name]), "data": TrainData, "rule": RULES[name], "other": Extra}
    values = zip(kinds.items(), (options, data_options, rule, extra), strict=True)
    groups = {title: (kind, kind(**_values(given))) for (title, kind), given in values}
    about = RULES[name].__doc__ or ""
    options, data_options, rule, extra = parsed_groups(groups, f"sidestep train {name}", arguments, about)
    options = Options(**_values(options))
    if options.out is None:
        stem = data_options.preset or f"{name}-{label(data_options.data)}"
        options = dataclasses.replace(options, out=Path("runs") / f"{stem}-{options.seed}")
    return rule, options, data_options, extra


def _values(given: Any) -> dict[str, Any]:
    return {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}


def _preset_options(preset: Preset) -> Given:
    """Return the options that a preset stands for."""
    data_options = TrainData(
        data=preset.data, validation=preset.validation, image_size=preset.image_size, preset=preset.name
    )
    return RULES[preset.rule](**preset.options), Options(**preset.train), data_options, Extra()


def _saved_options(kind: type[Rule], saved: dict[str, Any]) -> Given:
    """Return the options that a run was started with, from its configuration."""
    try:
        if saved["rule"]["name"] != kind.name:
            raise InputError(f"the run was started with the rule {saved['rule']['name']}, not {kind.name}")
        data = saved["data"]
        data_options = TrainData(
            data=data["name"],
            data_dir=Path(data["data_dir"]) if "data_dir" in data else None,
            validation=data.get("validation", 0.1),
            image_size=data.get("size"),
            targets=data.get("targets", "auto"),
            target=data.get("target"),
            preset=data.get("preset"),
            budget=data.get("budget"),
        )
        return (
            rule_from_record(saved["rule"]),
            Options(**saved["train"]),
            data_options,
            Extra(),
        )  # a module is never taken from a file
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the run's config.toml lacks or misnames an entry: {error}") from error
