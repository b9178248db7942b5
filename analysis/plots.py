"""Draw the figures of a run, readable without color.

Figures are created without pyplot, so no display is needed and no figure stays open.
"""

import io
import textwrap
from dataclasses import dataclass

import matplotlib.style
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import ConfusionMatrixDisplay

from analysis.published import published_results, published_runs, ranges_by_epoch
from analysis.tables import ALL_MODALITIES
from dataset.features import SPLITS
from experiments.run_folder import RunFolder
from models.distillation import EDGE_NAMES
from models.dmd import MODALITIES, STACK_ORDER
from trainers.evaluate import Inspection
from utils.metrics import LOWER_IS_BETTER, regression_metrics, sentiment_classes

# One style for all figures. Color alone, or line style or marker alone, distinguishes the lines.
LINES = cycler(
    color=["#0072b2", "#d55e00", "#000000", "#cc79a7", "#009e73", "#8a6d00"],
    linestyle=["-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1))],
    marker=["o", "s", "^", "D", "v", "P"],
)
PUBLISHED_LINES = ("-", ":", (0, (9, 2)), "-.")  # different from the line of the best epoch
STYLE = {
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.88",
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markerfacecolor": "white",
    "axes.prop_cycle": LINES,
    "text.parse_math": False,  # a run's name may contain a $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dmd",  # the same figure gives the same bytes
    "figure.constrained_layout.use": True,
}
# Without a date, the bytes are reproducible.
METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
MODALITY_MARKS = {"l": ("#0072b2", "o"), "v": ("#d55e00", "^"), "a": ("#009e73", "s")}
GRAPHS = {
    "homo": "Homogeneous graph (common features)",
    "hetero": "Heterogeneous graph (specific features)",
}
KINDS = {"random": "at random", "span": "as one span per modality"}  # of analysis.robustness
HEAD_LABELS = {
    "output_logit": "all, fused",
    "logits_c": "common, fused",
    "logits_l_homo": "homo text",
    "logits_l_hetero": "hetero text",
    "logits_v_homo": "homo vision",
    "logits_v_hetero": "hetero vision",
    "logits_a_homo": "homo audio",
    "logits_a_hetero": "hetero audio",
}


@dataclass(frozen=True)
class Panel:
    """A diagram of columns of history.csv over the epochs.

    Attributes:
        title: What it shows.
        unit: Label of the y axis.
        lines: A column of the history for each label of a line.
    """

    title: str
    unit: str
    lines: dict[str, str]


def draw_all(run: RunFolder, inspection: Inspection | None) -> dict[str, bytes]:
    """Draw the figures of a run, in the same style whatever a user's matplotlibrc sets.

    Args:
        run: The run.
        inspection: Model outputs on test; None leaves only the figures of history.csv.

    Returns:
        PNG and SVG files by name, such as training.svg. The same run gives the same bytes.
    """
    files = {}
    with matplotlib.style.context(["default", STYLE]):
        figures = {"training": training_curves(run), "edges": edge_curves(run)}
        if inspection is not None:
            figures["features"] = feature_map(run.name, inspection)
            figures["predictions"] = predictions(run.name, inspection)
            figures["heads"] = head_bars(run.name, inspection)
        for name, figure in figures.items():
            files.update(_to_files(name, figure))
    return files


def _to_files(name: str, figure: Figure) -> dict[str, bytes]:
    """The PNG and the SVG file of a figure, by their names."""
    files = {}
    for kind, metadata in METADATA.items():
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)
        files[f"{name}.{kind}"] = file.getvalue()
    return files


def _figure(title: str, height: float) -> Figure:
    """An empty figure with a title, `height` inches high."""
    figure = Figure(figsize=(6.4, height))
    figure.suptitle(textwrap.fill(title, 60), fontsize=11, fontweight="bold")
    return figure


def training_curves(run: RunFolder) -> Figure:
    """Draw total loss, Loss, MAE and Acc_2 over the epochs, a line for each split.

    Grey lines are published runs on test, if any have these settings. The grey band is the range
    of runs of the released code, in epochs that at least two of them have.
    """
    panels = [
        Panel(
            "Objective: total loss, mean over the batches of train",
            "total loss",
            {"train": "loss/total"},
        ),
        Panel("Loss: mean over batches of the MAE", "Loss (sentiment points)", _splits("Loss")),
        Panel(
            "MAE: mean distance of predicted and true sentiment",
            "MAE (sentiment points)",
            _splits("MAE"),
        ),
        Panel("Acc_2: positive against negative", "Acc_2 (share of utterances)", _splits("Acc_2")),
    ]
    settings = run.run_config["settings"]
    figure = _figure(f"Training of {run.name}", 9.2)
    axes = figure.subplots(len(panels), 1, sharex=True)
    histories = published_runs(settings)
    _draw_panels(axes, panels, run)
    if histories:
        for ax, panel in zip(axes, panels, strict=True):
            last_column = list(panel.lines.values())[-1]
            _draw_published(ax, last_column, settings["dataset_name"], histories)
    title = f"The best epoch is chosen by {settings['KeyEval']} on valid"
    _add_legend(figure, axes, title, ncols=3 if histories else 4)
    return figure


def _splits(metric: str) -> dict[str, str]:
    return {split: f"{split}/{metric}" for split in SPLITS}


def edge_curves(run: RunFolder) -> Figure:
    """Draw the six edges of both graphs over the epochs."""
    panels = []
    for graph, title in GRAPHS.items():
        lines = {edge.replace("2", "→"): f"edge/{graph}_{edge}" for edge in EDGE_NAMES}
        panels.append(Panel(title, "edge weight (six sum to 1)", lines))
    figure = _figure(f"Who teaches whom: graph edges of {run.name}", 7.4)
    axes = figure.subplots(len(panels), 1, sharex=True, sharey=True)
    _draw_panels(axes, panels, run)
    legend = "teacher→student; L text, V vision, A audio; mean over the train split"
    _add_legend(figure, axes, legend)
    return figure


def _draw_panels(axes: np.ndarray, panels: list[Panel], run: RunFolder) -> None:
    """Draw one panel on each axis."""
    epochs = run.history["epoch"]
    for ax, panel in zip(axes, panels, strict=True):
        columns = list(panel.lines.values())
        ax.plot(
            epochs,
            run.history[columns],
            label=list(panel.lines),
            markevery=max(1, len(epochs) // 12),
        )
        ax.axvline(
            run.best_epoch,
            color="0.45",
            linewidth=1,
            linestyle="--",
            zorder=1,
            label=f"best epoch {run.best_epoch}",
        )
        ax.set(title=panel.title, ylabel=panel.unit)
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _draw_published(
    ax: Axes, column: str, dataset: str, histories: dict[str, pd.DataFrame]
) -> None:
    """Draw a column of published runs in grey, and the range of those of the released code."""
    ranges = ranges_by_epoch(dataset, histories, column)
    if len(ranges) > 0:
        every_epoch = ranges.reindex(range(1, ranges.index[-1] + 1))
        ax.fill_between(
            every_epoch.index,
            every_epoch["low"],
            every_epoch["high"],
            where=every_epoch["low"].notna(),  # no band across epochs that fewer than two runs have
            color="0.85",
            linewidth=3,  # wide enough to show the narrowest ranges
            zorder=0.9,
            label="range, released code",
        )
    results = published_results(dataset).set_index("run")
    for i, (name, history) in enumerate(histories.items()):
        known = history.set_index("epoch")[column]
        every_epoch = known.reindex(range(1, known.index[-1] + 1))  # no line across unknown epochs
        ax.plot(
            every_epoch,
            color="0.5",
            linewidth=1,
            zorder=1.5,  # below the lines of the run
            linestyle=PUBLISHED_LINES[i % len(PUBLISHED_LINES)],
            marker="",
            label=name if results.at[name, "is_released"] else f"{name} (port)",
        )


def _add_legend(figure: Figure, axes: np.ndarray, title: str, ncols: int = 4) -> None:
    """Add the legend of the last axis, which holds for all of them, below the figure."""
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=ncols, title=title, handlelength=3.6
    )


def embed_features(
    inspection: Inspection, max_utterances: int = 300
) -> tuple[dict[tuple[str, str], np.ndarray], np.ndarray]:
    """Embed specific and common features by t-SNE, all six in one plane.

    Of more than `max_utterances` utterances, an evenly spaced subset is shown: t-SNE's time grows
    faster than their number, and more points hide each other. The same features give the same
    plane.

    Args:
        inspection: Model outputs on test.
        max_utterances: Number of utterances to show.

    Returns:
        Points (n, 2) by part ("specific" or "common") and modality letter, and the labels (n,).
    """
    total = len(inspection.labels)
    rows = np.linspace(0, total - 1, min(total, max_utterances)).round().astype(int)
    keys, features = [], []
    for part in ("specific", "common"):
        for m in STACK_ORDER:
            keys.append((part, m))
            features.append(getattr(inspection, part)[m][rows])
    stacked = np.concatenate(features)  # (6n, d)
    plane = np.zeros((len(stacked), 2))
    # t-SNE starts from principal components, which a single point does not have
    if stacked.std(axis=0).max() > 0:
        perplexity = min(30, (len(stacked) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
        plane = tsne.fit_transform(stacked)
    points = dict(zip(keys, np.split(plane, len(keys)), strict=True))
    return points, inspection.labels[rows]


def feature_map(name: str, inspection: Inspection) -> Figure:
    """Draw the embedded features twice: by modality and part, and by sentiment.

    Args:
        name: Name of the run.
        inspection: Model outputs on test.
    """
    embedded, labels = embed_features(inspection)
    figure = _figure(f"Decoupled features of {name} (test)", 10.4)
    by_part, by_label = figure.subplots(2, 1, sharex=True, sharey=True)
    for (part, m), points in embedded.items():
        color, marker = MODALITY_MARKS[m]
        is_common = part == "common"
        shape = {"s": 16, "marker": marker, "linewidths": 0.7}
        by_part.scatter(
            points[:, 0],
            points[:, 1],
            facecolors=color if is_common else "none",
            edgecolors=color,
            label=f"{part}, {MODALITIES[m]}",
            **shape,
        )
        shades = by_label.scatter(
            points[:, 0],
            points[:, 1],
            c=labels,
            cmap="cividis",
            vmin=-3,
            vmax=3,
            edgecolors="0.3" if is_common else "none",
            **shape,
        )
    by_part.set_title("By modality and part (open: specific, filled: common)")
    by_part.set(xticks=[], yticks=[])
    by_label.set_title("The same points by sentiment (outlined: common)")
    sizes = f"{len(labels)} of {len(inspection.labels)} utterances"
    figure.legend(
        loc="outside lower center", ncols=2, title=f"t-SNE of {sizes}, mean over the steps"
    )
    figure.colorbar(
        shades,
        ax=by_label,
        label="true sentiment (-3 … 3)",
        orientation="horizontal",
        aspect=40,
    )
    return figure


def predictions(name: str, inspection: Inspection) -> Figure:
    """Draw predicted against true sentiment, and the confusion matrix whose diagonal is Acc_7.

    Args:
        name: Name of the run.
        inspection: Model outputs on test.
    """
    true = inspection.labels
    predicted = inspection.heads["output_logit"]
    metrics = regression_metrics(predicted, true)
    figure = _figure(f"Predictions of {name} (test)", 9.6)
    scatter, matrix = figure.subplots(2, 1, height_ratios=(1, 1.15))

    scatter.plot([-3, 3], [-3, 3], color="0.45", linewidth=1, linestyle="--", marker="")
    scatter.scatter(true, predicted, s=16, facecolors="none", edgecolors="#0072b2")
    scores = f"MAE {metrics['MAE']:.4f}, correlation {metrics['Corr']:.4f}"
    scatter.set_title(f"Dashed: predicted = true. {scores}")
    scatter.set(xlabel="true sentiment (-3 … 3)", ylabel="predicted sentiment")

    ConfusionMatrixDisplay.from_predictions(
        sentiment_classes(true, 3),
        sentiment_classes(predicted, 3),
        labels=range(-3, 4),
        ax=matrix,
        cmap="Greys",
        colorbar=False,
    )
    matrix.set_title(f"Utterances by class; on the diagonal: Acc_7 = {metrics['Acc_7']:.4f}")
    matrix.set(xlabel="predicted class", ylabel="true class")
    matrix.grid(False)
    return figure


def head_bars(name: str, inspection: Inspection) -> Figure:
    """Draw Acc_2 and Acc_7 of each head.

    Args:
        name: Name of the run.
        inspection: Model outputs on test.
    """
    metrics = pd.DataFrame(inspection.head_metrics()).T
    places = np.arange(len(metrics))
    figure = _figure(f"Each head of {name} (test)", 7.2)
    ax = figure.subplots()
    look = {"height": 0.38, "edgecolor": "0.2"}
    acc_2 = ax.barh(places - 0.2, metrics["Acc_2"], color="#9ecae1", **look)
    acc_7 = ax.barh(places + 0.2, metrics["Acc_7"], color="#fdd0a2", hatch="////", **look)
    for bars in (acc_2, acc_7):
        ax.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
    ax.set_yticks(places, [f"{HEAD_LABELS[head]}\n{head}" for head in metrics.index])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.12), xlabel="accuracy (share of utterances)")
    ax.grid(axis="y", visible=False)
    figure.legend(
        [acc_2, acc_7],
        ["Acc_2 (positive or negative; labels that are not 0)", "Acc_7 (seven classes)"],
        loc="outside lower center",
        ncols=2,
        handlelength=2.4,
    )
    return figure


def draw_robustness(name: str, scorings: pd.DataFrame) -> dict[str, bytes]:
    """Draw the table of analysis.robustness, in the style of the other figures.

    Args:
        name: Name of the run.
        scorings: The rows of robustness.csv.

    Returns:
        robustness.png and robustness.svg. The same table gives the same bytes.
    """
    with matplotlib.style.context(["default", STYLE]):
        return _to_files("robustness", robustness_curves(name, scorings))


def robustness_curves(name: str, scorings: pd.DataFrame) -> Figure:
    """Draw MAE, Acc_2 and Acc_7 against the share of removed steps.

    Args:
        name: Name of the run.
        scorings: The rows of robustness.csv.
    """
    whole = scorings[scorings["modalities"] == ALL_MODALITIES]
    kind = KINDS.get(whole["kind"].iloc[0], "")
    panels = {
        "MAE": "MAE (sentiment points)",
        "Acc_2": "Acc_2 (share of utterances)",
        "Acc_7": "Acc_7 (share of utterances)",
    }
    figure = _figure(f"Robustness of {name} (test)", 7.6)
    axes = figure.subplots(len(panels), 1, sharex=True)
    for ax, (metric, label) in zip(axes, panels.items(), strict=True):
        scores = whole.groupby("rate")[metric]
        means = scores.mean()
        band = ax.fill_between(
            means.index, scores.min(), scores.max(), color="0.8", linewidth=0, label="range"
        )
        (line,) = ax.plot(means, label="mean")
        direction = "lower" if metric in LOWER_IS_BETTER else "higher"
        ax.set(title=f"{metric}: {direction} is better", ylabel=label)
    axes[-1].set(xlabel="share of the real steps removed from each modality", xlim=(-0.02, 0.92))
    axes[-1].set_xticks(means.index)
    draws, seeds = whole["draw"].max(), whole["seed"].nunique()
    figure.legend(
        [line, band],
        ["mean", "range"],
        loc="outside lower center",
        ncols=2,
        title=f"Removed {kind}; draws: {draws}, seeds: {seeds}",
        handlelength=3.6,
    )
    return figure
