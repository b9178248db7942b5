"""Trackers receive the rows of history.csv, and their errors do not affect a run."""

from pathlib import Path

import pytest
from accelerate.tracking import get_available_trackers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.options import TRACKERS
from tests.commands import rows_of, train

RUN = Path("result/dmd-synthetic-1111")


def assert_events_agree_with_history(epochs: int) -> None:
    events = EventAccumulator(str(RUN / "tensorboard"))
    events.Reload()
    rows = rows_of(RUN / "history.csv")
    assert len(rows) == epochs
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"epoch"}
    for name in events.Tags()["scalars"]:
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in shown] == [int(row["epoch"]) for row in rows]
        expected = [float(row[name]) for row in rows]
        # as float32
        assert [value for _, value in shown] == pytest.approx(expected, rel=1e-6, nan_ok=True), name


def test_events_match_history_and_do_not_change_results(folder, trained_once):
    assert train("--track", "tensorboard") == 0
    assert_events_agree_with_history(epochs=2)
    for file in ("1.pth", "2.pth", "best.pth"):
        tracked = Path("pt/dmd-synthetic-1111", file).read_bytes()
        assert tracked == (trained_once / "pt/dmd-synthetic-1111" / file).read_bytes()
    [parameters] = RUN.glob("tensorboard/*/hparams.yml")
    assert {"nlevels: 1", "seed: 1111", "KeyEval: Loss"} <= set(parameters.read_text().splitlines())

    # the first epochs are shown again, once
    assert train("--track", "tensorboard", "--resume", "--epochs", "3") == 0
    assert_events_agree_with_history(epochs=3)
    assert train("--overwrite", "--epochs", "1") == 0
    assert not list((RUN / "tensorboard").rglob("events.*"))


def test_failing_or_missing_trackers_give_warnings(trained, capsys):
    (RUN / "tensorboard").write_text("in the way")
    missing = sorted(set(TRACKERS) - {str(name) for name in get_available_trackers()})
    assert train("--track", "tensorboard", *missing, "--overwrite") == 0
    assert capsys.readouterr().out.count("stopped, as it failed (") == 1 + len(missing)
    assert (RUN / "metrics.json").exists() and (RUN / "tensorboard").read_text() == "in the way"
