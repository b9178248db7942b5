"""What trackers are sent is what history.csv holds, and they can disturb nothing."""

import csv
from pathlib import Path

import pytest
from accelerate.tracking import get_available_trackers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.commands import train
from trainers.options import TRACKERS

RUN = Path("result/dmd-synthetic-1111")


def assert_events_agree_with_history(epochs: int) -> None:
    events = EventAccumulator(str(RUN / "tensorboard"))
    events.Reload()
    with open(RUN / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == epochs
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"epoch"}
    for name in events.Tags()["scalars"]:
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in shown] == [int(row["epoch"]) for row in rows]
        expected = [float(row[name]) for row in rows]
        assert [value for _, value in shown] == pytest.approx(expected, rel=1e-6, nan_ok=True), name  # as float32


def test_events_agree_with_history_and_change_no_number(folder):
    assert train("--name", "plain") == 0
    assert train("--track", "tensorboard") == 0
    assert_events_agree_with_history(epochs=2)
    for file in ("1.pth", "2.pth", "best.pth"):
        tracked = Path("pt/dmd-synthetic-1111", file).read_bytes()
        assert tracked == Path("pt/plain-synthetic-1111", file).read_bytes()
    [parameters] = RUN.glob("tensorboard/*/hparams.yml")
    assert {"nlevels: 1", "seed: 1111", "KeyEval: Loss"} <= set(parameters.read_text().splitlines())

    (RUN / "metrics.json").unlink()
    assert train("--track", "tensorboard", "--resume", "--epochs", "4") == 0  # the first epochs are shown again, once
    assert_events_agree_with_history(epochs=4)
    assert train("--overwrite") == 0
    assert not (RUN / "tensorboard").exists()


def test_a_tracker_that_fails_is_a_warning(folder, capsys):
    RUN.mkdir(parents=True)
    (RUN / "tensorboard").write_text("in the way")
    assert train("--track", "tensorboard") == 0
    assert capsys.readouterr().out.count("--track tensorboard: stopped, as it failed (") == 1
    assert (RUN / "metrics.json").exists()


def test_a_tracker_that_is_not_installed(folder, capsys):
    missing = set(TRACKERS) - {str(name) for name in get_available_trackers()}
    if not missing:
        pytest.skip("every tracker is installed")
    for name in missing:
        assert train("--track", name) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and f"pip install {name}" in message
    assert not Path("pt").exists()
