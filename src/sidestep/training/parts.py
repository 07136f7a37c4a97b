"""A step in equal parts: how many there are, which of them a rank estimates, and the update that they make together.

One process that takes all parts, one after another, and any number of ranks that take some each, compute the same
parts, so the update has the same bits.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from sidestep.data.share import Division, Share
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, HasBatchMultiple, Rule
from sidestep.training.exchange import SAVE, PartSum
from sidestep.training.gathered import Gathered
from sidestep.training.options import Compute, Options
from sidestep.training.pieces import tensors_of
from sidestep.training.signs import Signs
from sidestep.training.state import UNSENT, State
from sidestep.training.stopping import StopRequest
from sidestep.training.unit_ranks import UnitRanks
from sidestep.update import Update
from sidestep.wording import counted
from sidestep.world import World

__all__ = ["LEAST_EXAMPLES", "Parts", "parts_of", "with_parts"]

LEAST_EXAMPLES = 16  # in a part of a batch: the rows of a product keep their bits from there on
_USUAL = 4  # parts where nobody says how many, so that up to so many ranks, and one, do the same
_MOST_PARTS = 64


class Parts:
    """Estimates the parts of a step that are this rank's, and exchanges them."""

    def __init__(  # long: what is divided how, and what is exchanged of it
        self,
        world: World,
        of: Division,
        count: int,
        exchange_share: float | None = None,
        folder: Path | None = None,
        exchange_window: int | None = None,
    ) -> None:
        self.world, self.of, self.count, self.folder = world, of, count, folder
        self.signs = Signs(exchange_share, exchange_window) if exchange_share else None
        self.signal = 0  # the largest of a stop request that any rank had got before the last exchange
        self.collected_at = -1  # the step
        self.due = False  # whether a checkpoint is, on this rank, and after the exchange on any

    @property
    def own(self) -> range:
        """The numbers of this rank's parts."""
        return range(self.world.rank, self.count, self.world.size)

    def estimate(  # long: what an estimate depends on
        self, rule: Rule, net: nn.Module, batch: Batch, noise: Noise, compute: Compute, stop: StopRequest
    ) -> Update:
        """Return the update of the whole step."""
        total = PartSum(self.signs)
        if self.signs:
            self.signs.begin(noise.step)
        for index in self.own:
            total.add(self.part(index, rule, net, batch, noise, compute), index)
        found, said = total.exchanged(self.world, self.count, stop.signal_number | (SAVE if self.due else 0))
        self.signal, self.due = said & ~SAVE, bool(said & SAVE)
        return found

    def part(self, index: int, rule: Rule, net: nn.Module, batch: Batch, noise: Noise, compute: Compute) -> Update:
        """Return the update of one part, the same whoever estimates it."""
        share = Share(self.of, index, self.count)
        common = self.of == "probes" or rule.common_noise
        drawn = noise if common else noise.stream(f"part {index}")
        with compute.autocast():
            return rule.estimate(net, _part(batch, share), drawn)

    def collect(self, state: State) -> None:
        """Bring to rank 0, for a checkpoint, what parts of other ranks have not yet exchanged."""
        if self.signs is None or self.folder is None or self.collected_at == state.step:
            return
        self.collected_at = state.step
        state.unsent = {f"{UNSENT}{name}": value for name, value in self.signs.waiting().items()}
        if self.world.size == 1:
            return
        gathered = Gathered(self.folder) if self.world.leads else None
        for source in range(1, self.world.size):
            for name, tensor in tensors_of(self.world, source, state.unsent):
                if gathered:
                    gathered.put(name, tensor)
        state.gathered = gathered

    def collected(self, state: State) -> bool:
        """Whether all that a checkpoint needs is on rank 0."""
        if self.world.size == 1:
            self.collect(state)
        return self.signs is None or self.collected_at == state.step

    def restore(self, unsent: Iterable[tuple[str, Tensor]]) -> None:
        """Put back what this rank's parts had not exchanged; of other parts nothing is taken."""
        for name, tensor in unsent:
            part, _, rest = name.removeprefix(UNSENT).partition("/")
            if self.signs and int(part) in self.own:
                self.signs.put_back(int(part), rest, tensor)


def with_parts(options: Options, rule: Rule, world: World, batch: int, hosted: bool = False) -> Options:
    """Return the options with the division of a step and the number of its parts, where there are several.

    Without several ranks, and without being asked for, a step is not divided.

    Args:
        options: `split` and `shares`, where the user has said so.
        rule: what it can divide.
        world: how many ranks there are.
        batch: examples in a step.
        hosted: whether others may join, whose number nobody knows yet.

    Raises:
        InputError: if the rule cannot be divided so, or not among so many ranks.
    """
    if world.size == 1 and options.split is None and options.shares is None and options.exchange_share is None:
        return options
    if options.units != "together":
        raise InputError(f"units = {options.units} takes one unit at a time in one process; leave units or split out")
    divides = rule.divides
    if not divides:
        raise InputError(f"a step of {rule.name} with these options is one piece: train it in one process")
    first: Division = next(iter(divides))
    split = options.split or first
    if options.exchange_share is not None and not rule.takes_signs:
        raise InputError(
            f"exchange_share = {options.exchange_share:g} exchanges the signs of a gradient's largest entries, for "
            f"rules whose gradients choose the weights that flip, and not for {rule.name} with these options: leave it "
            "out"
        )
    if split == "units" and split in divides:
        return _by_units(options, rule, world, divides[split])
    if split not in divides:
        raise InputError(
            f"split = {split} is not for {rule.name} with these options, whose steps are divided by "
            f"{' or '.join(divides)}: give --split {first}"
        )
    total = divides[split] or batch
    usual = _USUAL if options.exchange_share is None or hosted else 1  # each part of it is a message
    shares = options.shares or _usual(rule, split, total, world.size, usual)
    wrong = _why_not(rule, split, total, shares)
    if wrong:
        raise InputError(wrong)
    if world.size > shares:
        raise InputError(
            f"there are {counted(world.size, 'rank')}, and a step has {counted(shares, 'part')}, one or more for each; "
            "give more --shares, or start fewer ranks"
        )
    return replace(options, split=split, shares=shares)


def _by_units(options: Options, rule: Rule, world: World, units: int) -> Options:
    """Return the options of a run whose units are spread over the ranks; one process trains all of them as ever."""
    if world.size > units:
        raise InputError(
            f"there are {counted(world.size, 'rank')}, and {rule.name} has {counted(units, 'unit')} to spread; start "
            "fewer ranks, or give --split batch"
        )
    for name, value in (("shares", options.shares), ("average", options.average), ("align", options.align)):
        if value:
            raise InputError(
                f"{name} = {value} needs the whole net at every step, and with split = units each rank has units of "
                f"its own; leave {name} out, or give --split batch"
            )
    return replace(options, split="units")


def parts_of(options: Options, rule: Rule, world: World) -> Parts | UnitRanks | None:
    """Return what estimates a divided step, by options that `with_parts` has settled; None for one that is whole."""
    folder = Path(options.out) if options.out else None
    if options.split == "units":
        return UnitRanks(world, rule.divides["units"], folder) if world.size > 1 else None
    if not (options.split and options.shares):
        return None
    return Parts(world, options.split, options.shares, options.exchange_share, folder, options.exchange_window)


def _usual(rule: Rule, split: Division, total: int, ranks: int, usual: int) -> int:
    """Return the number of parts where nobody says: the usual one, or the next that fits the ranks and the step."""
    fitting = [shares for shares in range(1, _MOST_PARTS + 1) if _why_not(rule, split, total, shares) is None]
    if not fitting:
        raise InputError(_why_not(rule, split, total, 1))
    if ranks > fitting[-1]:
        what = f"{total:,} examples" if split == "batch" else f"{total:,} {split}"
        least = f" of {LEAST_EXAMPLES} examples or more" if split == "batch" else ""
        raise InputError(
            f"there are {counted(ranks, 'rank')}, and a step of {what} has at most "
            f"{counted(fitting[-1], 'equal part')}{least}; start fewer ranks, or make it larger"
        )
    enough = [shares for shares in fitting if shares >= ranks]
    return next((shares for shares in enough if shares >= usual), enough[-1])


def _why_not(rule: Rule, split: Division, total: int, shares: int) -> str | None:
    """Return why a step cannot have so many parts, or None if it can."""
    what = "a batch of" if split == "batch" else "a step's number of probes, pairs or tangents,"
    if total % shares:
        return f"{what} {total:,} cannot be divided into {shares} equal parts: change it, or give another --shares"
    if split == "batch" and total // shares < LEAST_EXAMPLES:
        return (
            f"a part of a batch needs {LEAST_EXAMPLES} examples, below which rows of a product change their bits with "
            f"their number; {total:,} in {shares} parts are {total // shares:,}: give a larger --batch, or fewer "
            "--shares or ranks"
        )
    if split == "batch" and isinstance(rule, HasBatchMultiple) and (total // shares) % rule.batch_multiple[1]:
        name, multiple = rule.batch_multiple
        return (
            f"a part of a batch must be a multiple of {name} = {multiple}, and {total:,} in {shares} parts are "
            f"{total // shares:,}: change one of them"
        )
    return None


def _part(batch: Batch, share: Share) -> Batch:
    rows = share.examples(len(batch.targets))
    if len(rows) == len(batch.targets):
        return replace(batch, share=share)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[rows.start : rows.stop]

    inputs = batch.inputs
    cut_inputs = {name: cut(value) for name, value in inputs.items()} if isinstance(inputs, Mapping) else cut(inputs)
    return replace(batch, inputs=cut_inputs, targets=cut(batch.targets), share=share)
