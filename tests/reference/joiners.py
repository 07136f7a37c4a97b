"""Workers that join a run on this machine, for tests: each a process, in which something can be changed before."""

from sidestep import data
from tests.reference import ranks


def digits(few=slice(0, 160)):
    """Some pictures of the digits that are part of scikit-learn."""
    whole = data.load("digits")
    names = list(whole.class_names)
    return data.from_arrays(whole.train.images[few], whole.train.labels[few], validation=0.1, class_names=names)


def _join(where, before, few, answers):
    import torch

    from sidestep.errors import SidestepError
    from sidestep.training.joining import join_run
    from sidestep.world import Guest

    torch.set_num_threads(1)
    try:
        guest = Guest(where)
        if before:
            before(guest)
        found = join_run(guest, lambda config: digits(few))
    except SidestepError as error:
        found = error
    answers.send(found)


def joiner(where, before=None, few=slice(0, 160)):
    """Start a process that joins at an address, after it has called `before(guest)`; return it and its answers."""
    context = ranks._context()
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=_join, args=(where, before, few, writing))
    process.start()
    writing.close()
    return process, reading
