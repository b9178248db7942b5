"""Experiment trackers, through Accelerate: they receive the rows of history.csv."""

import json
from collections.abc import Callable, Sequence

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from experiments.run_folder import TENSORBOARD, RunFolder, delete_events
from utils.log import logger
from utils.seed import random_state, set_random_state

PROJECT = "dmd"


class Trackers:
    """The trackers of a run, as a context manager.

    Earlier epochs of a resumed run are logged first, so that trackers show all of it. A tracker
    that fails, or is not installed, is reported in the log and no longer used.

    Args:
        names: Names from `experiments.options.TRACKERS`.
        folder: The folder of the run; nothing is tracked if it is not writable.
        settings: The configuration of the run to send to the trackers.
    """

    def __init__(self, names: Sequence[str], folder: RunFolder, settings: dict):
        self.names = list(names) if folder.writable else []
        self.folder = folder
        self.settings = settings
        self.trackers: dict[str, GeneralTracker] = {}

    def __enter__(self) -> "Trackers":
        for name in self.names:
            self._try(name, self._open)
        for row in self.folder.rows:
            self.log(row)
        return self

    def __exit__(self, *exception) -> None:
        for name in list(self.trackers):
            self._try(name, self._finish)

    def log(self, row: dict) -> None:
        """Send a row of history.csv to every tracker."""

        def send(name: str) -> None:
            values = {key: float(value) for key, value in row.items() if key != "epoch"}
            self.trackers[name].log(values, step=int(row["epoch"]))

        for name in list(self.trackers):
            self._try(name, send)

    def _open(self, name: str) -> None:
        tracker_class = LOGGER_TYPE_TO_CLASS[name]
        if name == "tensorboard":
            delete_events(self.folder.results / TENSORBOARD)
            tracker = tracker_class(TENSORBOARD, logging_dir=self.folder.results)
        elif name == "wandb":
            tracker = tracker_class(PROJECT, name=self.folder.name)
        else:
            tracker = tracker_class(PROJECT, run_name=self.folder.name)
        tracker.start()
        tracker.store_init_configuration(_plain_settings(self.settings))
        self.trackers[name] = tracker

    def _finish(self, name: str) -> None:
        self.trackers[name].finish()

    def _try(self, name: str, action: Callable[[str], None]) -> None:
        """Call an action on a tracker; drop the tracker if it fails."""
        state = random_state()  # trackers must not advance the random state of training
        try:
            action(name)
        except Exception as error:
            self.trackers.pop(name, None)
            reason = " ".join(str(error).split())
            logger.warning(
                f"--track {name}: stopped, as it failed ({type(error).__name__}: {reason})."
            )
        finally:
            set_random_state(state)


def _plain_settings(settings: dict) -> dict:
    """Convert settings to types that all trackers accept: lists become strings."""
    plain = {}
    for key, value in settings.items():
        plain[key] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return plain
