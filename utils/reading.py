"""Text from untrusted files: JSON without duplicate keys, and text for messages."""

import json
import math
from collections import Counter
from pathlib import Path


def read_json(path: str | Path) -> object:
    """Read a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not valid JSON, or repeats a key.
    """
    return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)


def read_metrics(path: str | Path) -> dict[str, float]:
    """Read a run's metrics.json, in which null is NaN.

    Raises:
        OSError: The file cannot be read.
        ValueError: It does not contain a JSON object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError("expected a JSON object")
    for name, value in content.items():
        if value is None:
            content[name] = math.nan
    return content


def _without_repeats(pairs: list[tuple]) -> dict:
    """Reject repeated keys; Python's reader would silently keep the last one."""
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise ValueError(f"the key '{printable(key)}' occurs twice in one section")
    return dict(pairs)


def printable(text: object, length: int = 80) -> str:
    """Untrusted text on one line: no control characters, at most `length` characters."""
    text = str(text)
    shown = " ".join(
        "".join(c if c.isprintable() or c.isspace() else "?" for c in text[:length]).split()
    )
    return shown if len(text) <= length else shown + "…"
