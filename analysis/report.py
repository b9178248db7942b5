"""One page about a run: settings, numbers and pictures, in a file that needs no other."""

import base64
import json
from collections.abc import Iterable
from html import escape

import numpy as np
import pandas as pd

from analysis.record import SPLIT_METRICS, RunRecord
from dataset.features import SPLITS

# The browser is told to fetch nothing, whatever the page may hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 78rem; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; border-bottom: 1px solid #bbb; }
p, dt, dd { overflow-wrap: anywhere; }
.note { border-left: 4px solid #666; padding: 0.25rem 0.75rem; background: #f2f2f2; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.6rem; text-align: left; border-bottom: 1px solid #ddd; }
td:not(:first-child), th:not(:first-child) { text-align: right; }
td, th { white-space: nowrap; font-variant-numeric: tabular-nums; }
tr.best { background: #e6e6e6; font-weight: bold; }
dl { columns: 22rem; column-gap: 2rem; margin: 0; font-size: 0.9rem; }
dl div { display: flex; gap: 1rem; justify-content: space-between; break-inside: avoid; padding: 0.2rem 0;
  border-bottom: 1px solid #ddd; }
dt { font-weight: bold; flex: 0 0 auto; max-width: 60%; }
dd { margin: 0; text-align: right; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
figure img { width: 100%; height: auto; border: 1px solid #ddd; }
figcaption { font-size: 0.9rem; }
summary { cursor: pointer; padding: 0.5rem 0; }
@media (max-width: 40rem) { body { padding: 0.75rem; font-size: 15px; } }
"""


def page(record: RunRecord, pictures: dict[str, tuple[bytes, str]], skipped: str = "") -> str:
    """The HTML of a run's report.

    pictures  SVG and caption by name
    skipped   why pictures are missing, if some are
    """
    settings = record.config["settings"]
    facts = {
        "data set": settings.get("dataset_name", ""),
        "seed": record.config.get("seed", ""),
        "best epoch": f"{record.best_epoch} of {len(record.history)}, by {settings.get('KeyEval', 'Loss')} on valid",
        "state": "finished" if record.metrics else "not finished: numbers are of the epochs so far",
        "device": record.config.get("device", ""),
        "precision": record.config.get("precision", "fp32"),
    }
    sections = [
        f"<h1>Run {escape(record.name)}</h1>",
        _pairs(facts),
        f"<h2>Metrics of the best epoch ({record.best_epoch})</h2>",
        _metrics_of_splits(record),
        "<p>train: predicted while training, with dropout. Acc, F1 and Corr: higher is better; Loss and MAE, in "
        "sentiment points: lower is better.</p>",
        "<h2>Pictures</h2>",
        f'<p class="note">{escape(skipped)}</p>' if skipped else "",
        f'<div class="pictures">{"".join(_picture(*picture) for picture in pictures.values())}</div>',
        "<h2>History</h2>",
        "<p>Wide tables scroll sideways.</p>",
        _history(record, ["epoch", "loss/total", *(f"{s}/{m}" for s in SPLITS for m in ("Loss", "Acc_2", "Acc_7"))]),
        "<details><summary>All columns of history.csv</summary>",
        _history(record, list(record.history.columns)),
        "</details>",
        "<h2>Settings</h2>",
        _pairs(settings),
        "<h2>Surroundings</h2>",
        _pairs({key: value for key, value in record.config.items() if key not in ("settings", "device", "precision")}),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Run {escape(record.name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def _picture(svg: bytes, caption: str) -> str:
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    return f'<figure><img src="{source}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def _pairs(values: dict) -> str:
    """A list of names and values; a dict among the values is written out as `name: value`."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            text = ", ".join(f"{name}: {inner}" for name, inner in value.items())
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rows.append(f"<div><dt>{escape(str(key))}</dt><dd>{escape(text)}</dd></div>")
    return f"<dl>{''.join(rows)}</dl>"


def _metrics_of_splits(record: RunRecord) -> str:
    row = record.best_row
    return _numbers(
        ["metric", *SPLITS], [[m, *(_number(row[f"{split}/{m}"]) for split in SPLITS)] for m in SPLIT_METRICS]
    )


def _history(record: RunRecord, columns: list[str]) -> str:
    cells = [map(_number, record.history[column]) for column in columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    best = list(record.history["epoch"]).index(record.best_epoch)
    return _numbers(columns, rows, best)


def _numbers(columns: Iterable[str], rows: list[list[str]], best: int | None = None) -> str:
    """A table that scrolls by itself where it is wider than the page; the row `best` stands out."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body += f'<tr class="best">{cells}</tr>' if number == best else f"<tr>{cells}</tr>"
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value) -> str:
    """'0.1234', '3' for a whole number, and '-' for what is undefined."""
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "-"
    if isinstance(value, (int, np.integer)):
        return str(value)
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"
