"""The options of a run, for the command line, DMD_run, suites and sweeps. Imports neither PyTorch nor transformers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from easydict import EasyDict

from config import load_config
from utils.errors import ConfigError

PRECISIONS = ("fp32", "tf32", "bf16")
TRACKERS = ("tensorboard", "wandb", "mlflow")
VERBOSE_LEVELS = (0, 1, 2)  # errors, info, debug
LONGEST_NAME = 100  # bytes: data set and seed make it longer, and file systems allow 255


@dataclass(frozen=True)
class RunOptions:
    """What to train, on what, and where to put it. Raises ConfigError for a value that none of these can have."""

    model_name: str = "dmd"
    dataset_name: str = "mosi"
    config_file: str | Path = ""  # JSON in the layout of config/config.json, which is the default
    config: dict = field(default_factory=dict)  # overrides by key, stronger than the file
    seeds: Sequence[int] | int = (1111,)  # each is a run of its own
    feature_T: str | Path = ""  # another pickle, whose text features replace the data set's
    feature_A: str | Path = ""
    feature_V: str | Path = ""
    gpu_ids: Sequence[int] | None = None  # [n] is device "cuda:n", [-1] is "cpu"; [] leaves the choice to `device`
    num_workers: int = 0  # loader processes
    verbose_level: int = 1
    model_save_dir: str | Path = "pt"
    res_save_dir: str | Path = "result"
    log_dir: str | Path = "log"
    device: str = "auto"  # or "cpu", "cuda", "cuda:N"
    name: str = ""  # prefix of the run's folders `<name>-<dataset>-<seed>` (default: the model's name)
    epochs: int | None = None  # stop after so many, whatever early stopping says
    init: str | Path = ""  # a checkpoint: training starts from those of its weights that fit
    precision: str = "fp32"  # "tf32" on CUDA; "bf16": autocast of the model
    compile: bool = False  # torch.compile of forward and losses
    resume: bool = False  # continue the run of that name after its last complete epoch
    overwrite: bool = False  # replace it
    deterministic: bool = False  # the same bits every time on CUDA too
    track: Sequence[str] = ()  # which of TRACKERS are sent every epoch's numbers
    after_epoch: Callable[[dict], None] | None = None  # called with every epoch's row of history.csv; may raise
    figures: bool = True  # draw each run at its end

    def __post_init__(self):
        def check(holds: bool, message: str) -> None:
            if not holds:
                raise ConfigError(message)

        is_dict = isinstance(self.config or {}, dict)
        check(is_dict, f"config: {self.config!r} is not a dict of overrides; a file is config_file={self.config!r}.")
        config = dict(self.config or {}) | ({} if self.epochs is None else {"max_epochs": self.epochs})
        seeds, gpus = (self.seeds,) if isinstance(self.seeds, int) else tuple(self.seeds or (1111,)), self.gpu_ids
        given = {"config": config, "seeds": seeds, "name": self.name or self.model_name}
        if gpus:
            given |= {"device": "cpu" if gpus[0] < 0 else f"cuda:{gpus[0]}", "gpu_ids": None}
        for name, value in given.items():
            object.__setattr__(self, name, value)
        one = not gpus or len(gpus) == 1
        check(one, f"gpu_ids: {gpus} are several GPUs; start a process for each: torchrun run.py …")
        within = all(0 <= seed < 2**32 for seed in seeds)
        check(within, f"--seeds: one of {list(seeds)} is not between 0 and {2**32 - 1}.")
        check(len(set(seeds)) == len(seeds), f"--seeds: {list(seeds)} names a seed twice; name each once.")
        check(
            Path(self.name).name == self.name and len(self.name.encode()) <= LONGEST_NAME,
            f"--name: '{self.name[:LONGEST_NAME]}' is no name for a folder: give a plain name, not a path, of few "
            f"characters: take at most {LONGEST_NAME}, a suite's name and row included.",
        )
        check(self.num_workers >= 0, f"--num-workers: {self.num_workers} is negative.")
        check(not (self.resume and self.overwrite), "--resume continues a run, --overwrite replaces it: give one.")
        for flag, value, choices in (
            ("--precision", self.precision, PRECISIONS),
            ("--verbose", self.verbose_level, VERBOSE_LEVELS),
            *(("--track", tracker, TRACKERS) for tracker in self.track),
        ):
            check(value in choices, f"{flag}: {value!r} is not one of {', '.join(map(str, choices))}.")

    def settings(self) -> EasyDict:
        """The resolved settings. Raises ConfigError where config file or overrides are wrong."""
        return load_config(self.model_name, self.dataset_name, self.config_file, self.config)

    @property
    def replaced(self) -> dict[str, str]:
        """The feature files that replace a modality's, as config.json names them."""
        return {key: str(getattr(self, key)) for key in ("feature_T", "feature_A", "feature_V")}

    def describe(self, settings: dict) -> dict:
        """What config.json says of a run with these options, as far as it is known before the data are read."""
        described = {"settings": dict(settings), "features": self.replaced, "seeds": list(self.seeds)}
        described |= {"precision": self.precision, "init": str(self.init)}
        return described | {"compile": self.compile, "deterministic": self.deterministic}
