"""The benchmark runs, and its variants agree."""

import pytest
import torch

from benchmarks import step


def read_table(printed: str) -> list[dict[str, str]]:
    """The rows of the Markdown table in a text."""
    lines = []
    for line in printed.splitlines():
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.split("|")[1:-1]])
    header = lines[0]
    return [dict(zip(header, cells, strict=True)) for cells in lines[2:]]


def test_step_prints_machine_times_and_equal_digits(capsys):
    step.main(["--cases", "aligned", "--batch-size", "2", "--seconds", "0"])
    printed = capsys.readouterr().out
    assert f"torch {torch.__version__}" in printed and "threads" in printed
    rows = read_table(printed)
    expected = [("train", "plain"), ("train", "fast"), ("eval", "plain"), ("eval", "fast")]
    assert [(row["mode"], row["variant"]) for row in rows] == expected
    for row in rows:
        assert float(row["median s"]) > 0
        assert float(row["ratio"]) > 0
        assert float(row["difference"]) < 1e-5
    assert [row["ratio"] for row in rows if row["variant"] == "plain"] == ["1.00", "1.00"]


@pytest.mark.slow
def test_step_runs_with_bert_and_in_bf16(capsys):
    command = ["--cases", "bert", "--batch-size", "2", "--seconds", "0", "--variants"]
    step.main([*command, "plain", "fast", "bf16"])
    differences = [float(row["difference"]) for row in read_table(capsys.readouterr().out)]
    plain, fast, bf16 = differences[:3]
    assert plain == 0 and fast < 1e-5 < bf16 < 1


def test_compared_gradients_are_those_of_one_step():
    args = step.load_case(step.CASES["aligned"], batch_size=2, bert_folder="")
    batch = step.make_batch(args, torch.device("cpu"))
    runner = step.Runner(args, step.VARIANTS["plain"], batch, torch.device("cpu"))
    runner.model.eval()
    once = runner.gradients()
    runner.train()
    assert torch.equal(runner.gradients(), once)
