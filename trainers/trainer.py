"""The training recipe of the release: accumulate, clip, step; evaluate every epoch; stop when nothing improves."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from models.distillation import EDGE_NAMES
from models.dmd import DMD
from trainers.evaluate import Predictions, name_some, predict, to_device
from trainers.flat import FlatParameters
from trainers.losses import LossTerms, Objective
from utils.checkpoint import load_weights
from utils.errors import CheckpointError, NumericalError
from utils.metrics import CORE_METRICS, LOWER_IS_BETTER, format_metrics
from utils.results import RunFolder
from utils.runtime import autocast, logger, progress, random_state, set_random_state


@dataclass(frozen=True)
class TrainedEpoch:
    """Means over the batches of an epoch, and the predictions made while training."""

    losses: dict[str, float]
    edges: dict[str, float]
    predictions: Predictions

    def columns(self) -> dict[str, float]:
        """Losses and edges as columns of history.csv."""
        return _prefixed({"loss": self.losses, "edge": self.edges})


class Step(NamedTuple):
    """What a training step leaves: tensors on the device, without gradients. Reading a value makes the host wait for
    the device, so that this is done for many steps at once."""

    predicted: torch.Tensor  # (B, 1)
    labels: torch.Tensor  # (B, 1)
    rows: torch.Tensor  # (B) of the train split
    names: list[str]  # of the loss terms
    losses: torch.Tensor  # (number of names)
    edges: torch.Tensor  # (12) batch means
    gradient_sum: torch.Tensor  # () over all parameters, of the accumulated gradients; finite if they are


class Trainer:
    """Trains one model with one seed.

    `seed_number` counts the seeds of a command from 1; it only appears in the log. `precision` is fp32 or bf16
    (autocast of the model; losses and metrics stay in fp32), `compiled` runs forward and losses through
    torch.compile.
    """

    def __init__(
        self,
        args,
        model: DMD,
        objective: Objective,
        loaders: dict[str, DataLoader],
        device: torch.device,
        seed_number: int = 1,
        precision: str = "fp32",
        compiled: bool = False,
    ):
        self.args, self.device, self.loaders, self.seed_number = args, device, loaders, seed_number
        self.precision = precision
        self.model, self.objective = model.to(device), objective.to(device)
        self.parameters = FlatParameters([*self.model.parameters(), *self.objective.parameters()])
        # Parity: one group for BERT, model and graphs; the release has weight_decay in its config and never hands it
        # over. Applied, it is Adam's: added to the clipped gradients, also to the zeros of unused parameters.
        self.optimizer = torch.optim.Adam(
            [self.parameters.values],
            lr=args.learning_rate,
            betas=tuple(args.adam_betas),
            eps=args.adam_eps,
            weight_decay=args.weight_decay if args.weight_decay_applied else 0.0,
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, mode="min", factor=args.scheduler_factor, patience=args.patience
        )
        self.compute = self.forward
        if compiled:
            # On CUDA "reduce-overhead" captures forward and backward as graphs.
            mode = "reduce-overhead" if device.type == "cuda" else "default"
            self.compute = torch.compile(self.forward, mode=mode, dynamic=False)
        batches = len(loaders["train"])
        steps_leftover = args.leftover_batches == "step" and batches % args.update_epochs > 0
        self.steps_at_epoch_end = steps_leftover or batches < args.update_epochs
        if self.steps_at_epoch_end and not steps_leftover:
            logger.warning(
                f"The train split has {batches} batches, fewer than update_epochs {args.update_epochs}: stepping once "
                "at the end of each epoch (the released code would never step)."
            )

    def fit(
        self, run: RunFolder, resumed: dict | None = None, after_epoch: Sequence[Callable[[dict], None]] = ()
    ) -> dict[str, float]:
        """Train until `early_stop` epochs bring nothing better (or `max_epochs`); leave the best weights loaded.

        resumed: the training state of the last complete epoch, whose weights the model has, to go on from there
        after_epoch: each is called with the epoch's row of history.csv, whose writing has begun; what one raises ends
        the training
        -> TEST metrics of the best epoch, with `epoch` and its `valid_<KeyEval>`
        """
        args = self.args
        lower_is_better = args.KeyEval in LOWER_IS_BETTER
        keep = None if args.keep_checkpoints == "all" else args.keep_checkpoints
        epoch, best_epoch, best_value = 0, 0, float("nan")
        if resumed is not None:
            epoch, best_epoch, best_value = (resumed[key] for key in ("epoch", "best_epoch", "best_value"))
            self.load_state(resumed)
        while epoch - best_epoch < args.early_stop and (args.max_epochs is None or epoch < args.max_epochs):
            epoch += 1
            started = time.perf_counter()
            trained = self.train_epoch(run.check_writing, epoch)
            train_seconds = time.perf_counter() - started
            train = trained.predictions.metrics()
            logger.info(
                f">> Epoch: {epoch} TRAIN-({args.model_name}) [{epoch - best_epoch}/{epoch}/{self.seed_number}] "
                f">> total_loss: {round(trained.losses['total'], 4)} {format_metrics(train, CORE_METRICS)}"
            )
            metrics = {"train": train, "valid": self.evaluate("valid"), "test": self.evaluate("test")}
            learning_rate = self.optimizer.param_groups[0]["lr"]
            self.scheduler.step(metrics["valid"]["Loss"])

            value = metrics["valid"][args.KeyEval]
            improvement = best_value - value if lower_is_better else value - best_value
            # The first epoch is the best so far, whatever it is.
            if best_epoch == 0 or improvement >= args.min_improvement:
                best_epoch, best_value = epoch, value
            seconds = {"train_seconds": train_seconds, "seconds": time.perf_counter() - started}
            row = {"epoch": epoch, "best_epoch": best_epoch, "learning_rate": learning_rate} | seconds
            row |= trained.columns() | _prefixed(metrics)
            state = {"epoch": epoch, "best_epoch": best_epoch, "best_value": best_value} | self.state()
            run.save_epoch(self.model, state, row, best_epoch, keep)  # returns at once; the next epoch trains meanwhile
            for call in after_epoch:
                call(row)
        run.finish_writing()
        logger.info(f"Stopped after epoch {epoch}. The best, by {args.KeyEval} on valid, is epoch {best_epoch}:")
        load_weights(self.model, run.best)
        return {"epoch": best_epoch, f"valid_{args.KeyEval}": best_value} | self.evaluate("test")

    def state(self) -> dict:
        """What decides how training goes on, besides the weights of the model."""
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.loaders["train"].generator.get_state(),
            "random": random_state(),
        }

    def load_state(self, state: dict) -> None:
        """Go on from what `state` told. Raises CheckpointError where it belongs to another model."""
        try:
            self.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.loaders["train"].generator.set_state(state["order"])
            set_random_state(state["random"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the training state does not fit the model ({error}). Use --overwrite.") from error

    def train_epoch(self, between_batches: Callable[[], None] = lambda: None, epoch: int = 1) -> TrainedEpoch:
        """One pass over the train split; `between_batches` is called before each batch.

        Raises NumericalError, before any step is taken, where a loss or a gradient is not finite.

        Parity: gradients of `update_epochs` batches add up unscaled and are clipped after every backward; the
        batches left over at the end of the epoch never reach the optimizer. The published numbers were obtained
        that way. With `leftover_batches` step they get a step of their own, unscaled too.
        """
        self.model.train()
        self.objective.train()
        steps: list[Step] = []
        checked = 0
        for index, batch in enumerate(progress(self.loaders["train"], "train")):
            between_batches()
            if index % self.args.update_epochs == 0:
                self.parameters.zero_grad()
            steps.append(self.training_step(batch))
            if (index + 1) % self.args.update_epochs == 0:
                self._check_finite(steps[checked:], epoch)
                checked = len(steps)
                self.optimizer.step()
        self._check_finite(steps[checked:], epoch)
        if self.steps_at_epoch_end:
            self.optimizer.step()
        losses = torch.stack([step.losses for step in steps]).double().mean(dim=0).tolist()
        edges = torch.stack([step.edges for step in steps]).double().mean(dim=0).tolist()
        by_name = dict(zip(steps[0].names, losses, strict=True))
        edge_names = [f"{graph}_{name}" for graph in ("homo", "hetero") for name in EDGE_NAMES]
        predicted, labels = ([getattr(step, side) for step in steps] for side in ("predicted", "labels"))
        predictions = Predictions.collect(predicted, labels, by_name["task/all"])
        return TrainedEpoch(by_name, dict(zip(edge_names, edges, strict=True)), predictions)

    def training_step(self, batch: dict) -> Step:
        """Forward, losses, backward, clipping for one batch."""
        *inputs, labels = to_device(batch, self.device)
        # The smaller last batch of an epoch is not worth a compilation of its own.
        compute = self.compute if len(labels) == self.args.batch_size else self.forward
        output, terms = compute(*inputs, labels)
        terms["total"].backward()
        gradient_sum = self.parameters.values.grad.sum()  # before the clipping, which hides infinities
        if self.args.grad_clip != -1:
            self.parameters.clip_grad_value(self.args.grad_clip)
        names = list(terms)
        losses = torch.stack([terms[name].detach() for name in names])
        edges = torch.cat([terms.edges[graph].detach().mean(dim=1) for graph in ("homo", "hetero")])
        return Step(output.detach().clone(), labels, batch["rows"], names, losses, edges, gradient_sum)

    def _check_finite(self, steps: list[Step], epoch: int) -> None:
        """Raise NumericalError where the losses or gradients of these batches are not finite."""
        if not steps:
            return
        totals = [torch.stack([step.losses[step.names.index("total")], step.gradient_sum]) for step in steps]
        finite = torch.stack(totals).isfinite().all(dim=1).tolist()  # the host waits for the device here alone
        if all(finite):
            return
        step = steps[finite.index(False)]
        terms = [name for name, value in zip(step.names, step.losses.tolist(), strict=True) if not math.isfinite(value)]
        what = f"the loss term {terms[0]} is" if terms else "all losses are finite, but a gradient is"
        bad = ~step.predicted.flatten().isfinite().cpu()
        rows = step.rows.cpu()[bad if bad.any() else slice(None)].tolist()
        ids = self.loaders["train"].dataset.ids
        raise NumericalError(
            f"epoch {epoch}: {what} not finite, in the batch with the utterances {name_some([ids[i] for i in rows])}. "
            "No step was taken with it; the checkpoints of the epochs before are good. Lower the learning_rate, or "
            "look for extreme features in these utterances."
        )

    def forward(self, text, audio, vision, labels) -> tuple[torch.Tensor, LossTerms]:
        """-> prediction (B, 1), loss terms"""
        with autocast(self.device, self.precision):
            output = self.model(text, audio, vision)
        if self.precision != "fp32":
            output = output.float()
        return output.output_logit, self.objective(output, labels)

    def evaluate(self, split: str) -> dict[str, float]:
        """Metrics of a split with the present weights, logged as VAL or TEST."""
        metrics = predict(self.model, self.loaders[split], self.device, split, self.precision).metrics()
        log_metrics(split, self.args.model_name, metrics)
        return metrics


def _prefixed(groups: dict[str, dict[str, float]]) -> dict[str, float]:
    """{"valid": {"MAE": 1}} -> {"valid/MAE": 1}"""
    return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}


def log_metrics(split: str, model_name: str, metrics: dict[str, float]) -> None:
    """One VAL or TEST line in the release's form."""
    name = {"train": "TRAIN", "valid": "VAL", "test": "TEST"}[split]
    logger.info(f"{name}-({model_name}) >> {format_metrics(metrics, (*CORE_METRICS, 'Loss'))}")


def count_parameters(*modules: nn.Module) -> int:
    """The number of parameters of all modules together."""
    return sum(p.numel() for module in modules for p in module.parameters())
