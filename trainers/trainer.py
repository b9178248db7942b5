"""The training recipe of the release.

Accumulate gradients, clip them, step; evaluate every epoch; stop when nothing improves.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.distillation import EDGE_NAMES
from models.dmd import DMD
from trainers import distributed
from trainers.evaluate import Predictions, in_file_order, log_metrics, predict, to_device
from trainers.losses import LossTerms, Objective
from utils.device import autocast, choose_tf32
from utils.errors import NumericalError
from utils.log import logger, progress
from utils.metrics import CORE_METRICS, LOWER_IS_BETTER, format_metrics
from utils.ranks import rank
from utils.seed import random_state, set_random_state

GRAPHS = ("homo", "hetero")


@dataclass
class BatchResult:
    """The results of a batch: tensors on the device, without gradients.

    Reading a value makes the host wait for the device, so it is done for many batches at once.

    Attributes:
        predicted, labels: (B, 1)
        rows: (B,) numbers of the utterances in the train split.
        loss_names: Names of the loss terms.
        losses: (number of terms,)
        edges: (12,) means over the batch, of the homogeneous, then of the heterogeneous graph.
        gradient_norm: () of the accumulated gradients; finite if they are (up to 1e19).
    """

    predicted: Tensor
    labels: Tensor
    rows: Tensor
    loss_names: list[str]
    losses: Tensor
    edges: Tensor
    gradient_norm: Tensor


@dataclass
class TrainedEpoch:
    """Means over the batches of an epoch, and the predictions made while training."""

    losses: dict[str, float]
    edges: dict[str, float]
    predictions: Predictions


@dataclass
class EpochResult:
    """The results of an epoch, reported by `Trainer.fit`.

    Attributes:
        epoch: Number of the epoch, from 1.
        best_epoch: The best epoch so far.
        learning_rate: The learning rate of the epoch.
        train_seconds: Seconds of training.
        seconds: Seconds of training and evaluation.
        losses: Mean of each loss term over the batches.
        edges: Mean of each edge weight over the batches.
        metrics: Metrics by split: train, valid, test.
    """

    epoch: int
    best_epoch: int
    learning_rate: float
    train_seconds: float
    seconds: float
    losses: dict[str, float]
    edges: dict[str, float]
    metrics: dict[str, dict[str, float]]

    def to_row(self) -> dict[str, float]:
        """Make the row of history.csv, with columns such as `loss/total` and `test/MAE`."""
        row = {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "learning_rate": self.learning_rate,
            "train_seconds": self.train_seconds,
            "seconds": self.seconds,
        }
        for group, values in {"loss": self.losses, "edge": self.edges, **self.metrics}.items():
            for name, value in values.items():
                row[f"{group}/{name}"] = value
        return row


class Trainer:
    """Train one model with one seed.

    Args:
        args: The settings.
        model: The model; it is moved to the device.
        objective: The objective, with the two trained graphs; it is moved to the device.
        loaders: Loaders of train, valid and test.
        device: Device to compute on.
        seed_number: Number of the seed among those of a command, for the log.
        precision: fp32, tf32 (CUDA) or bf16 (autocast of the model; losses stay in fp32).
        compile: Run the forward pass and the losses through torch.compile.

    Attributes:
        epoch: The last epoch that was trained; 0 before the first.
        best_epoch: The best epoch so far by `KeyEval` on valid; 0 before the first.
        best_value: Its `KeyEval`.
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
        compile: bool = False,
    ):
        self.args = args
        self.device = device
        self.loaders = loaders
        self.seed_number = seed_number
        self.precision = precision
        self.model = model.to(device)
        self.objective = objective.to(device)
        self.all_parameters = [*self.model.parameters(), *self.objective.parameters()]
        self.epoch = 0
        self.best_epoch = 0
        self.best_value = math.nan
        # Parity: the release's config has weight_decay, but Adam does not get it.
        self.optimizer = torch.optim.Adam(
            self._parameter_groups(),
            lr=args.learning_rate,
            betas=tuple(args.adam_betas),
            eps=args.adam_eps,
            weight_decay=args.weight_decay if args.weight_decay_applied else 0.0,
            fused=device.type in ("cpu", "cuda"),
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, mode="min", factor=args.scheduler_factor, patience=args.patience
        )
        # The function, not the bound method: a reference to this object would keep it, and all its
        # GPU memory, until Python's garbage collector runs. No CUDA graphs, because a replay would
        # overwrite accumulated gradients.
        self.compiled_forward = None
        if compile:
            self.compiled_forward = torch.compile(type(self).forward, dynamic=False)
        self.takes_last_step = self._takes_last_step()

    def _parameter_groups(self) -> list[dict]:
        """One group for BERT, model and graphs (parity); two with `learning_rate_bert`."""
        if self.args.learning_rate_bert is None or not self.args.use_bert:
            return [{"params": self.all_parameters}]
        bert = list(self.model.text_model.parameters())
        bert_ids = {id(parameter) for parameter in bert}
        rest = [parameter for parameter in self.all_parameters if id(parameter) not in bert_ids]
        return [{"params": rest}, {"params": bert, "lr": self.args.learning_rate_bert}]

    def _takes_last_step(self) -> bool:
        """Whether the last, incomplete group of batches of an epoch gets a step."""
        batches = len(self.loaders["train"])
        if self.args.leftover_batches == "step":
            return batches % self.args.update_epochs > 0
        if batches < self.args.update_epochs:
            logger.warning(
                f"{batches} batches are fewer than update_epochs={self.args.update_epochs}: one "
                "step per epoch."
            )
            return True
        return False

    def fit(self, on_epoch_end: Callable[[EpochResult], None] | None = None) -> None:
        """Train until `early_stop` epochs bring no improvement, or until `max_epochs`.

        A trainer that has loaded the state of another continues where that one stopped.

        Args:
            on_epoch_end: Called after every epoch; an exception ends the training.
        """
        while not self.is_finished():
            result = self.run_epoch()
            if on_epoch_end is not None:
                on_epoch_end(result)
        logger.info(
            f"Stopped after epoch {self.epoch}. The best, by {self.args.KeyEval} on valid, is "
            f"epoch {self.best_epoch}:"
        )

    def is_finished(self) -> bool:
        """Whether training has reached its end."""
        if self.args.max_epochs is not None and self.epoch >= self.args.max_epochs:
            return True
        return self.epoch - self.best_epoch >= self.args.early_stop

    def run_epoch(self) -> EpochResult:
        """Train for one epoch, evaluate on valid and test, and adapt the learning rate."""
        self.epoch += 1
        started = time.perf_counter()
        trained = self.train_epoch()
        train_seconds = time.perf_counter() - started
        train_metrics = trained.predictions.metrics()
        self._log_training(trained.losses, train_metrics)
        valid_metrics = self.evaluate("valid").metrics()
        test_metrics = self.evaluate("test").metrics()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step(valid_metrics["Loss"])
        self._update_best(valid_metrics[self.args.KeyEval])
        return EpochResult(
            epoch=self.epoch,
            best_epoch=self.best_epoch,
            learning_rate=learning_rate,
            train_seconds=train_seconds,
            seconds=time.perf_counter() - started,
            losses=trained.losses,
            edges=trained.edges,
            metrics={"train": train_metrics, "valid": valid_metrics, "test": test_metrics},
        )

    def _log_training(self, losses: dict[str, float], metrics: dict[str, float]) -> None:
        """Log the TRAIN line of the release: [epochs since the best/epoch/seed number]."""
        counts = f"[{self.epoch - self.best_epoch}/{self.epoch}/{self.seed_number}]"
        logger.info(
            f">> Epoch: {self.epoch} TRAIN-({self.args.model_name}) {counts} "
            f">> total_loss: {round(losses['total'], 4)} {format_metrics(metrics, CORE_METRICS)}"
        )
        logger.debug(f"Loss terms: {format_metrics(losses, tuple(losses))}")

    def _update_best(self, value: float) -> None:
        """Record the epoch as the best one if its KeyEval improves by `min_improvement`."""
        if self.args.KeyEval in LOWER_IS_BETTER:
            improvement = self.best_value - value
        else:
            improvement = value - self.best_value
        if self.best_epoch == 0 or improvement >= self.args.min_improvement:
            self.best_epoch = self.epoch
            self.best_value = value

    def train_epoch(self) -> TrainedEpoch:
        """Train on every batch of the train split once.

        Parity: gradients of `update_epochs` batches add up unscaled and are clipped after every
        backward pass; the batches left over at the end of the epoch never reach the optimizer. The
        published results were obtained that way. With `leftover_batches` step they get their own
        step, also unscaled.

        Raises:
            NumericalError: A loss or gradient is not finite; raised before the optimizer takes a
                step with it.
        """
        self.model.train()
        self.objective.train()
        results: list[BatchResult] = []
        pending: list[BatchResult] = []  # since the optimizer's last step
        for batch in progress(self.loaders["train"], "train"):
            if not pending:
                self.optimizer.zero_grad()
            pending.append(self.training_step(batch))
            if len(pending) == self.args.update_epochs:
                self._check_finite(pending)
                self.optimizer.step()
                results += pending
                pending = []
        if pending:  # counted in the means, even if no step follows
            self._check_finite(pending)
            if self.takes_last_step:
                self.optimizer.step()
            results += pending
        return self._summarize(results)

    def training_step(self, batch: dict[str, Tensor]) -> BatchResult:
        """Forward pass, losses, backward pass and clipping for one batch; gradients add up."""
        text, audio, vision, labels = to_device(batch, self.device)
        choose_tf32(self.precision)  # here, because torch.compile would run it at another time
        # The smaller last batch of an epoch is not worth a separate compilation.
        if self.compiled_forward is not None and len(labels) == self.args.batch_size:
            predicted, terms = self.compiled_forward(self, text, audio, vision, labels)
        else:
            predicted, terms = self.forward(text, audio, vision, labels)
        terms["total"].backward()
        distributed.average_gradients(self.all_parameters)
        gradients = [p.grad for p in self.all_parameters if p.grad is not None]
        gradient_norm = nn.utils.get_total_norm(gradients)  # before the clipping hides infinities
        if self.args.grad_clip != -1:
            nn.utils.clip_grad_value_(self.all_parameters, self.args.grad_clip)
        edge_means = [terms.edges[graph].detach().mean(dim=1) for graph in GRAPHS]
        return BatchResult(
            # Copies, because a tensor of a loader process keeps a file open while it is in use.
            predicted=predicted.detach().clone(),
            labels=labels.clone(),
            rows=batch["rows"].clone(),
            loss_names=list(terms),
            losses=torch.stack(list(terms.values())).detach(),
            edges=torch.cat(edge_means),
            gradient_norm=gradient_norm,
        )

    def forward(
        self, text: Tensor, audio: Tensor, vision: Tensor, labels: Tensor
    ) -> tuple[Tensor, LossTerms]:
        """Run the model on this process's shard of a batch, and the objective on the whole batch.

        Returns:
            The prediction (B, 1), and the loss terms.
        """
        with autocast(self.device, self.precision):
            shards = distributed.shard(text), distributed.shard(audio), distributed.shard(vision)
            output = self.model(*shards)
        output = output.map(lambda x: distributed.all_gather(x.float(), len(labels)))
        return output.output_logit, self.objective(output, labels)

    def _check_finite(self, results: Sequence[BatchResult]) -> None:
        """Raise NumericalError if a loss or gradient of these batches is not finite."""
        values = []
        for result in results:
            total = result.losses[result.loss_names.index("total")]
            values.append(torch.stack([total, result.gradient_norm]))
        finite = torch.stack(values).isfinite().all(dim=1).tolist()  # the host waits for the device
        if all(finite):
            return
        result = results[finite.index(False)]
        what = "all losses are finite, but a gradient is"
        for name, value in zip(result.loss_names, result.losses.tolist(), strict=True):
            if not math.isfinite(value):
                what = f"the loss term {name} is"
                break
        bad = ~result.predicted.flatten().isfinite().cpu()
        rows = result.rows.cpu()
        if bad.any():
            rows = rows[bad]
        ids = self.loaders["train"].dataset.ids
        names = ", ".join(ids[row] for row in rows.tolist())
        raise NumericalError(
            f"epoch {self.epoch}: {what} not finite, in the batch with the utterances {names}. No "
            "step was taken with it; the checkpoints of earlier epochs are valid. Lower the "
            "learning_rate, or look for extreme features in these utterances."
        )

    def _summarize(self, results: Sequence[BatchResult]) -> TrainedEpoch:
        """Means of losses and edges over the batches, and all predictions in file order."""
        names = results[0].loss_names
        loss_means = torch.stack([result.losses for result in results]).double().mean(dim=0)
        losses = dict(zip(names, loss_means.tolist(), strict=True))
        edge_means = torch.stack([result.edges for result in results]).double().mean(dim=0)
        edge_names = [f"{graph}_{edge}" for graph in GRAPHS for edge in EDGE_NAMES]
        edges = dict(zip(edge_names, edge_means.tolist(), strict=True))
        predicted, labels = in_file_order(
            [result.predicted for result in results],
            [result.labels for result in results],
            [result.rows for result in results],
        )
        # Parity: the Loss of train is the mean over its batches, as they were trained.
        predictions = Predictions(predicted.numpy(), labels.numpy(), losses["task/all"])
        return TrainedEpoch(losses, edges, predictions)

    def evaluate(self, split: str) -> Predictions:
        """Predict a split with the current weights, and log its metrics as VAL or TEST."""
        predictions = predict(self.model, self.loaders[split], self.device, split, self.precision)
        log_metrics(split, self.args.model_name, predictions.metrics())
        return predictions

    def state_dict(self) -> dict:
        """Everything that determines how training continues, except the weights of the model."""
        return {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.loaders["train"].generator.get_state(),
            "random": distributed.all_gather_objects(random_state()),
        }

    def load_state_dict(self, state: dict) -> None:
        """Load a state that `state_dict` returned; PyTorch raises if it is another model's."""
        self.epoch = state["epoch"]
        self.best_epoch = state["best_epoch"]
        self.best_value = state["best_value"]
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.loaders["train"].generator.set_state(state["order"])
        random_states = state["random"]
        if rank() < len(random_states):  # otherwise this process is new, and draws from its seed
            set_random_state(random_states[rank()])
