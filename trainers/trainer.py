"""The training recipe of the release: accumulate, clip, step; evaluate every epoch; stop when nothing improves."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from models.distillation import EDGE_NAMES
from models.dmd import DMD
from trainers import distributed
from trainers.checkpoint import load_weights
from trainers.evaluate import Predictions, in_order, predict, to_device
from trainers.losses import LossTerms, Objective
from trainers.runs import RunFolder
from utils.device import autocast, choose_tf32
from utils.errors import NumericalError
from utils.log import logger, progress
from utils.metrics import CORE_METRICS, LOWER_IS_BETTER, format_metrics
from utils.seed import random_state, set_random_state


class Step(NamedTuple):
    """Tensors on the device, without gradients. Reading a value makes the host wait for the device, so that this is
    done for many steps at once."""

    predicted: torch.Tensor  # (B, 1)
    labels: torch.Tensor  # (B, 1)
    rows: torch.Tensor  # (B) of the train split
    names: list[str]  # of the loss terms
    losses: torch.Tensor  # (number of names)
    edges: torch.Tensor  # (12) batch means
    gradient_norm: torch.Tensor  # () of all parameters' accumulated gradients; finite if they are (up to 1e19)


class TrainedEpoch(NamedTuple):
    """Means over the batches of an epoch, and the predictions made while training."""

    losses: dict[str, float]
    edges: dict[str, float]
    predictions: Predictions


class Trainer:
    """Trains one model with one seed.

    `seed_number` counts the seeds of a command, for the log. `precision` is fp32, tf32 (on CUDA) or bf16 (autocast of
    the model; losses and metrics stay in fp32); `compiled` runs forward and losses through torch.compile.
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
        self.parameters = [*self.model.parameters(), *self.objective.parameters()]
        # Parity: weight_decay is in the release's config and never given to Adam.
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
        # Without CUDA graphs, whose next replay would overwrite the gradients that a group of batches adds up; and not
        # bound to this object, which could then not be freed before Python's collector runs, with all that is on a GPU.
        self.compiled = torch.compile(type(self).forward, dynamic=False) if compiled else None
        batches = len(loaders["train"])
        steps_leftover = args.leftover_batches == "step" and batches % args.update_epochs > 0
        self.steps_at_epoch_end = steps_leftover or batches < args.update_epochs
        if self.steps_at_epoch_end and not steps_leftover:
            logger.warning(f"{batches} batches are fewer than update_epochs {args.update_epochs}: one step an epoch.")

    def _parameter_groups(self) -> list[dict]:
        """Parity: one group for BERT, model and graphs; with `learning_rate_bert`, BERT is one of its own."""
        if self.args.learning_rate_bert is None or not self.args.use_bert:
            return [{"params": self.parameters}]
        bert = list(self.model.text_model.parameters())
        rest = [p for p in self.parameters if all(p is not q for q in bert)]
        return [{"params": rest}, {"params": bert, "lr": self.args.learning_rate_bert}]

    def fit(
        self, run: RunFolder, resumed: dict | None = None, after_epoch: Sequence[Callable[[dict], None]] = ()
    ) -> tuple[dict[str, float], Predictions]:
        """Train until `early_stop` epochs bring nothing better (or `max_epochs`); leave the best weights loaded.

        resumed: the training state of the last complete epoch, which model and trainer have loaded
        after_epoch: each is called with the epoch's row of history.csv; what one raises ends the training
        -> TEST metrics of the best epoch, with `epoch` and its `valid_<KeyEval>`; its TEST predictions
        """
        args = self.args
        keep = None if args.keep_checkpoints == "all" else args.keep_checkpoints
        first = {"epoch": 0, "best_epoch": 0, "best_value": math.nan}
        epoch, best_epoch, best_value = ((resumed or first)[key] for key in first)
        while epoch - best_epoch < args.early_stop and (args.max_epochs is None or epoch < args.max_epochs):
            epoch += 1
            started = time.perf_counter()
            trained = self.train_epoch(epoch)
            train_seconds = time.perf_counter() - started
            train = trained.predictions.metrics()
            logger.info(
                f">> Epoch: {epoch} TRAIN-({args.model_name}) [{epoch - best_epoch}/{epoch}/{self.seed_number}] "
                f">> total_loss: {round(trained.losses['total'], 4)} {format_metrics(train, CORE_METRICS)}"
            )
            logger.debug(f"Loss terms: {format_metrics(trained.losses, tuple(trained.losses))}")
            metrics = {"train": train} | {split: self.evaluate(split).metrics() for split in ("valid", "test")}
            learning_rate = self.optimizer.param_groups[0]["lr"]
            self.scheduler.step(metrics["valid"]["Loss"])

            value = metrics["valid"][args.KeyEval]
            improvement = best_value - value if args.KeyEval in LOWER_IS_BETTER else value - best_value
            # The first epoch is the best so far, whatever it is.
            if best_epoch == 0 or improvement >= args.min_improvement:
                best_epoch, best_value = epoch, value
            seconds = {"train_seconds": train_seconds, "seconds": time.perf_counter() - started}
            row = {"epoch": epoch, "best_epoch": best_epoch, "learning_rate": learning_rate} | seconds
            groups = {"loss": trained.losses, "edge": trained.edges} | metrics
            row |= {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
            state = {"epoch": epoch, "best_epoch": best_epoch, "best_value": best_value} | self.state()
            run.save_epoch(self.model, state, row, best_epoch, keep)  # returns at once; the next epoch trains meanwhile
            for call in after_epoch:
                call(row)
        run.finish_writing()
        distributed.wait_for_all()
        logger.info(f"Stopped after epoch {epoch}. The best, by {args.KeyEval} on valid, is epoch {best_epoch}:")
        load_weights(self.model, run.best)
        predictions = self.evaluate("test")
        return {"epoch": best_epoch, f"valid_{args.KeyEval}": best_value} | predictions.metrics(), predictions

    def state(self) -> dict:
        """What decides how training continues, besides the weights of the model."""
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "order": self.loaders["train"].generator.get_state(),
            "random": distributed.gather_objects(random_state()),
        }

    def load_state(self, state: dict) -> None:
        """Continue from what `state` told. Raises whatever PyTorch says where it belongs to another model."""
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.loaders["train"].generator.set_state(state["order"])
        if distributed.rank() < len(state["random"]):  # else there were fewer processes: this one draws from its seed
            set_random_state(state["random"][distributed.rank()])

    def train_epoch(self, epoch: int = 1) -> TrainedEpoch:
        """One pass over the train split. Raises NumericalError before a step with a loss or gradient that is infinite.

        Parity: gradients of `update_epochs` batches add up unscaled and are clipped after every backward; the
        batches left over at the end of the epoch never reach the optimizer. The published numbers were obtained
        that way. With `leftover_batches` step they get a step of their own, unscaled too.
        """
        self.model.train()
        self.objective.train()
        loader = self.loaders["train"]
        steps: list[Step] = []
        checked = 0
        for index, batch in enumerate(progress(loader, "train")):
            if index % self.args.update_epochs == 0:
                self.optimizer.zero_grad()
            steps.append(self.training_step(batch))
            if (index + 1) % self.args.update_epochs == 0:
                self._check_finite(steps[checked:], epoch)
                checked = len(steps)
                self.optimizer.step()
        self._check_finite(steps[checked:], epoch)
        if self.steps_at_epoch_end:
            self.optimizer.step()
        losses, edges = (
            torch.stack([getattr(step, what) for step in steps]).double().mean(dim=0).tolist()
            for what in ("losses", "edges")
        )
        by_name = dict(zip(steps[0].names, losses, strict=True))
        edge_names = [f"{graph}_{name}" for graph in ("homo", "hetero") for name in EDGE_NAMES]
        predicted, labels = in_order(*zip(*(step[:3] for step in steps), strict=True))
        predictions = Predictions(predicted.numpy(), labels.numpy(), by_name["task/all"])
        return TrainedEpoch(by_name, dict(zip(edge_names, edges, strict=True)), predictions)

    def _check_finite(self, steps: Sequence[Step], epoch: int) -> None:
        """Raise NumericalError where losses or gradients of these batches are not finite."""
        totals = [torch.stack([step.losses[step.names.index("total")], step.gradient_norm]) for step in steps]
        finite = torch.stack(totals).isfinite().all(dim=1).tolist() if steps else []  # the host waits for the device
        if all(finite):
            return
        step = steps[finite.index(False)]
        terms = [name for name, value in zip(step.names, step.losses.tolist(), strict=True) if not math.isfinite(value)]
        what = f"the loss term {terms[0]} is" if terms else "all losses are finite, but a gradient is"
        bad = ~step.predicted.flatten().isfinite().cpu()
        rows = step.rows.cpu()[bad if bad.any() else slice(None)].tolist()
        ids = self.loaders["train"].dataset.ids
        raise NumericalError(
            f"epoch {epoch}: {what} not finite, in the batch with the utterances {', '.join(ids[i] for i in rows)}. "
            "No step was taken with it; the checkpoints of the epochs before are good. Lower the learning_rate, or "
            "look for extreme features in these utterances."
        )

    def training_step(self, batch: dict) -> Step:
        """Forward, losses, backward, clipping for one batch."""
        *inputs, labels = to_device(batch, self.device)
        choose_tf32(self.precision)  # here, as torch.compile would do it at another time
        # The smaller last batch of an epoch is not worth a compilation of its own.
        if self.compiled and len(labels) == self.args.batch_size:
            predicted, terms = self.compiled(self, *inputs, labels)
        else:
            predicted, terms = self.forward(*inputs, labels)
        terms["total"].backward()  # adds to the gradients of the batches before
        distributed.average_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)  # before the clipping, which hides infinities
        if self.args.grad_clip != -1:
            nn.utils.clip_grad_value_(self.parameters, self.args.grad_clip)
        losses = torch.stack(list(terms.values())).detach()
        edges = torch.cat([terms.edges[graph].detach().mean(dim=1) for graph in ("homo", "hetero")])
        return Step(predicted.detach().clone(), labels, batch["rows"], list(terms), losses, edges, norm)

    def forward(self, text, audio, vision, labels) -> tuple[torch.Tensor, LossTerms]:
        """-> prediction (B, 1), loss terms"""
        with autocast(self.device, self.precision):
            output = self.model(*(distributed.share(x) for x in (text, audio, vision)))
        output = output.map(lambda x: distributed.gather(x.float(), len(labels)))
        return output.output_logit, self.objective(output, labels)

    def evaluate(self, split: str) -> Predictions:
        """Predictions for a split with the present weights; their metrics are logged as VAL or TEST."""
        predictions = predict(self.model, self.loaders[split], self.device, split, self.precision)
        log_metrics(split, self.args.model_name, predictions.metrics())
        return predictions


def log_metrics(split: str, model_name: str, metrics: dict[str, float]) -> None:
    """One VAL or TEST line in the release's form, and one with other metrics."""
    name = {"train": "TRAIN", "valid": "VAL", "test": "TEST"}[split]
    logger.info(f"{name}-({model_name}) >> {format_metrics(metrics, (*CORE_METRICS, 'Loss'))}")
    logger.info(f"{name}: {format_metrics(metrics, ('Corr', 'Acc_5', 'Has0_Acc_2'))}")
