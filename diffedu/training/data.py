"""Batches that can be taken up again after a crash, one share a process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffedu.errors import require
from diffedu.training.parallel import rank_and_world


class Batches:
    """Shuffled batches without end; every sample comes once an epoch.

    A batch that reaches over the end of an epoch is filled from the next, so all
    have one size, and it may be larger than the data. Where several processes
    train as one, each takes its share of the joint batch; give all of them
    generators of one seed, so that the shares are disjoint.

    Args:
        data: shape (N, ...), or several tensors of one length N.
        batch_size: samples in a (joint) batch.
        generator: source of the order, on the CPU.

    Raises:
        ValueError: if the data are empty or of several lengths, or if the batch
            size is not positive or not a multiple of the number of processes.
    """

    def __init__(
        self,
        data: Tensor | tuple[Tensor, ...],
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        self.single = isinstance(data, Tensor)
        self.data = (data,) if self.single else tuple(data)
        self.batch_size = batch_size
        self.rank, self.world = rank_and_world()
        self.generator = own_generator(generator)
        self.order = torch.empty(0, dtype=torch.long)
        require_batches(self.data, batch_size, self.world, self.generator)

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, ...]]:
        return self

    def __next__(self) -> Tensor | tuple[Tensor, ...]:
        """The next batch: (batch_size, ...), or one such tensor for each in `data`."""
        samples = len(self.data[0])
        while len(self.order) < self.batch_size:
            epoch = torch.randperm(samples, generator=self.generator)
            self.order = torch.cat([self.order, epoch])
        joint, self.order = self.order.tensor_split([self.batch_size])
        mine = joint.chunk(self.world)[self.rank]
        picked = tuple(x[mine.to(x.device)] for x in self.data)
        return picked[0] if self.single else picked

    def state_dict(self) -> dict[str, Tensor]:
        """Where the stream stands: what is left of the epoch, and the generator."""
        return {"order": self.order, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where another stream over the same data stood.

        Raises:
            ValueError: if that one had more samples than these data.
        """
        order = state["order"].clone()
        samples = len(self.data[0])
        require(
            not len(order) or int(order.max()) < samples,
            f"the checkpoint's data had more than the {samples} samples given now; "
            "resume with the same data, or start anew",
        )
        self.order = order
        self.generator.set_state(state["generator"])


def batches(
    data: Tensor | tuple[Tensor, ...],
    batch_size: int,
    generator: torch.Generator | None = None,
) -> Batches:
    """Shuffled batches without end, for `fit`: see `Batches`.

    Args:
        data: shape (N, ...), or a tuple of tensors of one length N.
        batch_size: samples in a (joint) batch.
        generator: source of the order, on the CPU.

    Returns:
        an iterator over tensors (batch_size, ...), or tuples of them.

    Raises:
        ValueError: as `Batches` does.
    """
    return Batches(data, batch_size, generator)


def own_generator(
    generator: torch.Generator | None, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator, or a new one seeded from torch's global one."""
    if generator is not None:
        return generator
    seed = int(torch.randint(2**62, ()))
    return torch.Generator(device).manual_seed(seed)


def require_batches(
    data: tuple[Tensor, ...], batch_size: int, world: int, generator: torch.Generator
) -> None:
    """Raise ValueError unless batches can be drawn."""
    tensors = bool(data) and all(isinstance(x, Tensor) and x.dim() for x in data)
    require(tensors, "data must be a tensor (N, ...), or a tuple of such tensors")
    lengths = [len(x) for x in data]
    require(
        min(lengths) > 0 and len(set(lengths)) == 1,
        f"data must have one length above 0, got {lengths}",
    )
    require(
        isinstance(batch_size, int) and batch_size > 0 and batch_size % world == 0,
        f"batch_size must be a positive multiple of the {world} process(es), got "
        f"{batch_size!r}",
    )
    require(
        generator.device.type == "cpu",
        f"the order is drawn on the CPU, but the generator is on {generator.device}; "
        "use torch.Generator()",
    )


class Source:
    """One way to ask for the batch of a step, whatever the batches come from.

    Args:
        batches: a callable from step to batch; or an iterator with `state_dict` and
            `load_state_dict`, or with `seek(step)`; or any iterable, which is begun
            again at its end.
        resumable: whether to refuse what cannot be taken up again.

    Raises:
        ValueError: if `batches` is a bare tensor, or cannot be resumed but must.
        TypeError: if it is none of these.
    """

    def __init__(self, batches: Any, resumable: bool = False) -> None:
        require(
            not isinstance(batches, (Tensor, tuple)),
            "batches is bare data; write training.batches(data, batch_size)",
        )
        self.batches, self.pending = batches, []
        self.rank, self.world = rank_and_world()
        self.stateful = all(
            hasattr(batches, name) for name in ("state_dict", "load_state_dict")
        )
        self.seekable = hasattr(batches, "seek")
        self.stateless = callable(batches) and not self.stateful
        iterable = isinstance(batches, Iterable)
        require(
            self.stateless or iterable,
            f"batches must be iterable or callable, got {type(batches).__name__}",
            TypeError,
        )
        require(
            self.stateless or self.stateful or self.seekable or not resumable,
            "these batches cannot be taken up again from a checkpoint; use "
            "training.batches(...), a function from step to batch, or an iterator "
            "with seek(step)",
        )
        self.iterator = None

    def __call__(self, step: int) -> Any:
        """The batch of a step; steps must be asked for in order.

        Raises:
            ValueError: if there are no batches, or no more of them.
        """
        if self.pending:
            return self.pending.pop()
        if self.stateless:
            return self.batches(step * self.world + self.rank)
        return self.following(step)

    def peek(self, step: int) -> Any:
        """The batch of a step, to be handed out again by the next call."""
        self.pending = [self(step)]
        return self.pending[0]

    def following(self, step: int) -> Any:
        """The next batch of the iterable, begun again at its end."""
        for _ in range(2):
            if self.iterator is None:
                self.iterator = iter(self.batches)
            for batch in itertools.islice(self.iterator, 1):
                return batch
            self.iterator = None
        raise ValueError(
            f"batches ended before step {step}: the iterable is empty, or an iterator "
            "that cannot begin again; use training.batches(...) or a list"
        )

    def state_dict(self) -> dict:
        """What `restore` needs, beside the step."""
        return self.batches.state_dict() if self.stateful else {}

    def restore(self, state: dict, step: int) -> None:
        """Go on at a step."""
        if self.stateful:
            self.batches.load_state_dict(state)
        elif self.seekable and not self.stateless:
            self.batches.seek(step)


BatchSource = Callable[[int], Any] | Iterable[Any]
