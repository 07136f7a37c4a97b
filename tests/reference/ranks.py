"""Several ranks on this machine, for tests: processes that meet over loopback, each of which calls one function."""

import functools
import multiprocessing
import socket
from pathlib import Path


@functools.cache
def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sidestep.training", "torch.distributed", "sidestep.world.distributed"])
    return context


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _one(rank, size, port, generation, function, arguments, answers):
    import torch
    import torch.distributed as dist

    from sidestep.errors import SidestepError
    from sidestep.world.distributed import join

    torch.set_num_threads(1)
    try:
        world = join(lambda: dist.TCPStore("127.0.0.1", port, size, rank == 0), rank, size, generation)
        found = function(world, *arguments)
    except SidestepError as error:
        found = error
    answers.send(found)


def on_ranks(size, function, *arguments, generation=0, seconds=60):
    """Return what `function(world, *arguments)` gives on each of `size` ranks: an error of ours is returned, too, and
    None comes of a rank that has died.
    """
    context, port = _context(), free_port()
    pipes, processes = [], []
    for rank in range(size):
        reading, writing = context.Pipe(duplex=False)
        process = context.Process(target=_one, args=(rank, size, port, generation, function, arguments, writing))
        process.start()
        writing.close()
        pipes.append(reading)
        processes.append(process)
    try:
        return [_answer(pipe, seconds) for pipe in pipes]
    finally:
        for process in processes:
            process.join(timeout=5)
            process.kill()


def _answer(pipe, seconds):
    if not pipe.poll(seconds):
        raise TimeoutError(f"a rank has said nothing for {seconds} s")
    try:
        return pipe.recv()
    except EOFError:
        return None


def bytes_of(folder, *names):
    """Return the contents of files of a folder by name."""
    return {name: (Path(folder) / name).read_bytes() for name in names}
