"""The layout of MulT's pickles (Multimodal Transformer; Tsai et al., ACL 2019).

Each of the splits train, valid and test has

    text    (N, 50, 300)        GloVe vectors; no tokens and no raw_text
    audio   (N, T, 5 or 74)     COVAREP, with -inf
    vision  (N, T, 20 or 35)    FACET
    labels  (N, 1, 1)           sentiment in [-3, 3]
    id      (N, 3)              video, start, end, as bytes; absent in some files

Ids become `video$_$start_end`: what precedes `$_$` is the video, as in the ids of MMSA's pickles.
"""

import numpy as np

from utils.errors import DataError

SIZES = {  # utterances of train, valid and test, by data set of the config
    "mosi-glove": [1284, 229, 686],
    "mosei-glove": [16326, 1871, 4659],
}
WITHOUT_TOKENS = (
    "is in MulT's layout, with GloVe features and no tokens for use_bert=true. Use it with "
    "-d mosi-glove or -d mosei-glove (use_bert=false)."
)


def is_mult(fields: object) -> bool:
    """Whether a split of a pickle has MulT's layout.

    Args:
        fields: The split, {field: values}.
    """
    if not isinstance(fields, dict) or "labels" not in fields:
        return False
    return "regression_labels" not in fields and "text_bert" not in fields


def convert(content: dict, path: str) -> bool:
    """Convert splits in MulT's layout to the project's: `regression_labels`, and a string as id.

    Args:
        content: Content of a pickle, {split: {field: values}}, which is changed. Splits of another
            layout stay as they are, except for ids of several columns.
        path: The pickle, for error messages.

    Returns:
        Whether any split had MulT's layout.

    Raises:
        DataError: The labels are not one number for each utterance.
    """
    found = False
    for split, fields in content.items():
        if not isinstance(fields, dict):
            continue
        if is_mult(fields):
            found = True
            labels = fields.pop("labels")
            count = _count_labels(labels, f"{path}: 'labels' of split '{split}'")
            fields["regression_labels"] = labels
            fields.setdefault("id", [f"{split}-{row}" for row in range(count)])
        if "id" in fields:
            fields["id"] = join_columns(fields["id"])
    return found


def _count_labels(labels, where: str) -> int:
    """The number of utterances. Raises DataError if one has several labels, or none."""
    try:
        shape = np.shape(labels)
    except ValueError as error:  # lists of different lengths
        raise DataError(f"{where} is not an array of numbers; expected (N, 1, 1).") from error
    if not shape or np.prod(shape[1:]) != 1:
        raise DataError(
            f"{where} is {shape}; expected (N, 1, 1), the sentiment of each utterance. IEMOCAP's "
            "files have emotions, which are not supported."
        )
    return shape[0]


def join_columns(ids):
    """Ids of several columns as strings; others are returned as they are."""
    rows = ids.tolist() if isinstance(ids, np.ndarray) else ids
    if not isinstance(rows, list) or not rows:
        return ids
    names = []
    for row in rows:
        if isinstance(row, np.ndarray):
            row = row.tolist()
        if not isinstance(row, list) or not row:
            return ids
        columns = [_decode(column) for column in row]
        if len(columns) == 1:
            names.append(columns[0])
        else:
            names.append(f"{columns[0]}$_${'_'.join(columns[1:])}")
    return names


def _decode(value: object) -> str:
    """Bytes or numbers as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
