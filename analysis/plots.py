"""The pictures of a run: from numbers to figures, readable without colour.

No figure is one of pyplot's: no display is needed, and none stays open.
"""

import io
import textwrap

import matplotlib.style
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from analysis.published import published_runs
from analysis.record import RunRecord
from dataset.features import SPLITS
from models.distillation import EDGE_NAMES
from models.dmd import MODALITIES
from trainers.heads import Inspection, embed
from utils.metrics import regression_metrics, sentiment_classes

STYLE = {
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.grid": True, "axes.axisbelow": True, "grid.color": "0.88",
    "legend.fontsize": 9, "legend.title_fontsize": 9, "lines.linewidth": 1.5, "lines.markerfacecolor": "white",
    "axes.prop_cycle": cycler(  # any one of these tells lines apart
        color=["#0072b2", "#d55e00", "#000000", "#cc79a7", "#009e73", "#8a6d00"],
        linestyle=["-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1))],
        marker=["o", "s", "^", "D", "v", "P"],
    ),
    "text.parse_math": False,  # a run's name may hold a $
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dmd",  # the same figure gives the same bytes
    "figure.constrained_layout.use": True,
}  # fmt: skip
METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}  # no date: the same bytes again
MODALITY_MARKS = {"l": ("#0072b2", "o"), "v": ("#d55e00", "^"), "a": ("#009e73", "s")}
GRAPHS = {"homo": "Homogeneous graph (common features)", "hetero": "Heterogeneous graph (specific features)"}
HEAD_LABELS = {"output_logit": "all, fused", "logits_c": "common, fused"} | {
    f"logits_{m}_{graph}": f"{graph} {MODALITIES[m]}" for m in MODALITIES for graph in GRAPHS
}


def draw_all(run: RunRecord, inspection: Inspection | None) -> dict[str, bytes]:
    """The pictures of a run by their files' names, in this style, whatever a user's matplotlibrc says.

    Without an inspection of the test split only those of the history. The same run gives the same bytes.
    """
    files = {}
    with matplotlib.style.context(["default", STYLE]):
        figures = {"training": training_curves(run), "edges": edge_curves(run)}
        if inspection is not None:
            of_test = {"features": feature_map, "predictions": predictions, "heads": head_bars}
            figures |= {name: make(run.name, inspection) for name, make in of_test.items()}
        for name, figure in figures.items():
            for kind, metadata in METADATA.items():
                figure.savefig(file := io.BytesIO(), format=kind, dpi=150, metadata=metadata)
                files[f"{name}.{kind}"] = file.getvalue()
    return files


def _figure(title: str, height: float) -> Figure:
    figure = Figure(figsize=(6.4, height))  # inches
    figure.suptitle(textwrap.fill(title, 60), fontsize=11, fontweight="bold")
    return figure


def training_curves(run: RunRecord) -> Figure:
    """Total loss, Loss, MAE and Acc_2 over the epochs, for each split; in grey those of published runs, on test."""
    splits = {metric: {split: f"{split}/{metric}" for split in SPLITS} for metric in ("Loss", "MAE", "Acc_2")}
    panels = {
        ("Objective: what training minimises, mean over the batches of train", "total loss"): {"train": "loss/total"},
        ("Loss: mean over batches of the MAE", "Loss (sentiment points)"): splits["Loss"],
        ("MAE: mean distance of predicted and true sentiment", "MAE (sentiment points)"): splits["MAE"],
        ("Acc_2: positive against negative", "Acc_2 (share of utterances)"): splits["Acc_2"],
    }
    legend = f"The best epoch is chosen by {run.config['settings']['KeyEval']} on valid"
    figure = _figure(f"Training of {run.name}", 9.2)
    return _over_epochs(figure, panels, run, legend, published_runs(run.config["settings"]))


def edge_curves(run: RunRecord) -> Figure:
    """The six edges of both graphs over the epochs."""
    panels = {
        (title, "edge weight (six sum to 1)"): {edge.replace("2", "→"): f"edge/{graph}_{edge}" for edge in EDGE_NAMES}
        for graph, title in GRAPHS.items()
    }
    legend = "teacher→student; L text, V vision, A audio; mean over the train split"
    figure = _figure(f"Who teaches whom: graph edges of {run.name}", 7.4)
    return _over_epochs(figure, panels, run, legend, {}, sharey=True)


def _over_epochs(figure: Figure, panels: dict, run: RunRecord, legend: str, published: dict, **shared) -> Figure:
    """Columns of the history below each other.  panels: {(title, y label): {label of a line: column}}. Behind the last
    of them the same of published runs."""
    epochs, best = run.history["epoch"], run.best_epoch
    axes = figure.subplots(len(panels), 1, sharex=True, **shared)
    for ax, ((title, unit), lines) in zip(axes, panels.items(), strict=True):
        for (name, history), style in zip(published.items(), ("-", ":"), strict=False):
            column = history.set_index("epoch")[list(lines.values())[-1]]
            whole = column.reindex(range(1, column.index[-1] + 1))  # no line across epochs that are not known
            ax.plot(whole, color="0.6", linestyle=style, marker="", label=name)
        ax.plot(epochs, run.history[list(lines.values())], label=list(lines), markevery=max(1, len(epochs) // 12))
        ax.axvline(best, color="0.45", linewidth=1, linestyle="--", zorder=1, label=f"best epoch {best}")
        ax.set(title=title, ylabel=unit)
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, title=legend, handlelength=3.6)
    return figure


def feature_map(name: str, inspection: Inspection) -> Figure:
    """The features on a plane twice: by modality and part, and by sentiment."""
    embedded, labels = embed(inspection)
    figure = _figure(f"Decoupled features of {name} (test)", 10.4)
    by_part, by_label = figure.subplots(2, 1, sharex=True, sharey=True)
    for (part, m), points in embedded.items():
        colour, marker = MODALITY_MARKS[m]
        fill, outline = (colour, "0.3") if part == "common" else ("none", "none")
        look = {"s": 16, "marker": marker, "linewidths": 0.7}
        by_part.scatter(*points.T, **look, facecolors=fill, edgecolors=colour, label=f"{part}, {MODALITIES[m]}")
        shades = by_label.scatter(*points.T, **look, c=labels, cmap="cividis", vmin=-3, vmax=3, edgecolors=outline)
    title = f"t-SNE of {len(labels)} of {len(inspection.labels)} utterances, mean over the steps"
    figure.legend(loc="outside lower center", ncols=2, title=title)
    figure.colorbar(shades, ax=by_label, label="true sentiment (-3 … 3)", orientation="horizontal", aspect=40)
    by_part.set(title="By modality and part (open: specific, filled: common)", xticks=[], yticks=[])
    by_label.set(title="The same points by sentiment (outlined: common)")
    return figure


def predictions(name: str, inspection: Inspection) -> Figure:
    """Predicted against true sentiment, and the confusion matrix whose diagonal is Acc_7."""
    figure = _figure(f"Predictions of {name} (test)", 9.6)
    scatter, matrix = figure.subplots(2, 1, height_ratios=(1, 1.15))
    true, predicted = inspection.labels, inspection.heads["output_logit"]
    metrics = regression_metrics(predicted, true)
    scatter.plot([-3, 3], [-3, 3], color="0.45", linewidth=1, linestyle="--", marker="")
    scatter.scatter(true, predicted, s=16, facecolors="none", edgecolors="#0072b2")
    scatter.set_title(f"Dashed: predicted = true. MAE {metrics['MAE']:.4f}, correlation {metrics['Corr']:.4f}")
    scatter.set(xlabel="true sentiment (-3 … 3)", ylabel="predicted sentiment")

    classes = (sentiment_classes(values, 3) for values in (true, predicted))
    ConfusionMatrixDisplay.from_predictions(*classes, labels=range(-3, 4), ax=matrix, cmap="Greys", colorbar=False)
    matrix.set_title(f"Utterances by class; on the diagonal: Acc_7 = {metrics['Acc_7']:.4f}")
    matrix.set(xlabel="predicted class", ylabel="true class")
    matrix.grid(False)
    return figure


def head_bars(name: str, inspection: Inspection) -> Figure:
    """Acc_2 and Acc_7 of every head by itself."""
    figure = _figure(f"Every head of {name} by itself (test)", 7.2)
    metrics = pd.DataFrame(inspection.head_metrics()).T
    ax, places = figure.subplots(), np.arange(len(metrics))
    look = {"height": 0.38, "edgecolor": "0.2"}
    acc_2 = ax.barh(places - 0.2, metrics["Acc_2"], **look, color="#9ecae1")
    acc_7 = ax.barh(places + 0.2, metrics["Acc_7"], **look, color="#fdd0a2", hatch="////")
    for bars in (acc_2, acc_7):
        ax.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
    ax.set_yticks(places, [f"{HEAD_LABELS[head]}\n{head}" for head in metrics.index])
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.12), xlabel="accuracy (share of utterances)")
    ax.grid(axis="y", visible=False)
    names = ["Acc_2 (positive or negative; labels that are not 0)", "Acc_7 (seven classes)"]
    figure.legend([acc_2, acc_7], names, loc="outside lower center", ncols=2, handlelength=2.4)
    return figure
