"""The training loop: what it computes, how it is taken up again, what it refuses."""

from __future__ import annotations

import copy
import errno
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffedu import nets, training

HERE = Path(__file__).parent


def make(dropout: float = 0.0) -> nn.Module:
    """A small network with fixed weights; dropout draws from torch's global state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.Dropout(dropout), nn.Linear(8, 2))


def data() -> torch.Tensor:
    return torch.randn(40, 2, generator=torch.Generator().manual_seed(1))


def loss_of(net: nn.Module):
    def loss_fn(batch, generator):
        noise = torch.randn(batch.shape, generator=generator, dtype=batch.dtype)
        return (net(batch + noise) - batch).square().mean()

    return loss_fn


def seeded(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fit(net: nn.Module, steps: int = 12, **options):
    """A training in which everything random is seeded."""
    options.setdefault("generator", seeded())
    options.setdefault("batches", training.batches(data(), 16, seeded(3)))
    options.setdefault("loss_fn", loss_of(net))
    return training.fit(net, steps=steps, **options)


def finish(net: nn.Module, steps: int = 12, **options) -> training.State:
    *_, last = fit(net, steps, **options)
    return last


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in module.state_dict().items()}


def assert_same(a: dict, b: dict) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# What a step computes ---------------------------------------------------------


def test_equals_the_plain_loop_of_a_textbook():
    net, twin = make(), make()
    last = finish(net, ema=0.9, clip=0.5, lr=1e-2, schedule="constant")
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
    generator, order = seeded(), seeded(3)
    stream = torch.cat([torch.randperm(40, generator=order) for _ in range(5)])
    average = copy.deepcopy(twin)
    for step in range(12):
        x0 = data()[stream[16 * step : 16 * (step + 1)]]
        loss = loss_of(twin)(x0, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        with torch.no_grad():
            for a, p in zip(average.parameters(), twin.parameters(), strict=True):
                a.mul_(decay).add_((1 - decay) * p)
    torch.testing.assert_close(weights(net), weights(twin))
    torch.testing.assert_close(weights(last.ema), weights(average))
    assert last.loss == pytest.approx(float(loss.detach()), rel=1e-5)


def test_states_tell_where_the_training_stands():
    net = make()
    states = list(fit(net, steps=10, log_every=4, lr=0.1, schedule="constant"))
    assert [s.step for s in states] == list(range(1, 11))
    assert [s.logged for s in states] == [i in (4, 8, 10) for i in range(1, 11)]
    assert [s.last for s in states] == [False] * 9 + [True]
    mean = sum(s.loss for s in states[4:8]) / 4
    assert states[7].mean_loss == pytest.approx(mean)
    assert states[9].mean_loss == pytest.approx((states[8].loss + states[9].loss) / 2)
    assert all(a.seconds < b.seconds for a, b in zip(states, states[1:], strict=False))
    assert states[0].lr == 0.1 and states[0].precision == "float32"
    assert "CUDA" in states[0].capture
    assert states[0].modules is net and states[0].ema is not net


def test_rates_rise_then_fall():
    rates = [s.lr for s in fit(make(), steps=20, lr=1.0, warmup=4)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False))
    assert rates[12] == pytest.approx(0.5) and 0 < rates[-1] < 0.01
    assert {s.lr for s in fit(make(), lr=0.5, schedule="constant")} == {0.5}


def test_learns():
    net = make()

    def loss_fn(batch, generator):
        return (net(batch) - batch.flip(1)).square().mean()

    states = list(fit(net, steps=300, lr=1e-2, log_every=50, loss_fn=loss_fn))
    assert states[-1].mean_loss < 0.01 < 0.1 < states[0].loss


def test_same_seeds_same_weights_other_seeds_others():
    nets_ = [make() for _ in range(3)]
    for net, seed in zip(nets_, (2, 2, 5), strict=True):
        finish(net, generator=seeded(seed))
    assert_same(weights(nets_[0]), weights(nets_[1]))
    assert not torch.equal(nets_[0][0].weight, nets_[2][0].weight)


def test_without_a_generator_torchs_own_seed_counts():
    results = []
    for seed in (0, 0, 1):
        net = make()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            finish(net, generator=None, batches=training.batches(data(), 16))
        results.append(weights(net))
    assert_same(results[0], results[1])
    assert not torch.equal(results[0]["0.weight"], results[2]["0.weight"])


def test_clipping_bounds_the_gradient():
    seen = []

    def loss_fn(batch, generator):
        return 1e6 * net(batch).square().mean()

    net = make()
    for clip in (0.25, None):
        for _ in fit(net, steps=2, loss_fn=loss_fn, clip=clip, lr=1e-6):
            norms = [p.grad.norm() for p in net.parameters()]
            seen.append(float(torch.stack(norms).norm()))
    assert seen[:2] == pytest.approx([0.25, 0.25], rel=1e-3) and min(seen[2:]) > 100


def test_several_modules_train_as_one_and_frozen_ones_do_not():
    a, b, frozen = make(), make(), make().requires_grad_(False)
    before = [weights(m) for m in (a, b, frozen)]

    def loss_fn(batch, generator):
        return (a(frozen(batch)) - b(batch) - 1).square().mean()

    for modules in ([a, b, frozen], {"a": a, "b": b, "frozen": frozen}):
        last = finish(modules, loss_fn=loss_fn)
        key = 0 if isinstance(modules, list) else "a"
        assert last.modules[key] is a and last.ema[key] is not a
    after = [weights(m) for m in (a, b, frozen)]
    assert not torch.equal(before[0]["0.weight"], after[0]["0.weight"])
    assert not torch.equal(before[1]["0.weight"], after[1]["0.weight"])
    assert_same(before[2], after[2])


def test_training_mode_inside_evaluation_mode_after():
    net, seen = make(dropout=0.5), []

    def loss_fn(batch, generator):
        seen.append(net.training)
        return net(batch).square().mean()

    for state in fit(net, loss_fn=loss_fn):
        assert not state.ema.training
        net.eval()  # as a reader who samples in between would
    assert all(seen) and not net.training


def test_float64_stays_float64():
    net = make().double()
    batches = training.batches(data().double(), 16, seeded(3))
    last = finish(net, batches=batches)
    assert last.loss_tensor.dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in last.ema.parameters())


def test_bf16_runs_and_stays_near():
    a, b = make(), make()
    exact, half = finish(a, steps=30), finish(b, steps=30, precision="bf16")
    assert half.precision == "bf16"
    assert all(p.dtype == torch.float32 for p in b.parameters())
    assert half.mean_loss == pytest.approx(exact.mean_loss, rel=0.05)
    assert half.mean_loss != exact.mean_loss


def test_probe_decides_and_leaves_no_trace(monkeypatch):
    from diffedu.training import devices

    plain = make(dropout=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        finish(plain)
    for faster in ("float32", "bf16"):
        times = iter([0.1, 1.0] if faster == "bf16" else [1.0, 1.0])

        def clock(work, device, times=times):
            work()
            return next(times)

        monkeypatch.setattr(devices, "median_seconds", clock)
        net = make(dropout=0.5)
        with torch.random.fork_rng():
            torch.manual_seed(4)
            last = finish(net, precision="auto")
        assert last.precision == faster
        if faster == "float32":
            assert_same(weights(net), weights(plain))
    batches = training.batches(data().double(), 8)
    last = finish(make().double(), precision="auto", batches=batches)
    assert last.precision == "float32"


def test_probe_really_measures():
    from diffedu.training import devices

    calls = []
    clock = devices.median_seconds(lambda: calls.append(1) or sum(range(10**5)), CPU)
    assert clock > 0 and len(calls) > 2


CPU = torch.device("cpu")


def test_a_unet_in_a_denoiser_shaped_module_trains():
    net = nets.UNet(width=4, multipliers=(1, 2), classes=3)
    x0 = torch.rand(12, 1, 8, 8) * 2 - 1
    y = torch.randint(0, 3, (12,))

    def loss_fn(batch, generator):
        x0, label = batch
        t = torch.rand(len(x0), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        return (net(x0 + noise, t, label=label) - noise).square().mean()

    last = finish(net, 5, loss_fn=loss_fn, batches=training.batches((x0, y), 6))
    assert math.isfinite(last.mean_loss) and last.ema(x0, torch.tensor(0.5)).std() > 0


# The average ------------------------------------------------------------------


def test_average_of_a_constant_is_that_constant():
    net = make()
    average = training.EMA(net, 0.999)
    for _ in range(50):
        average.update()
    assert_same(weights(average.module), weights(net))


def test_average_soon_forgets_the_start():
    net = nn.Linear(1, 1)
    nn.init.zeros_(net.weight)
    average = training.EMA(net, 0.9999)
    nn.init.ones_(net.weight)
    shares = []
    for _ in range(100):
        average.update()
        shares.append(1 - float(average.module.weight))
    assert shares[0] == pytest.approx(0.1) and shares[-1] < 1e-3  # .9999: still .99


def test_average_counts_tied_weights_once_and_copies_buffers():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[1].weight = net[0].weight
    average = training.EMA(net, 0.5)
    start = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(1)
    net(torch.randn(4, 3))
    average.update()
    torch.testing.assert_close(average.module[0].weight, start + 0.9)
    assert average.module[1].weight is average.module[0].weight
    assert torch.equal(average.module[2].running_mean, net[2].running_mean)
    assert int(average.module[2].num_batches_tracked) == 1


def test_no_average_shows_the_modules():
    net = make()
    assert finish(net, ema=None).ema is net


# Taking up again --------------------------------------------------------------


def killed_between_steps(path: Path) -> None:
    """Train with dropout, and die after step 13."""
    torch.manual_seed(9)
    for state in fit(make(0.5), 20, checkpoint=path, checkpoint_every=5):
        if state.step == 13:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_while_writing(path: Path) -> None:
    """Train with dropout, and die before the third checkpoint gets its name."""
    torch.manual_seed(9)
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)

    os.replace = replace
    finish(make(0.5), 20, checkpoint=path, checkpoint_every=5)


FRESH = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
import test_training
test_training.killed_while_writing(sys.argv[2])
"""


def run_until_killed(work, path: Path) -> int:
    """The exit code of a process that does the work; one of them starts afresh."""
    if work is killed_while_writing:
        command = [sys.executable, "-c", FRESH, str(HERE), str(path)]
        return subprocess.run(command, timeout=300).returncode
    process = multiprocessing.get_context("fork").Process(target=work, args=(path,))
    process.start()
    process.join(300)
    return process.exitcode


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills with SIGKILL")
@pytest.mark.parametrize("work", [killed_between_steps, killed_while_writing])
def test_resumes_after_kill_9_to_the_same_weights(tmp_path, work):
    path = tmp_path / "run.safetensors"
    whole, resumed = make(0.5), make(0.5)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        full = finish(whole, 20)
        assert run_until_killed(work, path) == -signal.SIGKILL
        torch.manual_seed(123)  # must not matter: the checkpoint knows better
        steps = list(fit(resumed, 20, checkpoint=path, checkpoint_every=5))
    assert [s.step for s in steps] == list(range(11, 21))
    assert_same(weights(resumed), weights(whole))
    assert_same(weights(steps[-1].ema), weights(full.ema))
    assert os.listdir(tmp_path) == ["run.safetensors"]


def stop_and_go(tmp_path, make_batches) -> None:
    """Stop after 8 of 12 steps, go on, and compare with a training never stopped."""
    path = tmp_path / "run.safetensors"
    whole, parted = make(), make()
    finish(whole, batches=make_batches())
    for state in fit(parted, batches=make_batches(), checkpoint=path,
                     checkpoint_every=4):  # fmt: skip
        if state.step == 9:
            break
    last = finish(parted, batches=make_batches(), checkpoint=path)
    assert last.step == 12
    assert_same(weights(parted), weights(whole))


class Seekable:
    """An iterator that can be put at any step."""

    step = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.step += 1
        return data()[self.step : self.step + 8]

    def seek(self, step):
        self.step = step


def test_every_resumable_source_goes_on_where_it_stood(tmp_path):
    sources = (
        lambda: training.batches(data(), 16, seeded(3)),
        lambda: training.batches(data(), 64, seeded(3)),  # more than an epoch
        lambda: lambda step: data()[step : step + 8],
        Seekable,
    )
    for i, make_batches in enumerate(sources):
        stop_and_go(tmp_path / str(i), make_batches)


def test_a_finished_training_shows_its_last_state(tmp_path):
    path = tmp_path / "run.safetensors"
    net, other = make(), make()
    done = finish(net, checkpoint=path)
    (state,) = fit(other, checkpoint=path)
    assert state.last and state.logged and state.step == 12
    assert state.loss == state.mean_loss == done.loss
    assert 0 < state.seconds <= done.seconds
    assert_same(weights(other), weights(net))
    assert_same(weights(state.ema), weights(done.ema))
    states = list(fit(other, 14, checkpoint=path))  # more steps: it goes on
    assert [s.step for s in states] == [13, 14]
    assert states[0].seconds > state.seconds
    assert len(list(fit(other, checkpoint=path, resume=False))) == 12


def test_precision_once_found_is_kept(tmp_path, monkeypatch):
    from diffedu.training import run

    monkeypatch.setattr(run, "faster_precision", lambda *_: "bf16")
    path = tmp_path / "run.safetensors"
    for state in fit(make(), checkpoint=path, checkpoint_every=4, precision="auto"):
        if state.step == 5:
            break
    monkeypatch.setattr(run, "faster_precision", lambda *_: "float32")
    assert finish(make(), checkpoint=path, precision="auto").precision == "bf16"


def test_plain_iterables_are_begun_again_but_not_resumed(tmp_path):
    batches = [data()[:8], data()[8:16], data()[16:]]
    assert finish(make(), batches=batches).step == 12
    with pytest.raises(ValueError, match="taken up again"):
        fit(make(), batches=batches, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="ended before step 3"):
        finish(make(), batches=iter(batches))
    with pytest.raises(ValueError, match="empty"):
        fit(make(), batches=[])


def test_checkpoint_of_the_batches_of_other_data(tmp_path):
    path = tmp_path / "run.safetensors"
    for state in fit(make(), checkpoint=path, checkpoint_every=4):
        if state.step == 5:
            break
    with pytest.raises(ValueError, match="same data"):
        fit(make(), checkpoint=path, batches=training.batches(data()[:20], 16))


# What goes wrong --------------------------------------------------------------


def test_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    finish(make(), checkpoint=path)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="earlier file.*untouched; free some") as error:
        finish(make(), 20, checkpoint=path, checkpoint_every=3)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not write"):
        finish(make(), checkpoint=tmp_path / "file" / "run.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        finish(make(), checkpoint=tmp_path)  # a folder


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\xff" * 500])
def test_broken_checkpoints(tmp_path, content):
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken or not a safetensors.*move it away"):
        fit(make(), checkpoint=path)
    assert path.read_bytes() == content


def test_a_checkpoint_cut_short(tmp_path):
    path = tmp_path / "run.safetensors"
    finish(make(), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="broken"):
        fit(make(), checkpoint=path)


def test_checkpoints_of_something_else(tmp_path):
    path = tmp_path / "run.safetensors"
    training.save(make(), path)
    with pytest.raises(ValueError, match="no checkpoint of a training"):
        fit(make(), checkpoint=path)
    finish(make(), checkpoint=path, resume=False)
    with pytest.raises(ValueError, match="0.weight"):
        net = nn.Sequential(nn.Linear(3, 8))
        fit(net, checkpoint=path)
    with pytest.raises(ValueError, match="parameters"):
        net = make()
        net[0].requires_grad_(False)
        fit(net, 14, checkpoint=path)
    with pytest.raises(ValueError, match="more.*steps"):
        fit(make(), 4, checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint="):
        training.load(make(), path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(tmp_path, bad):
    net, path, seen = make(), tmp_path / "run.safetensors", []

    def loss_fn(batch, generator):
        seen.append(weights(net))
        return net(batch).square().mean() * (bad if len(seen) == 8 else 1)

    with pytest.raises(FloatingPointError, match="step 8.*lower lr.*keeps the last"):
        finish(net, loss_fn=loss_fn, checkpoint=path, checkpoint_every=5)
    assert_same(weights(net), seen[7])  # nothing bad entered the weights
    states = list(fit(make(), checkpoint=path))
    assert states[0].step == 6


def test_a_loss_read_late_still_names_its_step(monkeypatch):
    from diffedu.training.run import Run

    monkeypatch.setattr(Run, "check", lambda self, loss: None)  # as on a GPU
    net, calls = make(), []

    def loss_fn(batch, generator):
        calls.append(1)
        return net(batch).square().mean() * (float("nan") if len(calls) == 7 else 1)

    with pytest.raises(FloatingPointError, match="at step 7"):
        finish(net, loss_fn=loss_fn, log_every=10)
    assert len(calls) == 10


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    net, path = make(), tmp_path / "run.safetensors"
    finish(net, checkpoint=path)
    before = path.read_bytes()
    for state in fit(net, 14, checkpoint=path, ema=None):
        with torch.no_grad():
            net[0].weight.fill_(float("nan") if state.step == 13 else 0)
        break
    with pytest.raises(FloatingPointError):
        for _ in fit(net, 14, checkpoint=path, loss_fn=lambda b, g: poison(net)):
            pass
    assert path.read_bytes() == before


def poison(net: nn.Module) -> torch.Tensor:
    """A finite loss whose gradient is not."""
    return (net[0].weight * 0).sum().sqrt() + 0 * net[2].weight.sum()


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda net: lambda b, g: net(b).square(), r"shape \(\), got \(16, 2\)"),
        (lambda net: lambda b, g: 1.0, "got float"),
        (lambda net: lambda b, g: b.square().mean(), "does not depend"),
        (lambda net: lambda b, g: net(b).mean().detach(), "does not depend"),
    ],
)
def test_losses_that_cannot_be_trained_on(loss_fn, message):
    net = make()
    with pytest.raises(ValueError, match=message):
        finish(net, loss_fn=loss_fn(net))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=0), "steps"),
        (dict(steps=2.5), "steps"),
        (dict(lr=0), "lr"),
        (dict(lr=float("nan")), "lr"),
        (dict(lr="fast"), "lr"),
        (dict(ema=1.0), "ema"),
        (dict(ema=-0.1), "ema"),
        (dict(warmup=-1), "warmup"),
        (dict(warmup=12), "leaves nothing"),
        (dict(schedule="cosin"), 'did you mean "cosine"'),
        (dict(clip=0), "clip"),
        (dict(weight_decay=-1), "weight_decay"),
        (dict(precision="fp16"), "precision"),
        (dict(capture="yes"), "capture"),
        (dict(capture=True), "cannot be captured.*CUDA"),
        (dict(log_every=0), "log_every"),
        (dict(checkpoint_every=0), "checkpoint_every"),
        (dict(batches=data()), "training.batches"),
        (dict(batches=(data(),)), "training.batches"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        fit(make(), **options)


def test_modules_and_batches_of_the_wrong_kind():
    with pytest.raises(TypeError, match="module, a list or a dict"):
        fit("net", loss_fn=lambda b, g: None)
    with pytest.raises(ValueError, match="nothing to train"):
        fit(make().requires_grad_(False))
    with pytest.raises(ValueError, match="nothing to train"):
        fit([], loss_fn=lambda b, g: None)
    with pytest.raises(ValueError, match="cpu.*meta"):
        fit([make(), make().to("meta")], loss_fn=lambda b, g: None)
    with pytest.raises(TypeError, match="iterable or callable"):
        fit(make(), batches=3)
    with pytest.raises(TypeError, match="stepz"):
        fit(make(), stepz=3)
