"""Suites: ordinary runs in one table."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from config import load_config
from config.suite import FOLDER, load_suite
from tests.commands import train
from trainers.heads import HEADS

SHIPPED = sorted(path.stem for path in FOLDER.glob("*.json"))
SEEDS = ("-s", "1", "2")


def write_suite(content, name: str = "own.json") -> str:
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    return name


def lines(path: str) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def metrics_of(run: str) -> dict:
    return json.loads(Path(f"result/{run}/metrics.json").read_text())


def test_the_table_holds_the_metrics_of_ordinary_runs(folder):
    published = [
        {"source": "paper", "when": {"dataset_name": "synthetic"}, "rows": {"slow": {"Acc_2": 0.5, "MAE": 1.25}}},
        {"source": "elsewhere", "when": {"dataset_name": "mosi"}, "rows": {"slow": {"Acc_2": 0.9}}},
    ]
    rows = {"slow": {"learning_rate": 1e-5}, "as-is": {}}
    suite = write_suite({"description": "Two rates.", "rows": rows, "published": published})
    assert train("--suite", suite, *SEEDS) == 0
    assert train("--set", "learning_rate=1e-5", *SEEDS, "--name", "alone") == 0
    table = lines("result/suites/dmd-own-synthetic.csv")
    assert [(line["row"], line["of"]) for line in table] == [
        *(("slow", of) for of in ("seed 1", "seed 2", "mean", "std", "paper")),
        *(("as-is", of) for of in ("seed 1", "seed 2", "mean", "std")),
    ]
    for metric in ("Acc_2", "F1_score", "Acc_7", "MAE", "Corr"):
        values = [metrics_of(f"alone-synthetic-{seed}")[metric] for seed in (1, 2)]
        assert [float(line[metric]) for line in table[:2]] == values
        assert float(table[2][metric]) == pytest.approx(sum(values) / 2)
        assert float(table[3][metric]) == pytest.approx(abs(values[0] - values[1]) / 2)
    assert (table[4]["Acc_2"], table[4]["MAE"], table[4]["Acc_7"]) == ("0.5", "1.25", "")
    page = Path("result/suites/dmd-own-synthetic.md").read_text()
    mae = [metrics_of(f"dmd-own-as-is-synthetic-{seed}")["MAE"] for seed in (1, 2)]
    assert f"{np.mean(mae):.4f} ± {np.std(mae):.4f}" in page
    assert "Two rates." in page and "|  | paper | 0.5000 | - | - | 1.2500 |" in page and "elsewhere" not in page
    assert "`learning_rate=1e-05`" in page and "rows so far" not in page


def test_every_head_with_every_set_of_modalities(folder):
    suite = {"rows": {"one": {}}, "heads": ["output_logit", "logits_l_homo"], "kept": ["lva", "av"]}
    assert train("--suite", write_suite(suite), *SEEDS) == 0
    scores = lines("result/suites/dmd-own-synthetic-heads.csv")
    assert [(s["kept"], s["head"], s["seed"]) for s in scores] == [
        (kept, head, seed) for seed in "12" for kept in ("lva", "av") for head in ("output_logit", "logits_l_homo")
    ]
    for seed in (1, 2):
        [whole] = [s for s in scores if (s["kept"], s["head"], s["seed"]) == ("lva", "output_logit", str(seed))]
        metrics = metrics_of(f"dmd-own-one-synthetic-{seed}")
        assert {m: float(whole[m]) for m in ("Acc_2", "Acc_7", "MAE")} == pytest.approx(
            {m: metrics[m] for m in ("Acc_2", "Acc_7", "MAE")}, abs=1.01e-4
        )
    masked = [s for s in scores if s["kept"] == "av" and s["head"] == "logits_l_homo"]
    assert all(s["Corr"] == "" for s in masked)  # without text, its head says the same of every utterance
    page = Path("result/suites/dmd-own-synthetic.md").read_text()
    assert "| audio + vision |" in page
    assert page.index("Each output by itself") < page.index("some modalities only")


def test_a_suite_goes_on_where_it_stopped(folder, capsys):
    broken = {"rows": {"good": {}, "bad": {"learning_rate": 1e30}}}
    assert train("--suite", write_suite(broken)) == 2
    page = Path("result/suites/dmd-own-synthetic.md").read_text()
    assert "**1 of 2 rows so far.**" in page and "ranks nothing" in page
    assert train("--suite", write_suite(broken)) == 2
    assert "a run of this name is there" in capsys.readouterr().err
    good = Path("pt/dmd-own-good-synthetic-1111/best.pth").stat()
    assert train("--suite", write_suite({"rows": {"good": {}, "better": {"gamma": 0.2}}}), "--resume") == 0
    assert Path("pt/dmd-own-good-synthetic-1111/best.pth").stat() == good  # not trained again
    assert len(lines("result/suites/dmd-own-synthetic.csv")) == 6
    assert "rows so far" not in Path("result/suites/dmd-own-synthetic.md").read_text()


def test_a_table_is_not_replaced_silently(folder, capsys):
    suite = write_suite({"rows": {"one": {}}})
    assert train("--suite", suite, "-s", "1", "--epochs", "1") == 0
    before = Path("result/suites/dmd-own-synthetic.csv").read_text()
    assert train("--suite", suite, "-s", "2", "--epochs", "1") == 2
    assert "a table of this suite is there" in capsys.readouterr().err
    assert Path("result/suites/dmd-own-synthetic.csv").read_text() == before


def test_a_row_that_does_not_fit_the_data_is_refused_before_the_first_trains(folder, capsys):
    suite = write_suite({"rows": {"good": {}, "bad": {"conv1d_kernel_size_l": 99}}})
    assert train("--suite", suite) == 2
    assert "conv1d_kernel_size_l is 99" in capsys.readouterr().err and not Path("pt").exists()


def test_names_that_are_too_long_are_refused_before_the_first_trains(folder, capsys):
    suite = write_suite({"rows": {"short": {}, "r" * 60: {}}})
    assert train("--suite", suite, "--name", "n" * 50) == 2
    assert "take at most 100, a suite's name and row included" in capsys.readouterr().err and not Path("pt").exists()


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("dataset", ["mosi", "mosei", "synthetic"])
def test_the_shipped_suites_fit_the_shipped_config(name, dataset):
    suite = load_suite(name, {}, HEADS, lambda overrides: load_config("dmd", dataset, overrides=overrides))
    assert suite.description and sum(not overrides for overrides in suite.rows.values()) == 1


def test_the_shipped_suites():
    assert SHIPPED == ["heads", "losses", "table3"]
    suite = load_suite("heads", {}, HEADS, lambda overrides: None)
    assert suite.heads == list(HEADS) and len(suite.kept) == 7 and "".join(suite.kept).count("l") == 4


ROW = {"a": {}}
BAD = {
    "no such suite": ("tabel3", "there is no suite 'tabel3'. Name one of heads, losses, table3"),
    "no such file": ("none.json", "no such suite file. Name another, or one of heads, losses, table3"),
    "a path": ("../suites/table3", "there is no suite"),
    "not json": ("{", "not a readable JSON"),
    "a list": ([], "expected an object with 'rows'"),
    "no rows": ({"rows": {}}, "rows: "),
    "misspelt section": ({"rowz": ROW}, "rows: Field required"),
    "surplus section": ({"rows": ROW, "masks": []}, "masks: Extra inputs"),
    "row without settings": ({"rows": {"a": 3}}, "rows.a: "),
    "row that is no file name": ({"rows": {"a/b": {}}}, "should match pattern"),
    "unknown key": ({"rows": {"a": {"gama": 1}}}, "rows.a of own.json: unknown key 'gama'; the nearest known one is"),
    "unknown switch": ({"rows": {"a": {"ort": "none"}}}, 'rows.a: ort is "none"'),
    "later row": ({"rows": {"a": {}, "b": {"gamma": -1}}}, "rows.b: gamma is -1"),
    "impossible together": ({"rows": {"a": {"feature_decoupling": False}}}, "rows.a: "),
    "set twice": ({"rows": {"a": {"nlevels": 2}}}, "rows.a sets nlevels, and the command line too"),
    "epochs set twice": ({"rows": {"a": {"max_epochs": 2}}}, "rows.a sets max_epochs, and the command line too"),
    "unknown head": ({"rows": ROW, "heads": ["logit_c"]}, "unknown head 'logit_c'; the nearest"),
    "unknown modality": ({"rows": ROW, "heads": ["logits_c"], "kept": ["lx"]}, '"lx" is no set of modalities'),
    "kept for nothing": ({"rows": ROW, "kept": ["l"]}, "no heads are named"),
    "published row": ({"rows": ROW, "published": [{"source": "x", "rows": {"b": {}}}]}, "unknown row 'b'"),
    "published metric": ({"rows": ROW, "published": [{"source": "x", "rows": {"a": {"Acc": 1.0}}}]}, "unknown metric"),
    "published when": ({"rows": ROW, "published": [{"source": "x", "when": {"bert": 1}, "rows": {}}]}, "key 'bert'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_suite_is_refused_before_anything_is_written(folder, capsys, case):
    suite, message = BAD[case]
    if not isinstance(suite, str) or suite == "{":
        suite = write_suite(suite)
    assert train("--suite", suite, "--epochs", "1") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("pt").exists() and not Path("result").exists()


def test_a_suite_is_no_sweep(folder, capsys):
    assert train("--suite", "table3", "--tune", "2") == 2
    assert "give one of them" in capsys.readouterr().err
