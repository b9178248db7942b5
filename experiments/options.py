"""The options of a run: fields for Python, flags for the command line. Does not import PyTorch."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from easydict import EasyDict

from config import load_config, parse_overrides
from config.loading import COMMAND_LINE
from utils.cli import ArgumentParser, RenamedFlag
from utils.errors import ConfigError

PRECISIONS = ("fp32", "tf32", "bf16")
TRACKERS = ("tensorboard", "wandb", "mlflow")
MAX_NAME_BYTES = 100  # data set and seed are appended, and file systems allow 255
MAX_SEED = 2**32 - 1


class CommandState:
    """What the command has done so far, for the line that it prints after an interrupt."""

    discarded_runs = False  # an interrupted --overwrite continues with --resume from there on


@dataclass
class RunOptions:
    """What to train, on which data, and where to write the results.

    The fields are the arguments of `run.DMD_run`, where they are documented, and the flags of
    run.py (`add_flags`).

    Raises:
        ConfigError: An option is invalid, whatever the settings are.
    """

    model_name: str = "dmd"
    dataset_name: str = "mosi"
    config_file: str | Path = ""
    config: dict | None = None
    seeds: int | Sequence[int] = (1111,)
    feature_T: str | Path = ""
    feature_A: str | Path = ""
    feature_V: str | Path = ""
    num_workers: int = 0
    verbose_level: int = 1
    model_save_dir: str | Path = "pt"
    res_save_dir: str | Path = "result"
    log_dir: str | Path = "log"
    device: str = "auto"
    name: str = ""
    epochs: int | None = None
    init_from: str | Path = ""
    precision: str = "fp32"
    compile: bool = False
    resume: bool = False
    overwrite: bool = False
    deterministic: bool = False
    track: str | Sequence[str] = ()
    figures: bool = True
    after_epoch: Callable[[dict], None] | None = None

    def __post_init__(self):
        self._check_types()
        self.config = dict(self.config or {})
        if self.epochs is not None:
            self.config["max_epochs"] = self.epochs
        self.seeds = tuple(np.atleast_1d(self.seeds).tolist())  # a number, a sequence or an array
        if isinstance(self.track, str):
            self.track = (self.track,)
        self.name = self.name or self.model_name
        self._check()

    def _check_types(self) -> None:
        """Raise ConfigError for the first option of a wrong type."""
        for option in ("model_name", "dataset_name", "name", "device"):
            if not isinstance(getattr(self, option), str):
                raise ConfigError(f"{option}: {getattr(self, option)!r} is not a string.")
        for option in ("config_file", "model_save_dir", "res_save_dir", "log_dir", "init_from"):
            if not isinstance(getattr(self, option), str | os.PathLike):
                raise ConfigError(f"{option}: {getattr(self, option)!r} is not a path.")
        if not isinstance(self.config, dict | None):
            raise ConfigError(f"config: {self.config!r} is not a dict of settings.")
        if type(self.num_workers) is not int or self.num_workers < 0:
            raise ConfigError(f"--num-workers: {self.num_workers!r}; expected an integer from 0.")
        if self.verbose_level not in (0, 1, 2):
            raise ConfigError(f"--verbose: {self.verbose_level!r}; expected 0, 1 or 2.")

    def _check(self) -> None:
        """Raise ConfigError for the first option that is invalid."""
        for seed in self.seeds:
            if type(seed) is not int or not 0 <= seed <= MAX_SEED:
                raise ConfigError(f"--seeds: {seed} is not an integer between 0 and {MAX_SEED}.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"--seeds: {list(self.seeds)}; expected one or more different seeds.")
        if Path(self.name).name != self.name or len(self.name.encode()) > MAX_NAME_BYTES:
            raise ConfigError(
                f"--name: '{self.name}' cannot name a folder; expected at most {MAX_NAME_BYTES} "
                "characters and no slash."
            )
        if self.resume and self.overwrite:
            raise ConfigError(
                "--resume continues a run and --overwrite replaces it: give only one."
            )
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"--precision: '{self.precision}' is unknown; expected one of "
                f"{', '.join(PRECISIONS)}."
            )
        for tracker in self.track:
            if tracker not in TRACKERS:
                raise ConfigError(
                    f"--track: '{tracker}' is unknown; expected some of {', '.join(TRACKERS)}."
                )

    def load_settings(self) -> EasyDict:
        """Resolve the hyper-parameters: defaults < config file < overrides.

        Returns:
            Every setting of `config.schema.DMDConfig`, with `model_name` and `dataset_name`.

        Raises:
            ConfigError: Config file or overrides are invalid.
        """
        return load_config(self.model_name, self.dataset_name, self.config_file, self.config)

    def with_overrides(self, where: str, overrides: dict, **changes) -> "RunOptions":
        """Copy the options, and add overrides from a file to those of the command line.

        Args:
            where: The file, and the place in it, for error messages.
            overrides: Settings by key.
            **changes: Other fields that the copy should have.

        Raises:
            ConfigError: An override is invalid, or the command line sets the same key.
        """
        for key in overrides:
            if key in self.config:
                raise ConfigError(
                    f"{where}: {key} is set on the command line too. Remove one of the two."
                )
        options = replace(self, config={**self.config, **overrides}, **changes)
        try:
            options.load_settings()
        except ConfigError as error:
            message = str(error).removeprefix(f"{COMMAND_LINE}: ")
            raise ConfigError(f"{where}: {message}") from error
        return options

    @property
    def feature_overrides(self) -> dict[str, str]:
        """The feature files that replace a modality, by their keys in run.json."""
        return {
            "feature_T": str(self.feature_T),
            "feature_A": str(self.feature_A),
            "feature_V": str(self.feature_V),
        }


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of RunOptions; a flag that is not given leaves the default of its field.

    Args:
        parser: A parser whose `argument_default` is argparse.SUPPRESS.
    """
    add = parser.add_argument
    add(
        "-d",
        "--dataset",
        dest="dataset_name",
        required=True,
        metavar="NAME",
        help="mosi, mosei, mosi-glove, mosei-glove, synthetic, or a data set of the config",
    )
    add(
        "-c",
        "--config",
        dest="config_file",
        metavar="FILE.json",
        help="JSON config (default: config/config.json)",
    )
    add(
        "--set",
        dest="config",
        nargs="+",
        action="extend",
        metavar="KEY=VALUE",
        help="override settings; config/schema.py documents the keys",
    )
    add(
        "-s",
        "--seeds",
        nargs="+",
        type=int,
        metavar="N",
        help="one run for each seed (default: 1111)",
    )
    add(
        "-Ft", "--feature-T", metavar="FILE.pkl", help="pickle whose text features replace the text"
    )
    add(
        "-Fa",
        "--feature-A",
        metavar="FILE.pkl",
        help="pickle whose audio features replace the audio",
    )
    add(
        "-Fv",
        "--feature-V",
        metavar="FILE.pkl",
        help="pickle whose vision features replace the vision",
    )
    add("-n", "--num-workers", type=int, metavar="N", help="data loader processes (default: 0)")
    add(
        "-v",
        "--verbose",
        dest="verbose_level",
        type=int,
        choices=(0, 1, 2),
        help="log errors only, info (default), or also every loss term",
    )
    add("--model-save-dir", metavar="DIR", help="folder of checkpoints (default: pt)")
    add("--res-save-dir", metavar="DIR", help="folder of results (default: result)")
    add("--log-dir", metavar="DIR", help="folder of logs (default: log)")
    add("--device", help="auto (default), cpu, cuda or cuda:N")
    add("--name", help="prefix of the run's folders (default: dmd)")
    add("--epochs", type=int, metavar="N", help="maximum number of epochs (overrides max_epochs)")
    add(
        "--init-from",
        metavar="FILE.pth",
        help="initialize from the weights of a checkpoint that match by name and shape",
    )
    add("--init", action=RenamedFlag, nargs="?", const="--init-from", help=argparse.SUPPRESS)
    add(
        "--precision",
        choices=PRECISIONS,
        help="fp32 (default), tf32 (CUDA) or bf16 (faster, less exact)",
    )
    add("--compile", action="store_true", help="torch.compile the forward pass and the losses")
    add("--resume", action="store_true", help="continue the run of this name, or start it")
    add("--overwrite", action="store_true", help="overwrite the run of this name")
    add("--deterministic", action="store_true", help="bitwise reproducible on CUDA too")
    add("--track", nargs="+", choices=TRACKERS, help="log every epoch to experiment trackers")
    add("--no-figures", dest="figures", action="store_false", help="do not draw figures at the end")


def parse_flags(argv: Sequence[str] | None) -> tuple[argparse.Namespace, RunOptions]:
    """Parse the command line of run.py.

    Args:
        argv: Command-line arguments; None for sys.argv[1:].

    Returns:
        The flags that select suites and sweeps (`suite`, `tune`, `search`, `storage`), and the
        options of the run.
    """
    # No abbreviations, because the command that resumes a run is made of these words.
    parser = ArgumentParser(
        description="Train and evaluate DMD.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add_flags(parser)
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--suite",
        default="",
        metavar="NAME",
        help="train the rows of table3, losses, heads or a JSON file",
    )
    action.add_argument(
        "--tune",
        type=int,
        default=None,
        metavar="N",
        help="search settings until the study has N trials",
    )
    parser.add_argument(
        "--search", default="", metavar="FILE.json", help="the settings that --tune searches"
    )
    parser.add_argument(
        "--storage",
        default="",
        metavar="URL",
        help="database of the study (default: an SQLite file)",
    )
    CommandState.discarded_runs = False
    flags = parser.parse_args(argv)
    chosen = vars(flags).copy()
    for name in ("suite", "tune", "search", "storage"):
        del chosen[name]
    chosen["config"] = parse_overrides(chosen.get("config", []))
    return flags, RunOptions(**chosen)
