"""The net that a log's steps start from: built from the header, which may be anybody's, and compared with it."""

import math
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sidestep.errors import CheckpointError, InputError, SidestepError
from sidestep.nets.trained import frozen, trained
from sidestep.nets.user_modules import ImagePath
from sidestep.rules import RULES, rule_from_record
from sidestep.rules.protocol import Rule, Task
from sidestep.rules.untrained import untrained
from sidestep.steplog.header import Header, digest_of, table_of

__all__ = ["check_net", "rule_of", "start_of"]

_MOST_SIDE, _MOST_PIXELS = 1 << 16, 1 << 26  # of an image
_ROOM = 1 << 24  # elements that building a net may take beside its parameters and buffers
_WRONG = (
    SidestepError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    AssertionError,
)  # fmt: skip


def start_of(header: Header, module: ImagePath | None) -> tuple[Rule, nn.Module]:
    """Return the rule and the net that a log starts from.

    Raises:
        CheckpointError: if the rule is unknown here, or the net that it builds is another one.
        InputError: if the run was trained with a module of the user's own and none is given.
    """
    if header.attached:
        raise InputError(
            f"the log is of a model in a loop of its own ({header.module}), which has to be given: in Python, "
            "sidestep.replay(LOG, model) with the model as it was before its first step; of `sidestep tune` give the "
            "run's folder, or the base model by --base"
        )
    if header.module and module is None:
        raise InputError(
            f"the log is of a run with a module of its own ({header.module}): give it, --module FILE.py:Name"
        )
    rule = rule_of(header)
    try:
        task = _task(header.task)
        with _Budget(_ROOM + 16 * _elements_of(header)):
            net = untrained(rule, task, header.seed, None, module)
    except _WRONG as error:
        raise CheckpointError(f"the net of the log's header cannot be built: {error}") from error
    check_net(header, net)
    return rule, net


def rule_of(header: Header) -> Rule:
    """Return the rule of a log; raises CheckpointError if it is unknown here, or cannot be with these options."""
    name = header.rule["name"]
    if name not in RULES:
        raise CheckpointError(f"the log is of the rule {name!r}, which is not there; there are: {', '.join(RULES)}")
    try:
        _check_whole_numbers(header.rule, max(_elements_of(header), 1 << 24))
        return rule_from_record(header.rule)
    except _WRONG as error:
        raise CheckpointError(f"the net of the log's header cannot be built: {error}") from error


def _elements_of(header: Header) -> int:
    return sum(math.prod(shape) for _, _, shape in (*header.parameters, *header.buffers, *header.frozen))


def check_net(header: Header, net: nn.Module) -> None:
    """Raise CheckpointError unless a net, before its first step, is the one that the log starts from."""
    own: dict[str, dict[str, Any]] = {
        "trained parameters": dict(trained(net)),
        "buffers": dict(net.named_buffers()),
        "frozen parameters": frozen(net),
    }
    tables = zip(own, (header.parameters, header.buffers, header.frozen), strict=True)
    for kind, there in tables:
        here = table_of(own[kind])
        if here != there:
            pairs = zip(there, here, strict=False)
            other = next((f"{_words(a)} there, {_words(b)} here" for a, b in pairs if a != b), "their number")
            raise CheckpointError(
                f"the log is of another net: it has {len(there)} {kind}, this one {len(here)}; "
                f"the first that differs: {other}. Give the module and the options that the log was made with"
            )
    if digest_of(net) != header.start and header.attached:
        raise CheckpointError(
            f"the model's weights are not those that the log starts from (their digest is not {header.start}): give "
            "it as it was before its first step, made from the same seed or loaded from the same file"
        )
    if digest_of(net) != header.start:
        raise CheckpointError(
            f"the untrained net is not the one that the log starts from (its weights' digest is not {header.start}): "
            "other code draws it now, or the rule starts from the training images; use the version that wrote the log, "
            f"sidestep {header.sidestep}"
        )


class _Budget(TorchDispatchMode):
    """Lets tensors be made up to so many elements, so that a false header cannot ask for more than its own table."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self._most, self._left = elements, elements

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, if what it makes is within the budget."""
        given = kwargs or {}
        leaves = tree_leaves((args, given))
        if not any(isinstance(leaf, Tensor) for leaf in leaves):  # makes a tensor from nothing: asked before it is made
            self._take(_elements(str(func), args))
        made = func(*args, **given)
        if any(isinstance(leaf, Tensor) and leaf.numel() > self._most for leaf in tree_leaves(made)):
            self._take(self._most + 1)
        return made

    def _take(self, elements: int) -> None:
        self._left -= elements
        if self._left < 0:
            raise InputError("it would be larger than the header's table of its parameters and buffers")


def _elements(name: str, args: Any) -> int:
    """How many elements an operation will make that takes no tensor: of a shape, a range, a diagonal or so many."""
    if args and isinstance(args[0], list | tuple):
        return math.prod(args[0])
    numbers = [math.ceil(entry) for entry in args if isinstance(entry, int | float)]
    if "arange" in name:
        return abs(numbers[1] - numbers[0]) if len(numbers) > 1 else abs(sum(numbers))
    if "eye" in name:
        return abs(math.prod(numbers * 2 if len(numbers) == 1 else numbers))
    return abs(numbers[2]) if len(numbers) > 2 else 0


def _check_whole_numbers(options: Any, most: int) -> None:
    if isinstance(options, dict | list | tuple):
        for entry in options.values() if isinstance(options, dict) else options:
            _check_whole_numbers(entry, most)
    elif isinstance(options, int) and abs(options) > most:
        raise InputError(f"an option is {options:,}, beyond anything that a net of this table needs")


def _words(entry: tuple[str, str, tuple[int, ...]]) -> str:
    return f"{entry[0]} {entry[1]} {list(entry[2])}"


def _task(entries: dict[str, Any]) -> Task:
    task = Task.from_record(entries)
    if not all(isinstance(side, int) and 1 <= side <= _MOST_SIDE for side in task.shape):
        raise InputError(f"inputs of shape {task.shape}")
    if task.inputs == "image" and len(task.shape) != 3:
        raise InputError(f"images of shape {task.shape}")
    if math.prod(task.shape) > _MOST_PIXELS:
        raise InputError(f"inputs of {math.prod(task.shape):,} elements")
    return task
