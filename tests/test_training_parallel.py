"""Two processes that train as one, over loopback."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffedu import training

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def make() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 2))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train(net: nn.Module, noise: float = 0.0, **options) -> training.State:
    data = torch.randn(40, 2, generator=seeded(1))

    def loss_fn(batch, generator):
        eps = noise * torch.randn(batch.shape, generator=generator)
        return (net(batch + eps) - batch.flip(1)).square().mean()

    batches = training.batches(data, 16, seeded(3))
    states = training.fit(
        net, loss_fn, batches, generator=seeded(2), lr=1e-2, **options
    )
    *_, last = states
    return last


def process(rank: int, port: int, folder: Path) -> None:
    """What torchrun would start: the same lines in each process."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", GLOO_SOCKET_IFNAME="lo",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    net = make()
    if rank:  # process 0's weights are the ones that count
        nn.init.zeros_(net[0].weight)
    last = train(net, steps=20)
    save_file(dict(last.modules.state_dict()), folder / f"weights{rank}")
    save_file(dict(last.ema.state_dict()), folder / f"ema{rank}")
    net = make()
    train(net, noise=1.0, steps=12)
    save_file(dict(net.state_dict()), folder / f"whole{rank}")
    net, path = make(), folder / "run"
    train(net, noise=1.0, steps=6, checkpoint=path, schedule="constant")
    train(net, noise=1.0, steps=12, checkpoint=path, schedule="constant")
    save_file(dict(net.state_dict()), folder / f"parted{rank}")
    net = make()
    train(net, noise=1.0, steps=12, schedule="constant")
    save_file(dict(net.state_dict()), folder / f"constant{rank}")
    with pytest.raises(ValueError, match=r"at steps \[12, 0\].*all of them"):
        train(net, steps=14, checkpoint=folder / ("elsewhere" if rank else "run"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder with what two processes wrote."""
    folder = tmp_path_factory.mktemp("parallel")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=process, args=(r, port, folder)) for r in (0, 1)]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
        one.kill()  # where it still runs: never wait for ever
    assert [one.exitcode for one in both] == [0, 0]
    return folder


def test_both_hold_the_weights_of_one_process_with_the_joint_batch(trained):
    net = make()
    last = train(net, steps=20)
    for name, module in (("weights", net), ("ema", last.ema)):
        first, second = (load_file(trained / f"{name}{rank}") for rank in (0, 1))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        torch.testing.assert_close(first, dict(module.state_dict()))


def test_each_has_noise_of_its_own(trained):
    net = make()
    train(net, noise=1.0, steps=12)
    first, second = (load_file(trained / f"whole{rank}") for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert (first["0.weight"] - net[0].weight).abs().max() > 1e-4


def test_both_go_on_from_one_checkpoint(trained):
    for rank in (0, 1):
        parted = load_file(trained / f"parted{rank}")
        whole = load_file(trained / f"constant{rank}")
        torch.testing.assert_close(parted, whole, rtol=0, atol=0)


def test_a_checkpoint_of_two_can_be_taken_up_by_one(trained, tmp_path):
    path = tmp_path / "run"
    path.write_bytes((trained / "run").read_bytes())
    with pytest.warns(UserWarning, match="2 process"):
        last = train(make(), noise=1.0, steps=14, checkpoint=path)
    assert last.step == 14
