"""The training recipe of the release: accumulate, clip, step; evaluate every epoch; stop when nothing improves."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader

from models.distillation import EDGE_NAMES
from models.dmd import DMD
from trainers.evaluate import Predictions, predict, to_device
from trainers.flat import FlatParameters
from trainers.losses import LossTerms, Objective
from utils.checkpoint import load_weights
from utils.metrics import CORE_METRICS, LOWER_IS_BETTER, format_metrics
from utils.results import RunFolder
from utils.runtime import autocast, logger, progress


@dataclass(frozen=True)
class TrainedEpoch:
    """Means over the batches of an epoch, and the predictions made while training."""

    losses: dict[str, float]
    edges: dict[str, float]
    predictions: Predictions

    def columns(self) -> dict[str, float]:
        """Losses and edges as columns of history.csv."""
        return _prefixed({"loss": self.losses, "edge": self.edges})


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

    def fit(self, run: RunFolder) -> dict[str, float]:
        """Train until `early_stop` epochs bring nothing better (or `max_epochs`); leave the best weights loaded.

        -> TEST metrics of the best epoch, with `epoch` and its `valid_<KeyEval>`
        """
        args = self.args
        lower_is_better = args.KeyEval in LOWER_IS_BETTER
        epoch, best_epoch, best_value = 0, 0, float("nan")
        while epoch - best_epoch < args.early_stop and epoch != args.max_epochs:
            epoch += 1
            started = time.perf_counter()
            trained = self.train_epoch(run.check_writing)
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
            is_best = best_epoch == 0 or improvement >= args.min_improvement
            if is_best:
                best_epoch, best_value = epoch, value
            run.save_epoch(self.model, epoch, is_best)  # returns at once; the next epoch trains meanwhile
            seconds = {"train_seconds": train_seconds, "seconds": time.perf_counter() - started}
            row = {"epoch": epoch, "best_epoch": best_epoch, "learning_rate": learning_rate} | seconds
            run.append_history(row | trained.columns() | _prefixed(metrics))
        run.finish_writing()
        logger.info(f"Stopped after epoch {epoch}. The best, by {args.KeyEval} on valid, is epoch {best_epoch}:")
        load_weights(self.model, run.best)
        return {"epoch": best_epoch, f"valid_{args.KeyEval}": best_value} | self.evaluate("test")

    def train_epoch(self, between_batches: Callable[[], None] = lambda: None) -> TrainedEpoch:
        """One pass over the train split; `between_batches` is called before each batch.

        Parity: gradients of `update_epochs` batches add up unscaled and are clipped after every backward; the
        batches left over at the end of the epoch never reach the optimizer. The published numbers were obtained
        that way. With `leftover_batches` step they get a step of their own, unscaled too.
        """
        self.model.train()
        self.objective.train()
        group = self.args.update_epochs
        losses, edges, predicted, labels = [], [], [], []
        names: list[str] = []
        for index, batch in enumerate(progress(self.loaders["train"], "train")):
            between_batches()
            if index % group == 0:
                self.parameters.zero_grad()
            output, terms, target = self.training_step(batch)
            if (index + 1) % group == 0:
                self.optimizer.step()
            names = list(terms)
            # Collected on the device and read once an epoch: reading a value makes the host wait for the device.
            losses.append(torch.stack([terms[name].detach() for name in names]))
            edges.append(torch.cat([terms.edges[graph].detach().mean(dim=1) for graph in ("homo", "hetero")]))
            predicted.append(output.detach().clone())
            labels.append(target)
        if self.steps_at_epoch_end:
            self.optimizer.step()
        mean_losses = torch.stack(losses).double().mean(dim=0).tolist()
        mean_edges = torch.stack(edges).double().mean(dim=0).tolist()
        edge_names = [f"{graph}_{name}" for graph in ("homo", "hetero") for name in EDGE_NAMES]
        by_name = dict(zip(names, mean_losses, strict=True))
        predictions = Predictions.collect(predicted, labels, by_name["task/all"])
        return TrainedEpoch(by_name, dict(zip(edge_names, mean_edges, strict=True)), predictions)

    def training_step(self, batch: dict) -> tuple[torch.Tensor, LossTerms, torch.Tensor]:
        """Forward, losses, backward, clipping for one batch.  -> prediction (B, 1), loss terms, labels (B, 1)"""
        inputs = to_device(batch, self.device)
        # The smaller last batch of an epoch is not worth a compilation of its own.
        compute = self.compute if len(inputs[-1]) == self.args.batch_size else self.forward
        output, terms = compute(*inputs)
        terms["total"].backward()
        if self.args.grad_clip != -1:
            self.parameters.clip_grad_value(self.args.grad_clip)
        return output, terms, inputs[-1]

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
