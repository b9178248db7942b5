"""The options of a run, for the command line, DMD_run, suites and sweeps. Imports neither PyTorch nor transformers."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from easydict import EasyDict

from config import load_config
from utils.errors import ConfigError

PRECISIONS = ("fp32", "tf32", "bf16")
TRACKERS = ("tensorboard", "wandb", "mlflow")
LONGEST_NAME = 100  # bytes: data set and seed make it longer, and file systems allow 255


def option(flags: str, default, text: str = "", **argument):
    """A field of RunOptions that is a flag of run.py too; `argument` is what else argparse is told of it."""
    return field(default=default, metadata={"flags": flags.split(), "help": text, **argument})


@dataclass(frozen=True)
class RunOptions:
    """What to train, on what, and where to put it. Raises ConfigError for a value that none of these can have."""

    model_name: str = "dmd"
    dataset_name: str = option("-d --dataset", "mosi", "mosi, mosei, synthetic, or one of your own", required=True)
    config_file: str | Path = option("-c --config", "", "JSON config (default: config/config.json)")
    config: dict = option("--set", None, "override settings", nargs="+", action="extend", metavar="KEY=VALUE")
    seeds: Sequence[int] | int = option("-s --seeds", (1111,), "one run each (default: 1111)", nargs="+", type=int)
    feature_T: str | Path = option("-Ft --feature-T", "", "pickle with other text features")
    feature_A: str | Path = option("-Fa --feature-A", "", "pickle with other audio features")
    feature_V: str | Path = option("-Fv --feature-V", "", "pickle with other vision features")
    num_workers: int = option("-n --num-workers", 0, "loader processes", type=int)
    verbose_level: int = option("-v --verbose", 1, "errors, info, debug with loss terms", type=int, choices=(0, 1, 2))
    model_save_dir: str | Path = option("--model-save-dir", "pt")
    res_save_dir: str | Path = option("--res-save-dir", "result")
    log_dir: str | Path = option("--log-dir", "log")
    device: str = option("--device", "auto", "auto, cpu, cuda or cuda:N")
    name: str = option("--name", "", "prefix of the run's folders (default: dmd)")
    epochs: int | None = option("--epochs", None, "stop after so many epochs at the latest", type=int)
    init: str | Path = option("--init", "", "start from those weights of a checkpoint that fit", metavar="FILE.pth")
    precision: str = option("--precision", "fp32", "tf32 (CUDA), bf16: faster, not exact", choices=PRECISIONS)
    compile: bool = option("--compile", False, "torch.compile forward and losses", action="store_true")
    resume: bool = option("--resume", False, "continue the run of this name where it stopped", action="store_true")
    overwrite: bool = option("--overwrite", False, "replace the run of this name", action="store_true")
    deterministic: bool = option("--deterministic", False, "the same bits every time on CUDA too", action="store_true")
    track: Sequence[str] = option("--track", (), "send every epoch's numbers there", nargs="+", choices=TRACKERS)
    figures: bool = option("--no-figures", True, "do not draw the run at its end", action="store_false")
    after_epoch: Callable[[dict], None] | None = None  # called with every epoch's row of history.csv; may raise

    def __post_init__(self):
        def check(holds: bool, message: str) -> None:
            if not holds:
                raise ConfigError(message)

        config = dict(self.config or {}) | ({} if self.epochs is None else {"max_epochs": self.epochs})
        seeds = np.atleast_1d(self.seeds).tolist()  # a number, a sequence or an array of them, as Python's
        track = (self.track,) if isinstance(self.track, str) else tuple(self.track)
        names = {"config": config, "seeds": tuple(seeds), "track": track, "name": self.name or self.model_name}
        for name, value in names.items():
            object.__setattr__(self, name, value)
        check(all(type(seed) is int for seed in seeds), f"--seeds: expected whole numbers, not {seeds}.")
        valid = len(set(seeds)) == len(seeds) > 0 and all(0 <= seed < 2**32 for seed in seeds)
        check(valid, f"--seeds: expected different numbers between 0 and {2**32 - 1}, not {list(seeds)}.")
        plain = Path(self.name).name == self.name and len(self.name.encode()) <= LONGEST_NAME
        check(plain, f"--name: expected a folder's name of at most {LONGEST_NAME} characters, not '{self.name}'.")
        check(not (self.resume and self.overwrite), "--resume continues a run, --overwrite replaces it: give one.")
        unknown = sorted(set(track) - set(TRACKERS))
        check(not unknown, f"--track: {', '.join(unknown)}: expected some of {', '.join(TRACKERS)}.")
        check(self.precision in PRECISIONS, f"precision: {self.precision!r} is not one of {PRECISIONS}.")

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


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flags of RunOptions; their destinations are its fields."""
    for one in fields(RunOptions):
        if one.metadata:
            argument = dict(one.metadata)
            parser.add_argument(*argument.pop("flags"), dest=one.name, default=one.default, **argument)
