"""What one training holds and does; `fit` is its only caller."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffedu.errors import require
from diffedu.training import checkpoint
from diffedu.training.data import Source, own_generator
from diffedu.training.devices import (
    Captured,
    autocast,
    device_of,
    faster_precision,
    map_tensors,
    unchanged,
    why_not_captured,
)
from diffedu.training.optimise import EMA, adamw, rate_factor, set_rate
from diffedu.training.options import Options, State
from diffedu.training.parallel import gather, join, joined_loss, rank_and_world


class Run:
    """One training: `update` is the step that is taught, captured and run.

    Args:
        modules: what is trained, as one module.
        loss_fn: called as `loss_fn(batch, generator)`.
        source: where batches come from.
        options: the settings.
        generator: source of the loss's noise, or None.
    """

    def __init__(
        self,
        modules: nn.Module,
        loss_fn: Callable[[Any, torch.Generator], Tensor],
        source: Source,
        options: Options,
        generator: torch.Generator | None,
    ) -> None:
        self.modules, self.source, self.options = modules, source, options
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        require(len(self.parameters) > 0, "the modules have nothing to train")
        self.device = device_of(self.parameters)
        self.rank, self.world = rank_and_world()
        self.generator = own_generator(generator, self.device)
        if self.rank:  # the processes share a seed but not their noise
            self.generator.manual_seed(self.generator.initial_seed() + self.rank)
        self.step, self.seconds, self.window = 0, 0.0, []
        self.loss = torch.tensor(float("nan"))
        join(self.device)
        saved = checkpoint.find(options)
        if saved:
            checkpoint.restore_place(self, saved)
        self.joined = joined_loss(modules, loss_fn, self.device)
        modules.zero_grad(set_to_none=True)
        self.average = None if options.ema is None else EMA(modules, options.ema)
        self.precision, self.capture = options.precision, "not captured: finished"
        if self.step < options.steps:
            self.choose(loss_fn, saved)
        captured = self.capture == "captured"
        self.optimizer = adamw(
            self.parameters, options.lr, options.weight_decay, captured
        )
        self.take = Captured(self.update, self.generator) if captured else self.update
        if saved:
            checkpoint.restore_moments(self, saved)

    def choose(
        self, loss_fn: Callable[..., Tensor], saved: dict[str, Any] | None
    ) -> None:
        """Settle precision and capture, looking at the first batch."""
        batch = self.to_device(self.source.peek(self.step))
        options, reason = self.options, "capture=False"
        if options.capture:
            reason = why_not_captured(self.device, self.generator, self.world, batch)
        require(
            options.capture is not True or reason is None,
            f"the step cannot be captured: {reason}",
        )
        self.capture = f"not captured: {reason}" if reason else "captured"
        if options.precision == "auto" and saved:
            self.precision = saved["precision"]
        elif options.precision == "auto":
            with unchanged(self.modules, self.generator):
                found = faster_precision(
                    lambda: loss_fn(batch, self.generator), self.parameters, self.device
                )
            self.precision = gather(found)[0]

    def states(self) -> Iterator[State]:
        """Take the steps that are left and show the state after each."""
        options = self.options
        quiet = {} if options.progress and not self.rank else {"disable": True}
        bar = tqdm(total=options.steps, initial=self.step, unit="step", **quiet)
        try:
            if self.step >= options.steps:
                self.mean_loss = float(self.loss)
                yield self.state(0.0)
            while self.step < options.steps:
                state = self.advance()
                bar.update()
                if state.logged:
                    bar.set_postfix(loss=f"{state.mean_loss:.4g}", refresh=False)
                yield state
        finally:
            bar.close()
            self.modules.eval()

    def advance(self) -> State:
        """One step and all that belongs to it."""
        start, options = time.perf_counter(), self.options
        if not self.modules.training:
            self.modules.train()
        factor = rate_factor(self.step, options.steps, options.warmup, options.schedule)
        set_rate(self.optimizer, options.lr * factor)
        self.loss = self.take(self.to_device(self.source(self.step)))
        if self.average:
            self.average.update()
        self.step += 1
        self.window.append(self.loss)
        self.log()
        self.seconds += time.perf_counter() - start
        return self.state(options.lr * factor)

    def update(self, batch: Any) -> Tensor:
        """One step of gradient descent; returns the loss, shape ()."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            loss = self.joined(batch, self.generator)
        self.check(loss)
        loss.backward()
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        self.optimizer.step()
        return loss.detach()

    def check(self, loss: Tensor) -> None:
        """Raise unless the loss can be followed downhill; reads it on a CPU only."""
        require(
            isinstance(loss, Tensor) and loss.shape == (),
            f"loss_fn must return a tensor of shape (), got "
            f"{tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__}"
            "; take its mean over the batch",
        )
        require(
            loss.requires_grad,
            "the loss does not depend on anything that is trained: does loss_fn call "
            "the given modules, with gradients on?",
        )
        if loss.device.type == "cpu":
            self.require_finite([float(loss.detach())], self.step + 1)

    def log(self) -> None:
        """Read the losses when they are to be shown or weights are to be written."""
        options, last = self.options, self.step == self.options.steps
        logged = last or self.step % options.log_every == 0
        due = last or self.step % options.checkpoint_every == 0
        due = due and options.checkpoint is not None
        self.mean_loss = None
        if logged or due:
            losses = torch.stack(self.window).tolist()
            self.require_finite(losses, self.step - len(losses) + 1)
        if due:
            checkpoint.save(self)
        if logged:
            self.mean_loss = sum(losses) / len(losses)
            self.window.clear()

    def require_finite(self, losses: list[float], first: int) -> None:
        """Raise FloatingPointError that names the first step without a finite loss."""
        for step, loss in enumerate(losses, start=first):
            if not math.isfinite(loss):
                kept = self.options.checkpoint
                raise FloatingPointError(
                    f"the loss is {loss} at step {step}; look at the batch of that "
                    "step, then try a lower lr, a warmup, or clip=1.0. "
                    f"{f'{kept} keeps the last checkpoint.' if kept else ''}"
                )

    def to_device(self, batch: Any) -> Any:
        """The batch with its tensors on the device of the weights."""
        return map_tensors(lambda x: x.to(self.device, non_blocking=True), batch)

    def state(self, lr: float) -> State:
        """What the reader sees."""
        return State(
            step=self.step,
            steps=self.options.steps,
            modules=self.modules,
            ema=self.average.module if self.average else self.modules,
            lr=lr,
            seconds=self.seconds,
            precision=self.precision,
            capture=getattr(self.take, "failure", None) or self.capture,
            mean_loss=self.mean_loss,
            loss_tensor=self.loss,
        )
