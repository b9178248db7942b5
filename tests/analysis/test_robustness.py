"""Scores with missing steps and missing modalities."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from easydict import EasyDict

import run
from analysis import figures, robustness
from analysis.robustness import (
    RATES,
    SUBSETS,
    Scoring,
    choose_steps,
    load_token_ids,
    removable_steps,
    remove_steps,
)
from analysis.tables import SCORES, mean_scores, read_scorings
from dataset.features import Split
from experiments.restore import load_run_settings, restore
from experiments.run_folder import RunFolder
from tests.commands import ROOT, SMALL, call, refused, train, write_pickle
from trainers.evaluate import inspect
from utils.errors import RunError

SEEDS = (1, 2)
RUNS = [f"result/dmd-synthetic-{seed}" for seed in SEEDS]
FIRST = Path(RUNS[0])
CSV = FIRST / "robustness.csv"
WRITTEN = (
    CSV,
    FIRST / "figures/robustness.png",
    FIRST / "figures/robustness.svg",
    FIRST / "report.html",
)
ARGUMENTS = [*RUNS, "--draws", "2"]
BERT = EasyDict(use_bert=True, pretrained="dataset/synthetic_bert", transformers="bert")
UNKNOWN, CLS, SEP = 1, 2, 3  # of dataset/synthetic_bert
SPLIT_FIELDS = {"text": "text_bert", "audio": "audio", "vision": "vision"}


@pytest.fixture(scope="module")
def scored_once(make_folder) -> Path:
    """A folder with a run of two seeds, which the command has scored."""
    with contextlib.chdir(folder := make_folder()):
        assert train("-s", *map(str, SEEDS)) == 0
        assert call(robustness, *ARGUMENTS) == 0
    return folder


@pytest.fixture
def scored(scored_once, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, as the working folder."""
    shutil.copytree(scored_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def split(corpus) -> Split:
    """The test split of the small corpus."""
    content = corpus["test"]
    arrays = {name: np.array(content[field]) for name, field in SPLIT_FIELDS.items()}
    ids = list(content["id"])
    return Split(**arrays, labels=content["regression_labels"], ids=ids, raw_text=ids)


def whole(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The rows of a seed with all modalities and nothing removed."""
    return table[(table["rate"] == 0) & (table["modalities"] == "lva") & (table["seed"] == seed)]


def test_rate_0_equals_metrics_json(scored):
    table = pd.read_csv(CSV)
    for seed, folder in zip(SEEDS, RUNS, strict=True):
        metrics = json.loads(Path(folder, "metrics.json").read_text())
        (row,) = whole(table, seed).to_dict("records")
        assert {name: row[name] for name in SCORES} == {name: metrics[name] for name in SCORES}


def test_table_has_a_row_for_each_scoring(scored):
    table = pd.read_csv(CSV)
    assert list(table) == ["kind", "rate", "modalities", "draw", "seed", *SCORES]
    expected = []
    for seed in SEEDS:
        expected.append((0.0, "lva", 0, seed))
        for rate in RATES:
            expected += [(rate, "lva", 1, seed), (rate, "lva", 2, seed)]
        for letters in SUBSETS:
            expected.append((0.0, letters, 0, seed))
    rows = table[["rate", "modalities", "draw", "seed"]].itertuples(index=False, name=None)
    assert list(rows) == expected
    assert set(table["kind"]) == {"random"}


@pytest.mark.slow
def test_same_command_writes_the_same_bytes(scored):
    before = [path.read_bytes() for path in WRITTEN]
    for path in WRITTEN:
        path.unlink()
    assert call(robustness, *ARGUMENTS, "--output", "copy/table.csv") == 0
    assert [path.read_bytes() for path in WRITTEN] == before
    assert Path("copy/table.csv").read_bytes() == before[0]


@pytest.mark.slow
def test_fewer_draws_are_the_first_of_more_draws(scored):
    both = pd.read_csv(CSV)
    assert call(robustness, RUNS[1], "--draws", "1", "--output", "one.csv") == 0
    expected = both[(both["seed"] == 2) & (both["draw"] < 2)].reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv("one.csv"), expected, check_exact=True)


def test_subsets_score_as_the_output_logit_of_suites(scored):
    table = pd.read_csv(CSV)
    folder = RunFolder(FIRST)
    device = torch.device("cpu")
    loaded = restore(folder.best_file, load_run_settings(folder.run_config), "test", device)
    for letters in SUBSETS:
        expected = inspect(loaded.model, loaded.loader, device, modalities=letters).head_metrics()
        (row,) = table[(table["modalities"] == letters) & (table["seed"] == 1)].to_dict("records")
        for name, value in expected["output_logit"].items():
            assert row[name] == pytest.approx(value, abs=0, nan_ok=True), (letters, name)


def test_area_is_the_mean_of_a_curve_over_its_rates():
    rows = []
    for rate in (0.0, *RATES):
        for draw, shift in ((1, -0.5), (2, 0.5)):
            values = dict.fromkeys(SCORES, 2 * rate + shift)
            rows.append({"rate": rate, "modalities": "lva", "draw": draw, "seed": 1, **values})
    rows.append({**rows[0], "modalities": "la", "Corr": float("nan")})
    table = mean_scores(pd.DataFrame(rows))
    assert list(table.index[:2]) == ["rate 0.0", "rate 0.1"]
    assert table.loc["rate 0.3", "MAE"] == pytest.approx(0.6)
    assert table.loc["area", "MAE"] == pytest.approx(0.9)
    assert table.loc["text + audio", "MAE"] == -0.5
    assert np.isnan(table.loc["text + audio", "Corr"])


@pytest.mark.parametrize("kind", ["random", "span"])
@pytest.mark.parametrize("rate", RATES)
def test_given_share_is_removed_and_padding_is_unchanged(split, kind, rate):
    tokens = load_token_ids(BERT)
    before = removable_steps(split, tokens)
    removed = remove_steps(split, Scoring(rate, draw=1), kind, tokens)
    ids, new_ids = split.text[:, 0], removed.text[:, 0]
    is_special = np.isin(ids, (CLS, SEP)) | (split.text[:, 1] == 0)
    assert (before["l"] == ~is_special).all()
    assert (new_ids[is_special] == ids[is_special]).all()
    assert (removed.text[:, 1:] == split.text[:, 1:]).all()  # masks and segments
    gone = {
        "l": new_ids != ids,
        "a": (removed.audio == 0).all(axis=2) & before["a"],
        "v": (removed.vision == 0).all(axis=2) & before["v"],
    }
    assert (new_ids[gone["l"]] == UNKNOWN).all()
    for m, steps in gone.items():
        available = before[m].sum(axis=1)
        assert (np.abs(steps.sum(axis=1) - rate * available) <= 0.5 + 1e-9).all(), m
    for name, m in (("audio", "a"), ("vision", "v")):
        kept = ~gone[m]
        assert (getattr(removed, name)[kept] == getattr(split, name)[kept]).all()
    if rate == 0.5:  # independently in each modality, of which audio and vision have equal steps
        assert (gone["a"] != gone["v"]).any()


@pytest.mark.parametrize("kind", ["random", "span"])
def test_steps_of_a_lower_rate_are_among_those_of_a_higher_one(kind):
    removable = np.random.default_rng(0).random((50, 40)) < 0.8
    earlier = np.zeros_like(removable)
    for rate in (*RATES, 1.0):
        chosen = choose_steps(removable, rate, kind, np.random.default_rng(1))
        assert not (earlier & ~chosen).any()
        earlier = chosen
    assert (earlier == removable).all()


@pytest.mark.parametrize("rate", RATES)
def test_span_is_contiguous(split, rate):
    removable = removable_steps(split, load_token_ids(BERT))
    for m, steps in removable.items():
        chosen = choose_steps(steps, rate, "span", np.random.default_rng(3))
        for row, available in zip(chosen, steps, strict=True):
            places = np.flatnonzero(row[available])
            assert len(places) == 0 or np.ptp(places) == len(places) - 1, m


def test_utterance_without_real_steps_is_unchanged(split):
    split.text[0, :, 2:] = 0
    split.text[0, 0, 1] = SEP
    split.audio[0] = 0
    removed = remove_steps(split, Scoring(0.9, draw=1), "span", load_token_ids(BERT))
    assert (removed.text[0] == split.text[0]).all() and (removed.audio[0] == 0).all()


def test_text_features_become_zeros(folder, corpus):
    without_bert = ["use_bert=false", "feature_dims=[300,5,20]"]
    assert call(run, "-d", "synthetic", *SMALL, "--set", *without_bert) == 0
    (result,) = Path("result").glob("dmd-*")
    assert call(robustness, str(result), "--kind", "span", "--draws", "1") == 0
    table = pd.read_csv(result / "robustness.csv")
    metrics = json.loads((result / "metrics.json").read_text())
    assert whole(table, 1111)["MAE"].item() == metrics["MAE"]
    fields = corpus["test"]
    split = Split(
        text=fields["text"].copy(),
        audio=fields["audio"],
        vision=fields["vision"],
        labels=fields["regression_labels"],
        ids=[],
        raw_text=[],
    )
    removed = remove_steps(split, Scoring(0.5, draw=1), "random", None)
    gone = (removed.text == 0).all(axis=2) & (split.text != 0).any(axis=2)
    available = (split.text != 0).any(axis=2).sum(axis=1)
    assert (np.abs(gone.sum(axis=1) - available / 2) <= 0.5).all()


def test_report_has_figure_and_table_and_keeps_other_pictures(scored):
    page = (FIRST / "report.html").read_text()
    table = mean_scores(pd.read_csv(CSV))
    assert page.count("<img ") == 1 and "Not drawn yet: training, edges" in page
    assert f"<td>{table.loc['area', 'MAE']:.4f}</td>" in page
    assert "<td>text + audio</td>" in page
    assert "draws: 2, seeds: 2" in (FIRST / "figures/robustness.svg").read_text()

    figures.draw(RunFolder(FIRST), None)  # draws training and edges too
    page = (FIRST / "report.html").read_text()
    assert page.count("<img ") == 3 and "Missing modalities" in page
    assert call(robustness, RUNS[0], "--draws", "1") == 0
    page = (FIRST / "report.html").read_text()
    assert page.count("<img ") == 3 and "Not drawn yet: features, predictions, heads." in page


def test_overwritten_run_loses_its_robustness(scored):
    assert train("-s", "1", "--overwrite") == 0
    assert not any(path.exists() for path in WRITTEN)


def test_checkpoints_in_another_folder_are_found(scored):
    shutil.move("pt", "elsewhere")
    assert call(robustness, RUNS[1], "--draws", "1", "--checkpoint-dir", "elsewhere") == 0
    assert Path(RUNS[1], "robustness.csv").exists()


@pytest.mark.slow
def test_scores_that_differ_from_the_run_give_a_warning(scored, capsys):
    path = FIRST / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({**metrics, "MAE": 9.5}))
    assert call(robustness, RUNS[0], "--draws", "1") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Warning: ") and "9.5 in metrics.json" in line


def configure(folder: str, **settings) -> None:
    """Change settings in a run.json."""
    path = Path(folder, "run.json")
    content = json.loads(path.read_text())
    content["settings"].update(settings)
    path.write_text(json.dumps(content))


def spoil_weights() -> None:
    """Make the last seed fail after the first one is scored."""
    path = "pt/dmd-synthetic-2/best.pth"
    weights = torch.load(path)
    weights["out_layer.bias"][:] = float("nan")
    Path(path).unlink()  # a link to the weights of an epoch
    torch.save(weights, path)


def remove_unknown_token() -> None:
    """Make the text encoder of both runs one whose tokenizer has no unknown token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(ROOT / "dataset/synthetic_bert", "bert")
    Path("bert/vocab.txt").unlink()
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained("bert")
    for seed in SEEDS:
        configure(f"result/dmd-synthetic-{seed}", pretrained="bert")
        configure(f"pt/dmd-synthetic-{seed}", pretrained="bert")


def damage_data() -> None:
    write_pickle(Path("dataset/SYNTHETIC/aligned_50.pkl"), {"test": {}})


BAD = {
    "no run": (lambda: None, ["result/normal"], "result/normal/run.json: missing"),
    "no checkpoint": (lambda: Path("pt/dmd-synthetic-2/best.pth").unlink(), RUNS, "best.pth"),
    "checkpoint of another run": (
        lambda: configure("pt/dmd-synthetic-2", gamma=0.5),
        RUNS,
        "best.pth: belongs to a run with other settings",
    ),
    "weights that are not finite": (spoil_weights, RUNS, "are not finite"),
    "other settings": (lambda: configure(RUNS[1], gamma=0.5), RUNS, "dmd-synthetic-2 has gamma"),
    "a seed twice": (lambda: None, [RUNS[0], RUNS[0]], "name each seed once"),
    "no history": (lambda: (FIRST / "history.csv").unlink(), RUNS, "history.csv"),
    "no unknown token": (remove_unknown_token, RUNS, "has no unknown token"),
    "damaged data": (damage_data, RUNS, "aligned_50.pkl"),
    "no draws": (lambda: None, [*RUNS, "--draws", "0"], "--draws"),
    "unknown kind": (lambda: None, [*RUNS, "--kind", "block"], "--kind"),
    "unknown device": (lambda: None, [*RUNS, "--device", "tpu"], "--device"),
    "output is a folder": (lambda: None, [*RUNS, "--output", "result"], "--output"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_line_and_writes_nothing(case, scored, capsys):
    damage, arguments, word = BAD[case]
    damage()
    assert word in refused(capsys, robustness, *arguments)


def test_damaged_table_is_rejected(tmp_path):
    path = tmp_path / "robustness.csv"
    path.write_text("kind,rate\nrandom,0.1\n")
    with pytest.raises(RunError, match="robustness.csv: cannot be read"):
        read_scorings(path)
