"""Text that others wrote: JSON without surprises, and what of it goes into a message."""

import json
from pathlib import Path

NAME_CHARACTERS = 80  # as much of a stranger's text goes into a message


def read_json(path: str | Path) -> object:
    """What a JSON text file holds. Raises OSError, or ValueError that says in a few words what is wrong."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError("sections nested too deeply") from error


def _without_repeats(pairs: list[tuple]) -> dict:
    """Python's reader would silently keep the last of two equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {json.dumps(printable(twice))} stands twice in one section; remove one of the two")
    return content


def printable(text: object, length: int = NAME_CHARACTERS) -> str:
    """A stranger's text on one line: no control characters, and no more than `length` characters."""
    text = str(text)
    shown = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in text[:length]).split())
    return shown if len(text) <= length else shown + "…"
