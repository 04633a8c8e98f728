"""What a run takes from the program around it, and gives back however it ends."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import get_track_meta, set_track_meta
from monai.utils import get_seed, set_determinism

from cryoshuffle.devices import no_autocast, rounding_kept
from cryoshuffle.memory import limit_memory

Take: TypeAlias = "Callable[[Engine], AbstractContextManager[Any]]"
_taken: WeakKeyDictionary[Engine, ExitStack] = WeakKeyDictionary()


def while_running(engine: Engine, take: Take) -> None:
    """Take something from the host from the start of an engine to its end, or to an error, which is raised again.

    What was taken last is given back first, behind all that other handlers do at the end.

    Args:
        engine: that runs.
        take: makes the context that takes and gives back, when the engine starts.
    """
    if not engine.has_event_handler(_fail, Events.EXCEPTION_RAISED):
        engine.add_event_handler(Events.EXCEPTION_RAISED, _fail)
        engine.add_event_handler(Events.STARTED, _start)
    engine.add_event_handler(Events.STARTED, _take, take)


def _start(engine: Engine) -> None:
    # Added only now, so behind the handlers that others attach.
    if not engine.has_event_handler(_raise, Events.EXCEPTION_RAISED):
        engine.add_event_handler(Events.COMPLETED, _end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, _raise)


def _take(engine: Engine, take: Take) -> None:
    _taken.setdefault(engine, ExitStack()).enter_context(take(engine))


def _end(engine: Engine) -> None:
    _taken.pop(engine, ExitStack()).close()


def _fail(engine: Engine, error: BaseException) -> None:
    _taken.pop(engine, ExitStack()).__exit__(type(error), error, error.__traceback__)
    if not engine.has_event_handler(_raise, Events.EXCEPTION_RAISED):
        raise error


def _raise(engine: Engine, error: BaseException) -> None:
    raise error  # Ignite takes an error that has a handler for dealt with.


def is_terminal(stream: Any) -> bool:
    """Whether someone watches what is written to a stream.

    Args:
        stream: None where a program has none; some that stand in for one cannot say.
    """
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # The latter where it is closed.
        return False


@contextmanager
def unheard(name: str) -> Iterator[None]:
    """While this lasts, a logger says nothing.

    Args:
        name: of the logger.
    """
    one = logging.getLogger(name)
    before, one.disabled = one.disabled, True
    try:
        yield
    finally:
        one.disabled = before


@contextmanager
def usual_defaults() -> Iterator[None]:
    """While this lasts, MONAI keeps metadata and new tensors are on the CPU, whatever the host has told them.

    Without metadata a volume has no affine, so its axes are those of the file.
    """
    before = get_track_meta()
    elsewhere = torch.get_default_device().type != "cpu"
    set_track_meta(True)
    try:
        with torch.device("cpu") if elsewhere else nullcontext():
            yield
    finally:
        set_track_meta(before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run in a state of our own and leave that of the host as it is.

    That is: random numbers, how products are rounded, the memory limit, where modules are looked for, and what torch
    and MONAI are told to do with all they compute: a run makes numbers float32, computes gradients, casts only what it
    says, keeps metadata, and makes tensors on the CPU.
    """
    cudnn = torch.backends.cudnn
    with ExitStack() as host:
        host.callback(torch.set_default_dtype, torch.get_default_dtype())
        host.callback(sys.path.__setitem__, slice(None), [*sys.path])
        host.callback(limit_memory, limit_memory())
        host.enter_context(rounding_kept())
        for name in ("deterministic", "benchmark"):
            host.callback(setattr, cudnn, name, getattr(cudnn, name))
        host.callback(np.random.set_state, np.random.get_state())
        host.callback(random.setstate, random.getstate())
        # To ask a GPU for its state would start it, in a run on the CPU too.
        if torch.cuda.is_initialized():
            host.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
        else:
            host.callback(torch.cuda.manual_seed_all, torch.initial_seed())
            host.enter_context(torch.random.fork_rng([]))
        host.callback(set_determinism, get_seed())
        host.enter_context(no_autocast())
        host.enter_context(usual_defaults())
        host.enter_context(torch.inference_mode(False))
        host.enter_context(torch.enable_grad())
        torch.set_default_dtype(torch.float32)
        yield
