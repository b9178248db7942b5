"""The pictures of a run: from numbers to figures, readable without colour.

Figures are made without pyplot: no display is asked for, and no state of matplotlib's is left behind.
"""

import contextlib
import io
import textwrap
import warnings
from collections.abc import Iterator

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import confusion_matrix

from models.distillation import EDGE_NAMES
from models.dmd import MODALITIES
from trainers.heads import Embedding, Inspection
from utils.metrics import sentiment_classes
from utils.reading import printable

STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.88",
    "legend.fontsize": 9,
    "text.parse_math": False,  # a run's name may hold a $
    "svg.fonttype": "none",  # text stays text
    "figure.constrained_layout.use": True,
}
WIDTH = 6.4  # inches
SPLIT_LINES = {  # colour, dashes, marker: any one of them tells the lines apart
    "train": ("#0072b2", "-", "o"),
    "valid": ("#d55e00", "--", "s"),
    "test": ("#000000", ":", "^"),
}
EDGE_LINES = (
    ("#0072b2", "-", "o"), ("#d55e00", "--", "s"), ("#009e73", "-.", "^"),
    ("#cc79a7", ":", "D"), ("#000000", (0, (6, 1, 1, 1, 1, 1)), "v"), ("#8a6d00", (0, (1, 1)), "P"),
)  # fmt: skip
MODALITY_MARKS = {"l": ("#0072b2", "o"), "v": ("#d55e00", "^"), "a": ("#009e73", "s")}
GRAPHS = {"homo": "homogeneous graph (common features)", "hetero": "heterogeneous graph (specific features)"}
CLASSES = range(-3, 4)


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Draw in this style, whatever a user's matplotlibrc says."""
    with matplotlib.style.context(["default", STYLE]):
        yield


def render(figure: Figure, name: str) -> dict[str, bytes]:
    """-> {"png": …, "svg": …}; the same figure gives the same bytes."""
    files = {}
    with own_style(), matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box in a run's name is no reason to complain
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            files[kind] = buffer.getvalue()
    return files


def _figure(title: str, height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height))
    figure.suptitle(textwrap.fill(printable(title, 300), 60), fontsize=11, fontweight="bold")
    return figure


def _line(ax: Axes, history: pd.DataFrame, column: str, label: str, look: tuple) -> None:
    colour, dashes, marker = look
    every = max(1, len(history) // 12)
    ax.plot(
        history["epoch"], history[column], color=colour, linestyle=dashes, marker=marker, markevery=every,
        markersize=5, linewidth=1.5, markerfacecolor="white", label=label,
    )  # fmt: skip


def _mark_best(ax: Axes, best_epoch: int) -> None:
    ax.axvline(best_epoch, color="0.45", linewidth=1, linestyle=(0, (4, 3)), zorder=1, label=f"best epoch {best_epoch}")


def _epoch_axis(ax: Axes, history: pd.DataFrame) -> None:
    """Room beside the first and the last epoch, also where they are one."""
    first, last = history["epoch"].min(), history["epoch"].max()
    room = max(0.3, 0.03 * (last - first))
    ax.set_xlim(first - room, last + room)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlabel("epoch")


def training_curves(name: str, history: pd.DataFrame, best_epoch: int, key: str) -> Figure:
    """Total loss, Loss, MAE and Acc_2 over the epochs, for each split."""
    figure = _figure(f"Training of {name}", 9.2)
    axes = figure.subplots(4, 1, sharex=True)
    panels = (
        ("Objective: what training minimises, mean over the batches of train", "total loss", None),
        ("Loss: mean over batches of the MAE", "Loss (sentiment points)", "Loss"),
        ("MAE: mean distance of predicted and true sentiment", "MAE (sentiment points)", "MAE"),
        ("Acc_2: positive against negative", "Acc_2 (share of utterances)", "Acc_2"),
    )
    for ax, (title, unit, metric) in zip(axes, panels, strict=True):
        for split, look in SPLIT_LINES.items():
            if metric or split == "train":
                _line(ax, history, f"{split}/{metric}" if metric else "loss/total", split, look)
        _mark_best(ax, best_epoch)
        ax.set_title(title, loc="left")
        ax.set_ylabel(unit)
    _epoch_axis(axes[-1], history)
    _legend_below(figure, axes[-1], 4, f"The best epoch is chosen by {key} on valid")
    return figure


def edge_curves(name: str, history: pd.DataFrame, best_epoch: int) -> Figure:
    """The six edges of both graphs over the epochs."""
    figure = _figure(f"Who teaches whom: graph edges of {name}", 7.4)
    axes = figure.subplots(2, 1, sharex=True, sharey=True)
    for ax, (graph, title) in zip(axes, GRAPHS.items(), strict=True):
        for edge, look in zip(EDGE_NAMES, EDGE_LINES, strict=True):
            _line(ax, history, f"edge/{graph}_{edge}", edge.replace("2", "→"), look)
        _mark_best(ax, best_epoch)
        ax.set_title(title[0].upper() + title[1:], loc="left")
        ax.set_ylabel("edge weight (six sum to 1)")
    _epoch_axis(axes[-1], history)
    _legend_below(figure, axes[-1], 4, "teacher→student; L text, V vision, A audio; mean over the train split")
    return figure


def _legend_below(figure: Figure, ax: Axes, columns: int, title: str) -> None:
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=columns, title=title,
                  title_fontsize=9, handlelength=3.6)  # fmt: skip


def feature_map(name: str, embedding: Embedding) -> Figure:
    """The embedded features twice: by modality and part, and by sentiment."""
    shown = len(embedding.labels)
    which = "all" if shown == embedding.total else f"{shown} of"
    figure = _figure(f"Decoupled features of {name} (test)", 10.4)
    by_part, by_label = figure.subplots(2, 1, sharex=True, sharey=True)
    size = 26 if shown <= 100 else 14
    for (part, m), points in embedding.points.items():
        colour, marker = MODALITY_MARKS[m]
        face = colour if part == "common" else "none"
        by_part.scatter(*points.T, s=size, marker=marker, facecolors=face, edgecolors=colour, linewidths=0.8, alpha=0.8)
        shades = by_label.scatter(
            *points.T, s=size, marker=marker, c=embedding.labels, cmap="cividis", vmin=-3, vmax=3,
            edgecolors="0.3" if part == "common" else "none", linewidths=0.5,
        )  # fmt: skip
    handles = [
        Line2D([], [], linestyle="", marker=MODALITY_MARKS[m][1], color=MODALITY_MARKS[m][0],
               markerfacecolor="none" if part == "specific" else None, label=f"{part}, {MODALITIES[m]}")
        for part, m in embedding.points
    ]  # fmt: skip
    by_part.set_title("By modality and part (open: specific, filled: common)", loc="left")
    title = f"t-SNE of {which} {embedding.total} utterances, mean over the steps"
    figure.legend(handles=handles, loc="outside lower center", ncols=2, title=title, title_fontsize=9)
    by_label.set_title("The same points by sentiment (outlined: common)", loc="left")
    figure.colorbar(shades, ax=by_label, label="true sentiment (-3 … 3)", orientation="horizontal", aspect=40)
    for ax in (by_part, by_label):
        ax.set_ylabel("t-SNE axis 2 (no unit)")
        ax.tick_params(labelleft=False, labelbottom=False, length=0)
    by_label.set_xlabel("t-SNE axis 1 (no unit)")
    return figure


def confusion(inspection: Inspection) -> np.ndarray:
    """Utterances by true (row) and predicted (column) class -3 … 3.  -> (7, 7)"""
    sides = (sentiment_classes(x, 3) for x in (inspection.labels, inspection.heads["output_logit"]))
    return confusion_matrix(*sides, labels=list(CLASSES))


def predictions(name: str, inspection: Inspection) -> Figure:
    """Predicted against true sentiment, and the confusion matrix whose diagonal is Acc_7."""
    figure = _figure(f"Predictions of {name} (test)", 9.6)
    scatter, matrix = figure.subplots(2, 1, height_ratios=(1, 1.15))
    predicted, counts = inspection.heads["output_logit"], confusion(inspection)
    scatter.plot([-3, 3], [-3, 3], color="0.45", linewidth=1, linestyle="--")
    scatter.scatter(inspection.labels, predicted, s=16, facecolors="none", edgecolors="#0072b2", linewidths=0.9)
    metrics = inspection.head_metrics()["output_logit"]
    numbers = f"MAE {metrics['MAE']:.4f}, correlation {metrics['Corr']:.4f}"
    scatter.set_title(f"Each circle an utterance; dashed: predicted = true\n{numbers}", loc="left")
    scatter.set_xlabel("true sentiment (-3 … 3)")
    scatter.set_ylabel("predicted sentiment")

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = matrix.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        shade = "white" if shares[row, column] > 0.5 else "black"
        matrix.text(column, row, str(counts[row, column]), ha="center", va="center", color=shade)
    matrix.set_xticks(range(7), [f"{c:+d}" if c else "0" for c in CLASSES])
    matrix.set_yticks(range(7), [f"{c:+d}" if c else "0" for c in CLASSES])
    matrix.grid(False)
    right = int(np.trace(counts))
    matrix.set_title(f"Utterances by class: Acc_7 = {right}/{counts.sum()} = {metrics['Acc_7']:.4f}", loc="left")
    matrix.set_xlabel("predicted class")
    matrix.set_ylabel("true class")
    figure.colorbar(image, ax=matrix, label="share of the true class (row)", fraction=0.05)
    return figure


def head_label(head: str) -> str:
    """'logits_l_homo' -> 'homo text', with the published name below."""
    if head in ("output_logit", "logits_c"):
        return f"{'all, fused' if head == 'output_logit' else 'common, fused'}\n{head}"
    _, m, graph = head.split("_")
    return f"{graph} {MODALITIES[m]}\n{head}"


def head_bars(name: str, head_metrics: dict[str, dict[str, float]]) -> Figure:
    """Acc_2 and Acc_7 of every head by itself."""
    figure = _figure(f"Every head of {name} by itself (test)", 7.2)
    ax = figure.subplots()
    places = np.arange(len(head_metrics))
    for offset, metric, colour, hatch in ((-0.2, "Acc_2", "#9ecae1", ""), (0.2, "Acc_7", "#fdd0a2", "////")):
        values = np.nan_to_num([metrics[metric] for metrics in head_metrics.values()])
        label = {"Acc_2": "Acc_2 (positive or negative; labels that are not 0)", "Acc_7": "Acc_7 (seven classes)"}[
            metric
        ]
        bars = ax.barh(places + offset, values, 0.38, color=colour, edgecolor="0.2", hatch=hatch, label=label)
        ax.bar_label(bars, [f"{m[metric]:.3f}" for m in head_metrics.values()], padding=3, fontsize=9)
    ax.set_yticks(places, [head_label(head) for head in head_metrics])
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12)
    ax.set_xticks(np.arange(0, 1.01, 0.2))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("accuracy (share of utterances)")
    figure.legend(loc="outside lower center", ncols=2, handlelength=2.4)
    return figure
