"""Experiment trackers, through Accelerate: they show what history.csv holds, and can disturb nothing."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from trainers.runs import TENSORBOARD, RunFolder, remove_events
from utils.errors import ConfigError
from utils.log import logger
from utils.seed import random_state, set_random_state

PROJECT = "dmd"  # under which the services that have projects file the runs


def check_installed(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker that is not installed."""
    for name in names:
        if name not in [str(available) for available in get_available_trackers()]:
            raise ConfigError(f"--track: {name} is not installed. Install it with: pip install {name}")


@contextlib.contextmanager
def tracked(names: Sequence[str], run: RunFolder, settings: dict) -> Iterator[Callable[[dict], None]]:
    """Inside, the yielded function sends a row of history.csv to each of the trackers; those that the run has already
    are sent first, so that a resumed run is shown whole.

    A tracker that fails is warned about and left out from there on.
    """
    trackers = [_Tracker(name, run, settings) for name in dict.fromkeys(names)]

    def log(row: dict) -> None:
        values = {key: float(value) for key, value in row.items() if key != "epoch"}
        for tracker in trackers:
            tracker.attempt(lambda inner: inner.log(values, step=int(row["epoch"])))

    for row in run.history:
        log(row)
    try:
        yield log
    finally:
        for tracker in trackers:
            tracker.attempt(lambda inner: inner.finish())


class _Tracker:
    """A tracker whose failures end with itself."""

    def __init__(self, name: str, run: RunFolder, settings: dict):
        """Open the tracker and hand it the settings; lists become texts, which all trackers take."""
        self.name, self.inner = name, None
        kind, plain = LOGGER_TYPE_TO_CLASS[name], (bool, int, float, str)
        values = {k: v if isinstance(v, plain) else json.dumps(v) for k, v in settings.items()}
        with self._harmless():
            if name == "tensorboard":
                remove_events(run.results / TENSORBOARD)
                self.inner = kind(TENSORBOARD, logging_dir=run.results)
            else:
                self.inner = kind(PROJECT, **{"name" if name == "wandb" else "run_name": run.name})
            self.inner.start()
            self.inner.store_init_configuration(values)

    def attempt(self, action: Callable[[GeneralTracker], None]) -> None:
        """Do something with the tracker, if it has not failed before."""
        if self.inner is not None:
            with self._harmless():
                action(self.inner)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Inside, an error is a warning, and random numbers that are drawn are not missed outside."""
        state = random_state()
        try:
            yield
        except Exception as error:
            self.inner = None
            reason = " ".join(str(error).split())
            logger.warning(f"--track {self.name}: stopped, as it failed ({type(error).__name__}: {reason}).")
        finally:
            set_random_state(state)
