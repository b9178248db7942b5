"""Suites: ordinary runs in one table."""

import json
from pathlib import Path

import pandas as pd
import pytest

from config.variations import DEFAULT_SPACE, SUITES, extreme_values, load_search_space, load_suite
from experiments.options import RunOptions
from tests.commands import metrics_of, refused, train
from trainers.evaluate import HEADS

TABLE, PAGE = (
    Path("result/suites/dmd-own-synthetic.csv"),
    Path("result/suites/dmd-own-synthetic.md"),
)


def write_suite(content) -> str:
    Path("own.json").write_text(json.dumps(content))
    return "own.json"


def test_table_contains_metrics_of_runs_and_heads(folder):
    published = [
        {
            "source": "paper",
            "when": {"dataset_name": "synthetic"},
            "rows": {"slow": {"Acc_2": 0.5, "MAE": 1.25}},
        },
        {"source": "elsewhere", "when": {"dataset_name": "mosi"}, "rows": {"slow": {"Acc_2": 0.9}}},
    ]
    suite = {"description": "Two rates.", "rows": {"slow": {"learning_rate": 1e-5}, "as-is": {}}}
    suite |= {
        "published": published,
        "heads": ["output_logit", "logits_l_homo"],
        "modalities": ["lva", "av"],
    }
    assert train("--suite", write_suite(suite), "-s", "1", "2", "--epochs", "1") == 0
    assert (
        json.loads(Path("result/dmd-own-slow-synthetic-1/run.json").read_text())["settings"][
            "learning_rate"
        ]
        == 1e-5
    )
    table = pd.read_csv(TABLE)
    assert table[["row", "seed"]].values.tolist() == [
        ["slow", 1],
        ["slow", 2],
        ["as-is", 1],
        ["as-is", 2],
    ]
    page = " ".join(PAGE.read_text().replace("|", " ").split())
    means = []
    for metric in ("Acc_2", "F1_score", "Acc_7", "MAE"):
        one, two = (metrics_of(f"dmd-own-slow-synthetic-{seed}")[metric] for seed in (1, 2))
        assert table[metric][:2].tolist() == [one, two]
        # by hand it may fall on the other side of a half digit
        deviation = table[metric][:2].std(ddof=0)
        assert deviation == pytest.approx(abs(one - two) / 2)
        means.append(f"{(one + two) / 2:.4f} ± {deviation:.4f}")
    assert f"slow this program {' '.join(means)} slow paper 0.5000 - - 1.2500" in page
    assert "elsewhere" not in page and "audio + vision" in page
    assert "Two rates." in page and "`learning_rate=1e-05`" in page and "rows so far" not in page

    scores = pd.read_csv(TABLE.with_name("dmd-own-synthetic-heads.csv")).set_index(
        ["row", "modalities", "head", "seed"]
    )
    assert len(scores) == 2 * 2 * 2 * 2
    for seed in (1, 2):
        whole, metrics = (
            scores.loc["as-is", "lva", "output_logit", seed],
            metrics_of(f"dmd-own-as-is-synthetic-{seed}"),
        )
        assert [whole[m] for m in ("Acc_2", "MAE")] == pytest.approx(
            [metrics[m] for m in ("Acc_2", "MAE")], abs=1e-4
        )
        # Without text, its head predicts the same for every utterance.
        assert pd.isna(scores.loc["as-is", "av", "logits_l_homo", seed]["Corr"])


def test_suite_resumes_and_never_overwrites_silently(folder, capsys):
    broken = {"rows": {"good": {}, "bad": {"learning_rate": 1e30}}}
    assert train("--suite", write_suite(broken)) == 2
    assert (
        "1 of 2 rows so far" in PAGE.read_text() and "single seed does not rank" in PAGE.read_text()
    )
    for seed in ("1111", "2"):  # the runs exist; the table does
        assert "--overwrite" in refused(capsys, train, "--suite", write_suite(broken), "-s", seed)
    good = Path("pt/dmd-own-good-synthetic-1111/best.pth").stat()
    assert (
        train("--suite", write_suite({"rows": {"good": {}, "better": {"gamma": 0.2}}}), "--resume")
        == 0
    )
    assert Path("pt/dmd-own-good-synthetic-1111/best.pth").stat() == good  # not trained again
    assert len(pd.read_csv(TABLE)) == 2 and "rows so far" not in PAGE.read_text()


@pytest.mark.parametrize("dataset", ["mosi", "mosei", "synthetic"])
def test_built_in_suites_and_search_space_match_the_config(dataset):
    options = RunOptions(dataset_name=dataset)
    for key, distribution in load_search_space(DEFAULT_SPACE).items():
        for value in extreme_values(distribution):
            options.with_overrides(str(DEFAULT_SPACE), {key: value})
    for suite in map(load_suite, SUITES):
        for row, overrides in suite.rows.items():
            options.with_overrides(row, overrides)
        assert (
            suite.description
            and list(suite.rows.values()).count({}) == 1
            and set(suite.heads) <= set(HEADS)
        )


BAD = [
    ({"rows": {"a": {}}, "masks": []}, "masks"),
    ({"rows": {"a": {}, "b": {"gamma": -1}}}, "rows.b: gamma is -1"),
    ({"rows": {"a": {"max_epochs": 2}}}, "command line too"),
    ({"rows": {"a": {}}, "heads": ["logit_c"]}, "logits_c"),
    # more than the data have steps
    ({"rows": {"a": {}, "b": {"conv1d_kernel_size_l": 99}}}, "is 99"),
    ({"rows": {"a": {}, "r" * 60: {}}}, "100"),  # longer than a folder's name may be
]


def test_bad_suite_gives_one_line_before_training(folder, capsys):
    for suite, word in BAD:
        assert word in refused(capsys, train, "--suite", write_suite(suite), "--name", "n" * 50)
    for arguments in (["tabel3"], ["none.json"], ["table3", "--tune", "2"]):
        refused(capsys, train, "--suite", *arguments)
