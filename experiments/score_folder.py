"""Predict on a folder of loose pickles; broken ones are reported and skipped."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dataset.features import shorten
from dataset.loose import InputSizes, LooseFile, list_pickles, read_loose
from experiments.restore import CheckpointSettings, describe_changes, load_model, load_settings
from experiments.score import check_provenance
from models.dmd import DMD
from trainers.evaluate import Predictions, evaluation_loss, log_metrics
from utils.device import autocast, choose_device, choose_tf32, keep_freed_memory
from utils.errors import ConfigError, DataError
from utils.files import write_csv
from utils.log import logger, progress, start_log
from utils.reading import printable


@dataclass(frozen=True)
class Utterance:
    """An utterance of a file, as input of the model."""

    path: Path
    id: str
    raw_text: str
    label: float  # NaN if unlabeled
    text: np.ndarray  # (T_l, d_l), or tokens (3, T_l)
    audio: np.ndarray  # (T_a, d_a)
    vision: np.ndarray  # (T_v, d_v)


@dataclass(frozen=True)
class Row:
    """The output for an utterance."""

    path: Path
    id: str
    raw_text: str
    label: float  # NaN if unlabeled
    prediction: float


@dataclass
class FolderPredictor:
    """Predicts on one file after another, a batch at a time.

    Attributes:
        model: In eval mode, on the device.
        trained: How it was trained.
        device: The device of the model.
        split: The split to read if a file has several.
        rows: The utterances predicted so far.
        broken: The files that cannot be used, in the order in which they were found.
        truncated: Number of sequences that were cut.
    """

    model: DMD
    trained: CheckpointSettings
    device: torch.device
    split: str
    rows: list[Row] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    truncated: int = 0

    def predict_files(self, paths: list[Path]) -> None:
        """Predict on the files, and log those that are broken."""
        choose_tf32(self.trained.precision)
        sizes = input_sizes(self.model)
        batch_size = self.model.args.eval_batch_size
        waiting: list[Utterance] = []
        for path in progress(paths, self.split):
            try:
                file = read_loose(path, sizes, self.split)
                check_provenance(self.trained, path, file.provenance)
            except DataError as error:
                self._report_broken(path, str(error))
                continue
            except OSError as error:
                self._report_broken(path, f"{path}: cannot be read ({error.strerror or error}).")
                continue
            self.truncated += file.truncated
            for row in range(len(file.ids)):
                waiting.append(_take_utterance(file, row))
                if len(waiting) == batch_size:
                    self._predict_batch(waiting)
                    waiting = []
        if waiting:
            self._predict_batch(waiting)

    def _predict_batch(self, batch: list[Utterance]) -> None:
        """Add the rows of the utterances."""
        text = torch.from_numpy(np.stack([utterance.text for utterance in batch]))
        audio = torch.from_numpy(np.stack([utterance.audio for utterance in batch]))
        vision = torch.from_numpy(np.stack([utterance.vision for utterance in batch]))
        inputs = text.to(self.device), audio.to(self.device), vision.to(self.device)
        with torch.inference_mode(), autocast(self.device, self.trained.precision):
            logit = self.model(*inputs).output_logit  # (B, 1)
        predicted = logit.float().squeeze(1).cpu().numpy()
        for utterance, prediction in zip(batch, predicted, strict=True):
            path = utterance.path
            if not np.isfinite(prediction) and path not in self.broken:
                name = printable(utterance.id)
                self._report_broken(
                    path,
                    f"{path}: the prediction for {name} is not finite. Its features are out of "
                    "range; compare them with those of the training.",
                )
            self.rows.append(
                Row(path, utterance.id, utterance.raw_text, utterance.label, prediction)
            )

    def _report_broken(self, path: Path, reason: str) -> None:
        """Log why a file cannot be used."""
        self.broken.append(path)
        logger.error(reason)


def input_sizes(model: DMD) -> InputSizes:
    """Get the input sizes of a model."""
    args = model.args
    sizes = InputSizes(args.feature_dims, args.seq_lens, args.use_bert)
    if not args.use_bert:
        return sizes
    encoder = model.text_model.model.config
    return InputSizes(
        args.feature_dims,
        args.seq_lens,
        args.use_bert,
        vocab_size=encoder.vocab_size,
        pad_token=encoder.pad_token_id or 0,
    )


def score_folder(
    folder: str | Path,
    checkpoint: str | Path,
    dataset_name: str,
    config_file: str | Path,
    config: dict | None,
    split: str,
    device: str,
    predictions: str | Path,
    log_dir: str | Path,
) -> dict[str, float]:
    """Predict on the pickles of a folder, and score the labeled utterances together.

    The arguments are documented at `test.DMD_test`.

    Returns:
        The metrics; {} without labels.

    Raises:
        DataError: The folder has no pickles; or some are broken, after the others were predicted.
    """
    keep_freed_memory()
    paths = list_pickles(folder)
    trained = load_settings(checkpoint, dataset_name, config_file, config)
    model, settings = load_model(checkpoint, dataset_name, config_file, config)
    chosen = choose_device(device)
    start_log(Path(log_dir) / f"test-{settings.dataset_name}.log", verbose_level=1)
    for change in describe_changes(trained, to_predict=True):
        logger.warning(change)

    predictor = FolderPredictor(model.to(chosen), trained, chosen, split)
    predictor.predict_files(paths)
    rows = [row for row in predictor.rows if row.path not in predictor.broken]
    _warn(predictor, rows)
    metrics = _score(rows, settings)
    if metrics:
        log_metrics(split, settings.model_name, metrics)
    if rows and predictions:
        write_csv(Path(predictions), _to_table(rows))
        logger.info(
            f"{predictions}: {len(rows)} utterances of {len(paths) - len(predictor.broken)} files."
        )
    _check_broken(predictor, folder, len(paths))
    if not metrics and not predictions:
        raise ConfigError(
            f"{folder}: has no labels to score. Give an output file with --predictions."
        )
    return metrics


def _check_broken(predictor: FolderPredictor, folder: str | Path, count: int) -> None:
    """Raise DataError if some of the files were broken."""
    if predictor.broken:
        names = printable(", ".join(path.name for path in predictor.broken), 600)
        raise DataError(
            f"{folder}: {len(predictor.broken)} of {count} files are broken and were skipped: "
            f"{names}. See the log for the reasons."
        )


def _take_utterance(file: LooseFile, row: int) -> Utterance:
    """One utterance of a file."""
    return Utterance(
        path=file.path,
        id=file.ids[row],
        raw_text=file.raw_text[row],
        label=file.labels[row],
        text=file.text[row],
        audio=file.audio[row],
        vision=file.vision[row],
    )


def _warn(predictor: FolderPredictor, rows: list[Row]) -> None:
    """Log a warning about cut sequences, and one about repeated ids."""
    if predictor.truncated:
        logger.warning(
            f"{predictor.truncated} sequences were cut at the end: the checkpoint expects "
            f"{predictor.model.args.seq_lens} steps of text, audio and vision."
        )
    repeated = []
    for name, times in Counter(row.id for row in rows).items():
        if times > 1:
            repeated.append(name)
    if repeated:
        logger.warning(
            f"{len(repeated)} ids occur more than once, with a row for each occurrence: "
            f"{shorten(repeated)}."
        )


def _score(rows: list[Row], settings) -> dict[str, float]:
    """The metrics of the rows that have labels; {} if none has."""
    labeled = [row for row in rows if not np.isnan(row.label)]
    logger.info(f"{len(labeled)} of {len(rows)} utterances have labels.")
    if not labeled:
        return {}
    predicted = np.array([row.prediction for row in labeled], np.float32)
    labels = np.array([row.label for row in labeled], np.float32)
    loss = evaluation_loss(torch.from_numpy(predicted), torch.from_numpy(labels), settings)
    return Predictions(predicted, labels, loss).metrics()


def _to_table(rows: list[Row]) -> pd.DataFrame:
    """A row for each utterance: id, raw_text, label, prediction."""
    return pd.DataFrame(
        {
            "id": [row.id for row in rows],
            "raw_text": [row.raw_text for row in rows],
            "label": np.array([row.label for row in rows], np.float32),
            "prediction": np.array([row.prediction for row in rows], np.float32),
        }
    )
