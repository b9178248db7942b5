"""The benchmarks run, and measure what they say."""

import pytest
import torch

from benchmarks import epoch, step
from benchmarks.measure import operations, peak_memory

CPU = torch.device("cpu")


def cells(printed: str) -> list[dict[str, str]]:
    """The rows of the Markdown table in the text."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_operations_and_peak_memory():
    x = torch.ones(1000)
    assert operations(lambda: x.add(1).mul(2), CPU).aten >= 2
    assert operations(lambda: None, CPU).aten == 0
    peak = peak_memory(lambda: torch.ones(2**25).sum(), CPU)
    assert peak != peak or 120 <= peak < 160  # NaN where the system does not tell


@pytest.mark.slow
def test_step(capsys):
    small = ["--datasets", "mosi", "--layouts", "aligned", "--bert", "no", "--batch-sizes", "3"]
    step.main([*small, "--seconds", "0", "--paths", "plain", "fast"])
    rows = cells(capsys.readouterr().out)
    assert [(row["case"].split(", ")[3], row["path"]) for row in rows] == [
        (mode, path) for mode in ("train", "eval") for path in ("plain", "fast")
    ]
    assert all(float(row["median s"]) > 0 and int(row["ATen"]) > 1000 for row in rows)


def test_epoch(capsys):
    epoch.main(["--utterances", "3", "1", "1", "--epochs", "1"])
    plain, fast = cells(capsys.readouterr().out)
    assert (plain["path"], fast["path"]) == ("plain", "fast")
    assert all(float(row["epoch s"]) > 0 for row in (plain, fast))
