"""One page about a run: settings, numbers and pictures, in a file that needs no other."""

import base64
import json
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from analysis.record import RunRecord
from dataset.features import SPLITS
from utils.metrics import METRICS


def page(run: RunRecord, pictures: list[tuple[bytes, str]], skipped: str = "") -> str:
    """The HTML of a run's report.

    pictures  SVG and caption
    skipped   why pictures are missing, if some are
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "text": _text, "base64": lambda svg: base64.b64encode(svg).decode()}
    best_row = run.history.set_index("epoch").loc[run.best_epoch]
    names = {"splits": SPLITS, "metrics": ("Loss", *METRICS)}
    template = environment.get_template("report.html.jinja")
    return template.render(run=run, best_row=best_row, pictures=pictures, skipped=skipped, **names)


def _text(value: object) -> str:
    """A setting as text; a dict as 'name: value, …'."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {inner}" for name, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: float | str) -> str:
    """'0.1234', '3' for a whole number, and '-' for what is undefined."""
    if pd.isna(value):
        return "-"
    if isinstance(value, (int, np.integer, str)):
        return str(value)
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"
