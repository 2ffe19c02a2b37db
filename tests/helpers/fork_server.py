"""A process that has imported everything, and forks: what it forks has nothing left to import.

`python -m tests.helpers.fork_server FD`, with one end of a socket pair; `tests.helpers.forks` starts it and
holds the other. Each message there brings three descriptors: a socket of the one process to be forked, its
standard output and its standard error. It ends when the other end is closed.
"""

import importlib
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial

import torch

# Of ours, and what those parts of other libraries load at their first use.
LOADED = (
    "pipeline.cli.main",
    "pipeline.commands.ingest",
    "pipeline.evaluation.run",
    "pipeline.features.job",
    "pipeline.train",
    "bitsandbytes.optim",
    "deepspeed.module_inject.auto_ep",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.vit.modeling_vit",
)


def load() -> None:
    """Import what ranks and commands need, without starting a thread that a fork would lose."""
    torch.set_num_threads(1)
    from pipeline.distributed import load_deepspeed

    load_deepspeed()
    for name in LOADED:
        importlib.import_module(name)


def serve(control: socket.socket) -> Callable | None:
    """Fork for each message; returns in each forked process with what it is to do, and at the end with None."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # of a terminal: whoever asked for a process tells it
    while True:
        message, descriptors, *_ = socket.recv_fds(control, 1, 3)
        if not message:
            return None
        if os.fork() == 0:
            control.close()
            return keep(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def keep(descriptor: int, stdout: int, stderr: int) -> Callable | None:
    """Fork the process itself and tell its pid and how it ended; returns in it with what it is to do."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=descriptor) as told, told.makefile("rb") as request:
        environment, folder, function, arguments = pickle.load(request)
        pid = os.fork()
        if pid:
            told.sendall(b"%d\n" % pid)
            _, status = os.waitpid(pid, 0)
            told.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # Torch leaves behind the pool of the process forked from, at its next use, and gives none to a
    # second thread that uses it meanwhile ("Invalid thread pool!"): before there is a second thread.
    torch.set_num_threads(1)
    return partial(function, *arguments)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as pair:
        load()
        task = serve(pair)
    if task:
        task()
