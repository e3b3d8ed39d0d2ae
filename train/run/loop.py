"""The training loop: step, show the state to the observers, stop on request, leave everything saved."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from imaging.files import forget_parts
from train.data.licence import NOT_STATED
from train.data.pack import Pack
from train.errors import TrainError
from train.recipes.recipe import Recipe
from train.run.distributed import World
from train.run.execution import CaptureFailed, Execution
from train.run.moments import Moments
from train.run.saved import STATE as STATE
from train.run.saved import StateError, saved_step
from train.run.state import TrainingState

log = logging.getLogger(__name__)

GENERATOR = "generator.safetensors"  # in the run's folder; it is sampled and served


class Diverged(TrainError):
    """A weight or a loss is no longer a number."""


class Observer(Protocol):
    """Something that looks at a run and never changes it."""

    def after(self, state: TrainingState) -> None:
        """Called after every generator step."""

    def close(self, state: TrainingState) -> None:
        """Called once, however the run ends."""


@dataclass
class Outcome:
    """How a run ended."""

    step: int
    finished: bool  # False: stopped on request; --resume goes on
    reason: str


@dataclass(frozen=True)
class Session:
    """One sitting of a run: how it begins, how it works, when it ends."""

    resume: bool = False  # go on from the saved state
    start: Path | None = None  # a generator or a state to begin with; None: new networks
    stop_after: float | None = None  # seconds; None: run to the recipe's last step
    execution: Execution = field(default_factory=Execution)  # nothing compiled, nothing recorded
    licence: str | None = None  # of the pictures; None: what they say themselves
    features: Path | None = None  # own classifier for schedule.measure_every; None: the pretrained network
    tell: Callable[[str], None] = log.info  # what was taken over of `start`, line by line


def train(
    recipe: Recipe,
    pack: Pack,
    out: Path,
    world: World,
    observers: Sequence[Observer],
    session: Session | None = None,  # None: a new run, to its end
) -> Outcome:
    """Run `recipe` on `pack`, leaving the state and the averaged generator in `out`.

    SIGINT, SIGTERM and SIGHUP end it after the current step, with everything saved; so does `stop_after`.
    It is saved and shown by the schedule's steps and, for a slow machine, by the clock (`Moments`).
    Raises TrainError: a batch that the processes cannot share, a folder in use, a state that does not fit,
    a network that diverged (the last good state stays on disk), CaptureFailed.
    """
    session = session or Session()
    with _stop_requested() as stop:
        state = _begun(recipe, pack, out, world, session)
        moments = Moments()
        deadline = time.monotonic() + (float("inf") if session.stop_after is None else session.stop_after)
        reason = "finished"
        try:
            while state.step < recipe.optimisation.steps:
                with _compiling():
                    state.advance()
                if state.step % recipe.schedule.log_every == 0:
                    _check(state, out / STATE)
                began = time.monotonic()
                for observer in observers:
                    observer.after(state)
                # process 0's clock is everyone's
                stopping, due = world.anyone(
                    bool(stop) or time.monotonic() > deadline, world.leads and moments.passed()
                )
                if stopping:
                    reason = stop[0] if stop else "time is up"
                    break
                if state.due or state.step % recipe.schedule.save_every == 0:
                    _save(state, out / STATE)
                if state.due:
                    moments.took(time.monotonic() - began)
                state.due = due
            _save(state, out / STATE)
        except CaptureFailed:
            observers = ()  # some would use the device
            raise
        except KeyboardInterrupt:
            session.tell(f"Ended at once, by a second Ctrl-C. {_kept(out / STATE)}")
            raise
        finally:
            for observer in observers:
                observer.close(state)
    return Outcome(state.step, state.step >= recipe.optimisation.steps, reason)


def _begun(recipe: Recipe, pack: Pack, out: Path, world: World, session: Session) -> TrainingState:
    """The state to go on from, the same in every process. Raises TrainError."""
    batch = recipe.optimisation.batch
    if batch % world.size:
        raise TrainError(f"batch {batch} does not divide by {world.size} processes.")
    if recipe.optimisation.variety and len(world.rows(batch)) % 2:
        raise TrainError(f"variety compares pairs, so each process's share of batch {batch} must be even.")
    state = TrainingState(recipe, pack, world, session.execution)
    if world.leads:
        if starting_step(out, session.resume):
            state.load(out / STATE)
        else:
            begin(state, session)
        state.licence = _licence(state, session.licence)
        forget_parts(out)  # of a run killed here, of its pack too
    state.follow()
    return state


def _licence(state: TrainingState, given: str | None) -> str:
    """Of the pictures, as given or as they say, and of those that the network it began from has seen."""
    own = " ".join((given or state.licence).split())
    theirs = (state.began_from or {}).get("licence")
    if theirs in (None, "", NOT_STATED):
        return own
    before = f"; begun from a network whose pictures have: {theirs}"
    return own if own.endswith(before) else own + before


def begin(state: TrainingState, session: Session) -> None:
    """Give a new run's networks what `session.start` has for them. Raises TrainError or ModelError."""
    if session.start is not None:
        for line in state.begin_from(session.start).lines():
            session.tell(line)
    elif state.recipe.optimisation.freeze_discriminator:
        raise TrainError("freeze_discriminator keeps blocks that --from brings: give one, or leave it out.")


def starting_step(out: Path, resume: bool) -> int:
    """Steps that the run in `out` has done; 0: a new one. Raises StateError when it must not start."""
    saved = out / STATE
    if resume and not saved.exists():
        raise StateError(f"Nothing to resume: {saved} does not exist.")
    if saved.exists() and not resume:
        raise StateError(f"{out} holds a run already. Go on with it by --resume, or use another --out.")
    return saved_step(saved) if resume else 0


@contextmanager
def _compiling() -> Iterator[None]:
    """Errors of torch.compile as one line with a way out."""
    try:
        yield
    except Exception as wrong:
        if not type(wrong).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(wrong).strip().splitlines()[0]
        raise TrainError(f"torch.compile failed here ({reason}). --no-compile trains without it.") from wrong


def _check(state: TrainingState, saved: Path) -> None:
    if not state.finite():
        raise Diverged(
            f"Training diverged before step {state.step}: a weight or a loss is not a finite number. "
            f"{_kept(saved)} Lower the learning rates, or keep spectral norm on in both networks, and start "
            "again."
        )


def _kept(saved: Path) -> str:
    return f"The last good state is in {saved}." if saved.exists() else "No state had been saved yet."


def _save(state: TrainingState, saved: Path) -> None:
    """Check in every process, so that they end together; one of them writes."""
    _check(state, saved)
    if state.world.leads:
        state.save(saved)


@contextmanager
def _stop_requested() -> Iterator[list[str]]:
    """A list that gets the name of a SIGINT, SIGTERM or SIGHUP that arrives; a second SIGINT ends at once.

    SIGHUP comes where the terminal is closed; who started the run with `nohup` wants it to go on.
    """
    received: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
