"""What the seeds of one command have in common, and the training of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from easydict import EasyDict
from torch.utils.data import DataLoader

from dataset.features import FeatureSet
from dataset.loaders import make_loaders
from trainers.losses import Objective
from trainers.ranks import Ranks
from trainers.setup import build_model
from trainers.trainer import Trainer, count_parameters
from utils.figures import draw_after_training
from utils.results import RunFolder, check_earlier_runs
from utils.runtime import logger, set_seed
from utils.tracking import tracked


@dataclass(frozen=True)
class Session:
    """Settings, data and device of a command.

    description  what config.json says of it, with `precision` and `compile`
    track        trackers by name; after_epoch: called with every row of history.csv
    figures      draw each run at its end
    replaced     earlier runs that are void once the first one is known to be possible: a command that is interrupted
                 and resumed must not take what they have left for its own
    """

    args: EasyDict
    features: FeatureSet
    device: torch.device
    ranks: Ranks
    description: dict
    num_workers: int = 0
    resume: bool = False
    overwrite: bool = False
    track: Sequence[str] = ()
    after_epoch: Callable[[dict], None] = lambda row: None
    figures: bool = False
    replaced: Sequence[RunFolder] = ()

    def train(self, seed: int, number: int, run: RunFolder) -> dict:
        """Train with one seed, the `number`th of the command, or tell the result where that has been done.

        -> seed, and TEST metrics of the best epoch. Nothing is written before model and data are known to fit.
        """
        if self.resume and not run.exists:
            logger.warning(f"Seed {seed}: there is no run {run.name} to resume; it begins here.")
        metrics = run.finished(self.description) if self.resume else None
        if metrics is not None:
            logger.info(f"Seed {seed}: {run.name} is finished, with its best epoch {metrics['epoch']}.")
            return metrics
        trainer = self._trainer(seed, number)
        replaced = self.replaced if number == 1 else ()
        if not self.resume:
            self._check_space(run, trainer, replaced=replaced)
        for earlier in replaced:
            earlier.discard()
        with run.open():
            if self.ranks.rank == 0:  # another process may have finished it since the command began
                check_earlier_runs([run], self.resume, self.overwrite)
            description = {"seed": seed} | self.description
            state = run.resume(trainer.model, description) if self.resume else run.start(description)
            if self.resume:
                self._check_space(run, trainer, epochs_done=state["epoch"] if state else 0)
            parameters = count_parameters(trainer.model, trainer.objective)
            logger.info(f"Seed {seed}: {parameters} parameters, checkpoints in {run.checkpoints}.")
            if state:
                logger.info(f"Seed {seed}: resumed behind epoch {state['epoch']}.")
            trackers = self.track if self.ranks.rank == 0 else ()
            with tracked(trackers, run, {"seed": seed} | self.description["settings"]) as send:
                metrics, predictions = trainer.fit(run, state, [send, self.after_epoch])
            run.save_predictions(self.features.splits["test"].ids, predictions)
            run.save_metrics({"seed": seed} | metrics)
            if self.figures and self.ranks.rank == 0:
                # Of several ranks, each has its share only.
                everything = (trainer.loaders if self.ranks.size == 1 else self._loaders(seed, Ranks()))["test"]
                draw_after_training(run.results, run.best, trainer.model, everything, self.device, trainer.precision)
        return {"seed": seed} | metrics

    def _loaders(self, seed: int, ranks: Ranks) -> dict[str, DataLoader]:
        sizes = (self.args.batch_size, self.args.eval_batch_size)
        return make_loaders(
            self.features, *sizes, seed, self.num_workers, self.device, rank=ranks.rank, ranks=ranks.size
        )

    def _trainer(self, seed: int, number: int) -> Trainer:
        args, ranks = self.args, self.ranks
        set_seed(seed)
        model, objective = build_model(args, self.features), Objective(args)
        if ranks.rank:  # the same weights on all ranks, then draws of its own
            set_seed((seed + ranks.rank) % 2**32)
        precision, compiled = self.description["precision"], self.description["compile"]
        return Trainer(
            args, model, objective, self._loaders(seed, ranks), self.device, number, precision, compiled, ranks
        )

    def _check_space(
        self, run: RunFolder, trainer: Trainer, epochs_done: int = 0, replaced: Sequence[RunFolder] = ()
    ) -> None:
        """Raise RunError where there is no room for the least that the run can leave."""
        args = self.args
        weights = sum(x.nbytes for x in trainer.model.state_dict().values())
        state = 2 * 4 * count_parameters(trainer.model, trainer.objective)  # Adam's two averages
        epochs = max(1, min(args.early_stop + 1, args.max_epochs or args.early_stop + 1) - epochs_done)
        keep = None if args.keep_checkpoints == "all" else args.keep_checkpoints
        run.check_space(weights, state, epochs, keep, replaced)
