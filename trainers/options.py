"""The options of a run, for the command line, DMD_run, suites and sweeps. Imports neither PyTorch nor transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from easydict import EasyDict

from config import load_config
from utils.errors import ConfigError

PRECISIONS = ("fp32", "tf32", "bf16")
TRACKERS = ("tensorboard", "wandb", "mlflow")
VERBOSE_LEVELS = (0, 1, 2)
LONGEST_NAME = 100  # bytes: data set and seed make it longer, and file systems allow 255


@dataclass(frozen=True)
class RunOptions:
    """What to train, on what, and where to put it.

    config_file     JSON in the layout of config/config.json, which is the default
    config          overrides by key, stronger than the file
    seeds           one or several; each is a run of its own
    feature_T/A/V   another pickle whose text, audio or vision features replace the data set's
    gpu_ids         [n] is device "cuda:n", [-1] is "cpu"; None or [] leaves the choice to `device`
    num_workers     loader processes;  verbose_level  0 errors, 1 info, 2 debug
    device          "auto", "cpu", "cuda" or "cuda:N"
    name            prefix of the run's folders `<name>-<dataset>-<seed>` (default: the model's name)
    epochs          stop after so many, whatever early stopping says
    precision       "fp32"; "tf32" on CUDA; "bf16": autocast of the model
    compile         torch.compile of forward and losses
    resume          continue an existing run of that name after its last complete epoch; overwrite: replace it
    deterministic   the same bits every time on CUDA too
    track           trackers that are sent every epoch's numbers: "tensorboard", "wandb", "mlflow"
    after_epoch     called with every epoch's row of history.csv; what it raises ends the training
    figures         draw each run at its end

    Raises ConfigError for a value that is none of those.
    """

    model_name: str = "dmd"
    dataset_name: str = "mosi"
    config_file: str | Path = ""
    config: dict = field(default_factory=dict)
    seeds: Sequence[int] | int = (1111,)
    feature_T: str | Path = ""
    feature_A: str | Path = ""
    feature_V: str | Path = ""
    gpu_ids: Sequence[int] | None = None
    num_workers: int = 0
    verbose_level: int = 1
    model_save_dir: str | Path = "pt"
    res_save_dir: str | Path = "result"
    log_dir: str | Path = "log"
    device: str = "auto"
    name: str = ""
    epochs: int | None = None
    precision: str = "fp32"
    compile: bool = False
    resume: bool = False
    overwrite: bool = False
    deterministic: bool = False
    track: Sequence[str] = ()
    after_epoch: Callable[[dict], None] | None = None
    figures: bool = True

    def __post_init__(self):
        def give(**values) -> None:
            for name, value in values.items():
                object.__setattr__(self, name, value)

        if not isinstance(self.config or {}, dict):
            raise ConfigError(f"config: {self.config!r} is not a dict of overrides; a file is config_file.")
        seeds = (self.seeds,) if isinstance(self.seeds, int) else tuple(self.seeds or (1111,))
        give(config=dict(self.config or {}), seeds=seeds, name=self.name or self.model_name)
        if self.epochs is not None:
            give(config=self.config | {"max_epochs": self.epochs})
        if self.gpu_ids:
            if len(self.gpu_ids) > 1:
                raise ConfigError(
                    f"gpu_ids: {list(self.gpu_ids)} are several GPUs; start a process for each: torchrun run.py …"
                )
            give(device="cpu" if self.gpu_ids[0] < 0 else f"cuda:{self.gpu_ids[0]}", gpu_ids=None)
        wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
        if wrong:
            raise ConfigError(f"--seeds: {wrong[0]} is not between 0 and {2**32 - 1}.")
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"--seeds: {list(seeds)} names a seed twice; its second run would replace the first.")
        check_name(self.name)
        if self.num_workers < 0:
            raise ConfigError(f"--num-workers: {self.num_workers} is negative.")
        if self.resume and self.overwrite:
            raise ConfigError("--resume continues an earlier run and --overwrite replaces it: give one of them.")
        _check_choice("--precision", self.precision, PRECISIONS)
        _check_choice("--verbose", self.verbose_level, VERBOSE_LEVELS)
        for tracker in self.track:
            _check_choice("--track", tracker, TRACKERS)

    def settings(self) -> EasyDict:
        """The resolved settings. Raises ConfigError where config file or overrides are wrong."""
        return load_config(self.model_name, self.dataset_name, self.config_file, self.config)

    @property
    def replaced(self) -> dict[str, str]:
        """The feature files that replace a modality's, as config.json names them."""
        return {key: str(getattr(self, key)) for key in ("feature_T", "feature_A", "feature_V")}


def check_name(name: str) -> None:
    """Raise ConfigError where a run's folders cannot have this name."""
    if Path(name).name != name:
        raise ConfigError(f"--name: '{name}' must be a plain name, not a path.")
    if len(name.encode()) > LONGEST_NAME:
        raise ConfigError(
            f"--name: '{name[:20]}…' has {len(name)} characters, too many for a folder; take at most {LONGEST_NAME}, "
            "a suite's name and row included."
        )


def _check_choice(flag: str, value, choices: Sequence) -> None:
    if value not in choices:
        raise ConfigError(f"{flag}: {value!r} is not one of {', '.join(map(str, choices))}.")
