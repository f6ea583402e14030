"""Batches, files and graphs: the parts that the training loop stands on."""

from __future__ import annotations

import contextlib
import json
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from diffedu import nets, training
from diffedu.training import checkpoint, devices, files

# Batches ----------------------------------------------------------------------


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [1, 4, 7, 10, 23])
def test_every_sample_comes_once_an_epoch(size):
    stream = training.batches(torch.arange(10), size, seeded())
    drawn = torch.cat([next(stream) for _ in range(10)])
    assert drawn.shape == (10 * size,)
    for epoch in drawn.split(10):
        assert torch.equal(epoch.sort().values, torch.arange(10)[: len(epoch)]) or (
            len(epoch) == 10 and sorted(epoch.tolist()) == list(range(10))
        )
    if size > 1:
        assert not torch.equal(drawn[:10], drawn[10:20])  # shuffled anew


def test_tensors_of_one_batch_belong_together():
    x = torch.randn(20, 3)
    stream = training.batches((x, torch.arange(20)), 8, seeded())
    a, index = next(iter(stream))
    assert torch.equal(a, x[index]) and a.shape == (8, 3)


def test_a_stream_goes_on_where_another_stood():
    one = training.batches(torch.arange(10), 4, seeded())
    for _ in range(7):
        next(one)
    state = {name: x.clone() for name, x in one.state_dict().items()}
    expected = [next(one) for _ in range(9)]
    other = training.batches(torch.arange(10), 4, seeded(5))
    other.load_state_dict(state)
    assert all(torch.equal(next(other), batch) for batch in expected)


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (torch.empty(0, 2), 4, "length above 0"),
        ((torch.ones(3), torch.ones(4)), 4, "one length"),
        ((), 4, "tensor"),
        ([[1, 2]], 4, "tensor"),
        (torch.tensor(1.0), 4, "tensor"),
        (torch.ones(3), 0, "batch_size"),
        (torch.ones(3), 2.0, "batch_size"),
    ],
)
def test_batches_that_cannot_be(data, size, message):
    with pytest.raises(ValueError, match=message):
        training.batches(data, size)


def test_processes_share_a_joint_batch(monkeypatch):
    joint = training.batches(torch.arange(12), 6, seeded())
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        shares.append(training.batches(torch.arange(12), 6, seeded()))
    for _ in range(5):
        assert torch.equal(torch.cat([next(s) for s in shares]), next(joint))
    with pytest.raises(ValueError, match="multiple of the 2 process"):
        training.batches(torch.arange(12), 5)


# Weights ----------------------------------------------------------------------


class WithTable(nn.Module):
    """Weights, and a table that half precision would ruin."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.tied = self.inner
        self.register_buffer("table", torch.rand(5, dtype=torch.float64))


def test_weights_travel_in_half_precision_with_their_card(tmp_path):
    path = tmp_path / "new" / "net.safetensors"
    a, b = WithTable(), WithTable()
    card = {"recipe": "digits", "steps": 1600, "loss": 0.25, "seeds": [1, 2]}
    training.save(a, path, card)
    assert training.load(b, path) == card
    assert torch.equal(b.inner.weight, a.inner.weight.half().float())
    assert torch.equal(b.table, a.table) and b.inner.weight.dtype == torch.float32
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("inner.weight").dtype == torch.float16
    training.save(a, path, dtype=torch.float32)
    assert training.load(b, path) == {}
    assert torch.equal(b.inner.weight, a.inner.weight)


def test_weights_of_a_network_come_back(tmp_path):
    options = dict(width=8, multipliers=(1, 2), classes=3, attention=(4,))
    net, twin = nets.UNet(**options), nets.UNet(**options)
    training.save(net, tmp_path / "net", dtype=torch.float32)
    training.load(twin, tmp_path / "net")
    torch.testing.assert_close(twin.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_anyones_safetensors_can_be_loaded(tmp_path):
    net = nn.Linear(2, 2)
    save_file({k: v.clone() for k, v in net.state_dict().items()}, tmp_path / "x")
    assert training.load(nn.Linear(2, 2), tmp_path / "x") == {}


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "net.safetensors"
    training.save(nets.MLP(width=8), path)
    with pytest.raises(ValueError, match="shape .16, .*does not fit|does not fit.*16"):
        training.load(nets.MLP(width=16), path)
    with pytest.raises(ValueError, match="is missing"):
        training.load(nets.MLP(width=8, classes=3), path)
    with pytest.raises(ValueError, match="is not in the module"):
        training.load(nets.MLP(width=8, depth=2), path)


def test_files_that_cannot_be_read(tmp_path):
    net, path = nn.Linear(2, 2), tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        training.load(net, path)
    training.save(net, path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="broken.*fetch it again"):
        training.load(net, path)
    torch.save(net.state_dict(), path)
    with pytest.raises(ValueError, match="not a safetensors file"):
        training.load(net, path)


def test_weights_that_cannot_be_saved(tmp_path):
    net, path = nn.Linear(2, 2), tmp_path / "net.safetensors"
    nn.init.constant_(net.weight, 1e5)
    with pytest.raises(ValueError, match="weight as torch.float16"):
        training.save(net, path)
    nn.init.constant_(net.weight, float("nan"))
    with pytest.raises(ValueError, match="weight weight"):
        training.save(net, path)
    with pytest.raises(TypeError, match="JSON"):
        training.save(nn.Linear(2, 2), path, {"when": object()})
    assert not path.exists()


def test_packing_is_undone_by_unpacking():
    value = {"a": [1, 2.5, None, "x", True], 3: {"t": torch.arange(3)}, "e": {}}
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(json.dumps(files.pack(value, tensors, "top")))
    back = files.unpack(packed, tensors)
    assert torch.equal(back[3].pop("t"), value[3].pop("t"))
    assert back == value and list(tensors) == ["top.3.t"]
    with pytest.raises(TypeError, match=r"top\.f holds a function"):
        files.pack({"f": lambda: None}, {}, "top")


def test_a_writable_folder_is_made_and_nothing_is_left_beside(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    files.write_atomically(path, b"one")
    files.write_atomically(path, b"two")
    assert path.read_bytes() == b"two" and list(path.parent.iterdir()) == [path]


def test_noise_of_another_device_is_said_so():
    states = checkpoint.random_states(seeded(1)) | {"device": "cuda"}
    generator = seeded(2)
    before = generator.get_state()
    with torch.random.fork_rng(), pytest.warns(UserWarning, match="other noise"):
        checkpoint.restore_random(states, generator)
    assert torch.equal(generator.get_state(), before)


# Devices and graphs -----------------------------------------------------------


def test_best_device_is_one_that_works():
    assert torch.zeros(1, device=training.best_device()).device.type in (
        "cuda",
        "mps",
        "cpu",
    )


def test_best_device_prefers_cuda_then_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert training.best_device().type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training.best_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert training.best_device() == torch.device("cuda", 3)


class FakeGenerator:
    """Stands for a generator on some device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


class FakeGraph:
    """A CUDA graph without CUDA: `replay` does what the test gives it."""

    work = staticmethod(lambda: None)

    def register_generator_state(self, generator):
        self.generator = generator

    def replay(self):
        self.work()


@pytest.mark.parametrize(
    ("device", "generator", "world", "batch", "reason"),
    [
        ("cpu", "cpu", 1, torch.ones(2), "CUDA device"),
        ("cuda", "cuda", 2, torch.ones(2), "several processes"),
        ("cuda", "cpu", 1, torch.ones(2), "generator is not on the GPU"),
        ("cuda", "cuda", 1, (torch.ones(2), 3), "more than tensors"),
        ("cuda", "cuda", 1, {"x": [torch.ones(2)]}, None),
    ],
)
def test_why_a_step_is_not_captured(
    monkeypatch, device, generator, world, batch, reason
):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    said = devices.why_not_captured(
        torch.device(device), FakeGenerator(generator), world, batch
    )
    assert (said is None) if reason is None else (reason in said)


def test_an_old_torch_cannot_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    said = devices.why_not_captured(
        torch.device("cuda"), FakeGenerator("cuda"), 1, torch.ones(2)
    )
    assert "2.4 or newer" in said


@pytest.fixture
def fake_cuda(monkeypatch):
    """Streams and graphs that do nothing, so that the bookkeeping can be tried."""

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda s: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda g: contextlib.nullcontext())


def test_a_captured_step_is_fed_through_its_own_batch(fake_cuda, monkeypatch):
    calls = []

    def update(batch):
        calls.append(batch)
        return batch["x"].sum()

    step = devices.Captured(update, seeded())
    monkeypatch.setattr(
        FakeGraph, "work", lambda _: step.loss.copy_(step.batch["x"].sum())
    )
    losses = [step({"x": torch.full((2,), float(i))}) for i in range(8)]
    assert [float(x) for x in losses] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert len(calls) == devices.EAGER_STEPS + 1  # then only replays
    assert float(step({"x": torch.ones(3)})) == 3  # another shape: as written
    assert len(calls) == devices.EAGER_STEPS + 2
    assert step.failure is None


def test_a_capture_that_fails_says_why_and_goes_on(fake_cuda, monkeypatch):
    fails = iter([True, False])

    @contextlib.contextmanager
    def graph(_):
        if next(fails):
            raise RuntimeError("operation not permitted\nwhen capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    generator = seeded()
    step = devices.Captured(lambda x: torch.rand((), generator=generator), generator)
    with pytest.warns(UserWarning, match="not captured.*not permitted$"):
        losses = [float(step(torch.ones(2))) for _ in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(torch.ones(2))
    plain = seeded()
    assert losses == [float(torch.rand((), generator=plain)) for _ in range(6)]
    assert step.failure == "operation not permitted"


def test_tensors_of_a_batch_wherever_they_are():
    from collections import namedtuple

    pair = namedtuple("pair", "x y")(torch.ones(1), [torch.zeros(2)])
    batch = {"a": (pair, "name"), "b": torch.ones(3)}
    moved = devices.map_tensors(lambda x: x + 1, batch)
    assert moved["a"][0].y[0].tolist() == [1, 1] and moved["a"][1] == "name"
    assert type(moved["a"][0]) is type(pair)
    assert [getattr(leaf, "shape", leaf) for leaf in devices.leaves(batch)] == [
        (1,),
        (2,),
        "name",
        (3,),
    ]
