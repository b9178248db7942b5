"""Experiment trackers, through Accelerate: they show what history.csv holds, and can disturb nothing."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from experiments.run_folder import TENSORBOARD, RunFolder, remove_events
from utils.log import logger
from utils.seed import random_state, set_random_state


@contextlib.contextmanager
def tracked(names: Sequence[str], run: RunFolder, settings: dict) -> Iterator[Callable[[dict], None]]:
    """Inside, the yielded function sends a row of history.csv to each of the trackers; those that the run has already
    are sent first, so that a resumed run is shown whole.

    A tracker that fails, or is not installed, is warned about and left out from there on.
    """
    trackers = dict.fromkeys(names)

    def each(action: Callable[[str], None]) -> None:
        for name in list(trackers):
            state = random_state()  # numbers that a tracker draws are not missed in training
            try:
                action(name)
            except Exception as error:
                del trackers[name]
                reason = " ".join(str(error).split())
                logger.warning(f"--track {name}: stopped, as it failed ({type(error).__name__}: {reason}).")
            finally:
                set_random_state(state)

    def log(row: dict) -> None:
        values = {key: float(value) for key, value in row.items() if key != "epoch"}
        each(lambda name: trackers[name].log(values, step=int(row["epoch"])))

    each(lambda name: trackers.update({name: _open(name, run, settings)}))
    for row in run.history:
        log(row)
    try:
        yield log
    finally:
        each(lambda name: trackers[name].finish())


def _open(name: str, run: RunFolder, settings: dict) -> GeneralTracker:
    """A tracker that has the settings; lists become texts, which all trackers take."""
    if name == "tensorboard":
        remove_events(run.results / TENSORBOARD)
        tracker = LOGGER_TYPE_TO_CLASS[name](TENSORBOARD, logging_dir=run.results)
    else:
        tracker = LOGGER_TYPE_TO_CLASS[name]("dmd", **{"name" if name == "wandb" else "run_name": run.name})  # project
    tracker.start()
    plain = (bool, int, float, str)
    tracker.store_init_configuration({k: v if isinstance(v, plain) else json.dumps(v) for k, v in settings.items()})
    return tracker
