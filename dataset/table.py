"""The table of a data set of one's own: a CSV file with a row for each utterance."""

import csv
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dataset.check import few
from dataset.features import LARGEST_LABEL, SPLITS
from utils.errors import DataError
from utils.reading import printable, regular_size

COLUMNS = ("id", "split", "label", "text")


@dataclass(frozen=True)
class Utterance:
    """A row. The label is a sentiment in [-3, 3]; NaN in a table that was read without labels."""

    id: str
    split: str
    text: str
    label: float


def read_table(path: str | Path, unlabelled: bool = False) -> list[Utterance]:
    """The utterances of a table in their order; `unlabelled`: the column `label` may be missing, and is not read.

    The splits are train, valid and test, or test alone. Raises DataError, with the first few rows, for what is wrong.
    """
    rows = _read_rows(path, [name for name in COLUMNS if name != "label" or not unlabelled])
    ids = [row["id"] for row in rows]

    def refuse(wrong: list[str], what: str, remedy: str) -> None:
        if wrong:
            raise DataError(f"{path}: {len(wrong)} rows have {what} ({few(set(wrong))}). {remedy}")

    def ids_where(is_wrong, column: str = "") -> list[str]:
        shown = [printable(row["id"]) + (f": '{printable(row[column], 20)}'" if column else "") for row in rows]
        return [name for name, row in zip(shown, rows, strict=True) if is_wrong(row)]

    refuse([f"row {n}" for n, name in enumerate(ids, 1) if not name], "no id", "Give each a name.")
    refuse(ids_where(lambda row: _is_path(row["id"])), "an id that no file can have as its name", "Rename them.")
    occurrences = Counter(ids)
    refuse(ids_where(lambda row: occurrences[row["id"]] > 1), "an id that another has too", "Remove or rename them.")
    refuse(ids_where(lambda row: row["split"] not in SPLITS, "split"), "an unknown split", f"Use {', '.join(SPLITS)}.")
    refuse(ids_where(lambda row: not row["text"].strip()), "no text", "Write what is said, or remove them.")
    if not unlabelled:
        remedy = "Training needs one of each; for a file to predict on, give --unlabelled."
        refuse(ids_where(lambda row: not row["label"].strip()), "no label", remedy)
        refuse(
            ids_where(lambda row: math.isnan(_number(row["label"])), "label"), "a label that is no number", "Mend it."
        )
        outside = ids_where(lambda row: abs(_number(row["label"])) > LARGEST_LABEL, "label")
        refuse(outside, "a label outside [-3, 3]", "Scale the labels to [-3, 3].")
    splits = {row["split"] for row in rows}
    if splits not in (set(SPLITS), {"test"}):
        absent = ", ".join(split for split in SPLITS if split not in splits)
        raise DataError(
            f"{path}: no row is of split {absent}. All three are needed, or test alone for a file to predict on."
        )
    labels = [math.nan if unlabelled else _number(row["label"]) for row in rows]
    return [Utterance(row["id"], row["split"], row["text"], label) for row, label in zip(rows, labels, strict=True)]


def _read_rows(path: str | Path, columns: list[str]) -> list[dict[str, str]]:
    """The rows as texts, by column; other columns than these are left out."""
    try:
        regular_size(path)
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if header.count(name) != 1]
            if missing:
                found = printable(",".join(header))
                hint = " For a file to predict on, give --unlabelled." if missing == ["label"] else ""
                raise DataError(
                    f"{path}: the header '{found}' has not one column {', '.join(missing)}. Expected "
                    f"{','.join(columns)}, separated by commas.{hint}"
                )
            rows = []
            for row in filter(None, reader):
                if len(row) != len(header):
                    raise DataError(
                        f"{path}: line {reader.line_num} has {len(row)} fields, but the header {len(header)}. A text "
                        "with a comma stands in double quotes."
                    )
                rows.append(dict(zip(header, row, strict=True)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a CSV file.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: no CSV file in UTF-8 ({printable(error, 120)}). Save it as such.") from error
    if not rows:
        raise DataError(f"{path}: no utterance stands below the header; expected a row for each.")
    return rows


def _is_path(name: str) -> bool:
    return name in (".", "..") or any(c in "/\\" or not c.isprintable() for c in name)


def _number(text: str) -> float:
    """NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
