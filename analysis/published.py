"""Published runs of DMD on the published features, for comparison with a run.

published_results.csv contains the results of each run, with their source.
published_runs.csv contains the epochs of four of them, with the columns of history.csv.
docs/results.md describes both.
"""

from pathlib import Path

import pandas as pd

from config.schema import DMDConfig
from experiments.run_folder import RunFolder

RESULTS_FILE = Path(__file__).with_name("published_results.csv")
RUNS_FILE = Path(__file__).with_name("published_runs.csv")
SHAPES = {"mosi": [768, 5, 20], "mosei": [768, 74, 35]}  # feature_dims with bert-base
FIRST_EPOCHS = (1, 5)  # their total_loss is compared, and that of the last epoch
# If one of these settings has another value, total_loss is the sum of other terms.
LOSS_SETTINGS = (
    "ort",
    "margin",
    "homo_repr",
    "hetero_repr",
    "gd_prior",
    "lambda_decoupling",
    "lambda_distillation",
    "gamma",
    "recon_weight",
    "cycle_weight",
    "margin_weight",
    "ort_weight",
    "homo_weight",
    "hetero_weight",
    "margin_slope",
    "homo_gd_prior",
    "hetero_gd_prior",
    "gd_prior_temperature",
    "gd_edge_temperature",
    "gd_reg_weight",
    "gd_repr_weight",
)


def published_results(dataset: str) -> pd.DataFrame:
    """Read the TEST results of published runs.

    Args:
        dataset: The name of a data set, such as "mosi".

    Returns:
        The rows of published_results.csv, and `is_released`: whether it is a run of the released
        code, unmodified or with patches for current versions of PyTorch.
    """
    rows = pd.read_csv(RESULTS_FILE, dtype={"seed": str})
    rows["is_released"] = rows["code"].str.startswith("released")
    return rows[rows["dataset"] == dataset]


def published_runs(settings: dict) -> dict[str, pd.DataFrame]:
    """Find the published runs that a run can be compared with.

    Args:
        settings: The resolved settings of the run.

    Returns:
        Their histories by name; empty if data set, alignment, encoder or widths differ. If the run
        minimizes another objective than the release, `loss/total` is NaN.
    """
    dataset = settings["dataset_name"]
    with_bert = settings["use_bert"] and settings["transformers"] == "bert"
    if not (with_bert and settings["need_data_aligned"]):
        return {}
    if settings["feature_dims"] != SHAPES.get(dataset):
        return {}
    rows = pd.read_csv(RUNS_FILE)
    rows = rows[rows["dataset"] == dataset]
    if not _has_released_loss(settings):
        rows = rows.assign(**{"loss/total": float("nan")})
    return dict(list(rows.groupby("run", sort=False)))


def _has_released_loss(settings: dict) -> bool:
    """Whether total_loss is the sum of the same terms, equally weighted, as in the release."""
    release = DMDConfig(featurePath="-").model_dump()
    return all(settings.get(key, release[key]) == release[key] for key in LOSS_SETTINGS)


def ranges_by_epoch(dataset: str, histories: dict[str, pd.DataFrame], column: str) -> pd.DataFrame:
    """Find the range of a column over the runs of the released code.

    Args:
        dataset: The data set of the runs.
        histories: Histories of published runs by name; those of ports are not counted.
        column: A column of history.csv.

    Returns:
        `low` and `high` by epoch, for the epochs that at least two runs have.
    """
    results = published_results(dataset)
    released = set(results.loc[results["is_released"], "run"])
    columns = []
    for name, history in histories.items():
        if name in released:
            columns.append(history.set_index("epoch")[column])
    if not columns:
        return pd.DataFrame({"low": [], "high": []})
    values = pd.concat(columns, axis=1).sort_index().dropna(thresh=2)
    return pd.DataFrame({"low": values.min(axis=1), "high": values.max(axis=1)})


def compare_with_published(run: RunFolder) -> str:
    """Report in one line whether a run is inside the range of the published ones.

    Args:
        run: A run with at least one epoch.

    Returns:
        TEST MAE and Acc_2 of its best epoch against the results of the released code, and its
        total_loss of epochs 1, 5 and the last one against the range of `ranges_by_epoch`; "last" is
        the last epoch of the run that has a range. "" if no published run is comparable.
    """
    settings = run.run_config["settings"]
    histories = published_runs(settings)
    if not histories:
        return ""
    history = run.history.set_index("epoch")
    best = history.loc[run.best_epoch]
    results = published_results(settings["dataset_name"]).dropna(subset=["MAE", "Acc_2"])
    released = results[results["is_released"]]
    if released.empty:
        return _compare_with_ports(settings["dataset_name"], best, results)

    mae = _place(best["test/MAE"], released["MAE"].min(), released["MAE"].max())
    acc_2 = _place(best["test/Acc_2"], released["Acc_2"].min(), released["Acc_2"].max())
    line = (
        f"Against published runs of the released code: TEST MAE {mae} and Acc_2 {acc_2} "
        f"({len(released)} runs)"
    )
    ranges = ranges_by_epoch(settings["dataset_name"], histories, "loss/total")
    losses = _place_losses(history["loss/total"], ranges)
    if losses:
        with_history = released[released["run"].isin(histories)]
        seeds = ", ".join(with_history["seed"].unique())
        line += f"; total_loss {losses} (up to {len(with_history)} runs, seed {seeds})"
    return f"{line}. See docs/results.md."


def _place_losses(losses: pd.Series, ranges: pd.DataFrame) -> str:
    """The total losses of the first epochs and of the last one that has a range."""
    epochs = ranges.index.intersection(losses.index)
    parts = []
    for epoch in epochs:
        if epoch in FIRST_EPOCHS or epoch == epochs[-1]:
            low, high = ranges.loc[epoch, ["low", "high"]]
            parts.append(f"{_place(losses[epoch], low, high)} in epoch {epoch}")
    return ", ".join(parts)


def _place(value: float, low: float, high: float) -> str:
    """A value, and whether it is in a range; four digits, as the published values have."""
    where = "inside" if low <= round(value, 4) <= high else "outside"
    return f"{value:.4f} {where} [{low:.4f}, {high:.4f}]"


def _compare_with_ports(dataset: str, best: pd.Series, results: pd.DataFrame) -> str:
    """The line for a data set without a published run of the released code."""
    line = (
        f"No published run of the released code on {dataset} is known. TEST of this run: "
        f"MAE {best['test/MAE']:.4f}, Acc_2 {best['test/Acc_2']:.4f}"
    )
    for row in results.itertuples():
        line += f"; of {row.run} ({row.code}): MAE {row.MAE:.4f}, Acc_2 {row.Acc_2:.4f}"
    return f"{line}. See docs/results.md."
