"""The benchmarks run and say what they measured; no time is asserted."""

from __future__ import annotations

import json
import sys
import types

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy  # noqa: E402
import launches  # noqa: E402
import run as bench  # noqa: E402
import side_by_side  # noqa: E402
import trainings  # noqa: E402
import walks  # noqa: E402
from accuracy import Accuracy  # noqa: E402
from launches import Launches  # noqa: E402
from side_by_side import Row  # noqa: E402

# numpy's complaint about how diffusers makes arrays of tensors
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SHAPE = (2, 1, 4, 4)
ROW = Row("DDIM", "another", 120.0, 240.0, 0.5, 0.4, 0.625)
FAR = Accuracy(ROW, (10, 20), (0.25, 0.125), (0.5, 0.1234))
SHARE = Launches("a net", "by hand", 0.86)


def test_ratios_are_taken_within_a_round(monkeypatch) -> None:
    """A machine that slows down tenfold changes no ratio."""
    took = iter([9, 9, 1, 2, 20, 10, 100, 200, 2000, 1000])
    monkeypatch.setattr(side_by_side, "seconds", lambda prepare: next(took))
    [row] = side_by_side.compare("walk", {"us": None, "them": None}, 1, 4)
    # the first round does not count, and they take turns in going first
    assert (row.task, row.other) == ("walk", "them")
    assert row.ratio == row.low == row.high == 2.0


def test_preparing_is_not_timed(monkeypatch) -> None:
    clock = iter([0.0, 5.0, 7.5])
    monkeypatch.setattr(side_by_side.time, "process_time", lambda: next(clock))
    done = []

    def prepare():
        next(clock)  # as long as preparing may take
        done.append("prepared")
        return lambda: done.append("run")

    assert side_by_side.seconds(prepare) == 2.5 and done == ["prepared", "run"]


def test_walks_run_in_every_library_that_is_there() -> None:
    pytest.importorskip("diffusers")
    rows = walks.walks(SHAPE, steps=3, rounds=2)
    methods = {row.task for row in rows if row.other == "diffusers"}
    assert methods == {"DDIM", "Heun", "DPM-Solver++ 2M"} == set(walks.K_DIFFUSION)
    assert all(row.ours > 0 and row.theirs > 0 for row in rows)


def test_both_sides_walk_the_whole_way() -> None:
    pytest.importorskip("diffusers")
    for method, who in walks.contenders(SHAPE, steps=3).items():
        for name, prepare in who.items():
            assert prepare()().shape == SHAPE, (method, name)


def test_k_diffusion_is_left_out_where_it_cannot_be_imported(
    monkeypatch, tmp_path
) -> None:
    monkeypatch.delitem(sys.modules, "k_diffusion", raising=False)
    monkeypatch.delitem(sys.modules, "k_diffusion.sampling", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "k_diffusion"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a heavy start')")
    (package / "sampling.py").write_text("import no_such_module_anywhere")
    assert walks.k_diffusion_sampling() is None
    (package / "sampling.py").write_text("answer = 42  # and nothing else")
    assert walks.k_diffusion_sampling().answer == 42
    monkeypatch.delitem(sys.modules, "k_diffusion")
    monkeypatch.delitem(sys.modules, "k_diffusion.sampling")


def test_k_diffusions_walks_are_called_as_it_wants() -> None:
    seen = {}

    def sample(model, x, sigmas, disable=None):
        seen.update(x=x, sigmas=sigmas, disable=disable)
        return model(x, sigmas[0] * x.new_ones(len(x)))

    x, sigmas = walks.torch.zeros(SHAPE), walks.torch.tensor([1.0, 0.0])
    end = walks.k_diffusion_walk(sample, x, sigmas)()()
    assert end.shape == SHAPE and seen["x"] is x and seen["disable"]


def test_trainings_take_the_same_steps_on_both_sides() -> None:
    task = trainings.Task("tiny", lambda: trainings.nets.MLP(2, 8, 1), (4, 2))
    [row] = trainings.trainings((task,), steps=2, rounds=2)
    assert (row.task, row.other) == ("tiny", "by hand") and row.ours > 0
    for loop in (trainings.by_hand, trainings.by_fit):
        assert len(trainings.prepared(task, loop, 3)()()) == 3


def test_diffusers_network_is_trained_by_the_same_loop() -> None:
    small = trainings.nets.MLP(2, 8, 1)
    task = trainings.Task("tiny", lambda: small, (4, 2), lambda: small)
    rows = trainings.trainings((task,), steps=1, rounds=2)
    assert [row.other for row in rows] == ["by hand", "diffusers' U-Net"]


def test_first_steps_do_not_count() -> None:
    task = trainings.Task("tiny", lambda: trainings.nets.MLP(2, 8, 1), (4, 2))
    seen = []

    def loop(model, loss_fn, batches, steps):
        return iter(seen.append(step) or step for step in range(steps))

    run = trainings.prepared(task, loop, 2, first=3)()
    assert seen == [0, 1, 2]
    assert len(run()) == 2 and seen == [0, 1, 2, 3, 4]


def test_diffusers_unet_has_as_many_parameters() -> None:
    pytest.importorskip("diffusers")
    for task in (trainings.TASKS[-1], launches.GPU_TASK):
        ours, theirs = task.make(), task.theirs()
        ratio = trainings.parameters(theirs) / trainings.parameters(ours)
        assert 0.95 < ratio < 1.05
        batch = task.batches(1)[0][:2]
        t = walks.torch.tensor([0.1, 0.9])
        answer = theirs(batch, t)
        assert answer.shape == batch.shape
        # the time reaches the network, and each sample has its own
        swapped = theirs(batch, t.flip(0))
        assert not walks.torch.equal(answer, swapped)


def test_tasks_can_learn_their_batches() -> None:
    for task in trainings.TASKS:
        net, batch = task.make(), task.batches(1)[0]
        assert net(batch, walks.torch.full(batch.shape[:1], 0.5)).shape == batch.shape


def test_table_says_time_and_rate() -> None:
    both = bench.tables(bench.Results([ROW], [FAR], [ROW]))
    assert "| DDIM | another | 120 µs | 240 µs | **0.50** (0.40 to 0.62) |" in both
    assert "| DDIM | another | 8.33e+03 | 4.17e+03 |" in both
    assert "| error after 10, 20 looks at the oracle | beside |" in both
    assert "| DDIM | another | 0.25, 0.125 | 0.5, 0.123 | **0.50** (" in both
    assert "GPU" not in both


def test_table_of_a_gpu_says_what_is_launches() -> None:
    all_of_it = bench.tables(bench.Results([ROW], [FAR], [ROW], [ROW], [SHARE]))
    assert "| steps a second on a GPU, captured | beside |" in all_of_it
    assert "| a net | by hand | 86% |" in all_of_it


def test_notes_speak_of_third_order_where_it_was_measured() -> None:
    about = {"points": 1, "crowd": 2, "looks timed": 3, "third order": True}
    about["distance between two crowds"] = 0.01234
    said = bench.errors_explained(about)
    assert said.endswith(bench.THIRD_ORDER) and "are 0.012 apart" in said
    about["third order"] = False
    assert bench.THIRD_ORDER not in bench.errors_explained(about)


def test_notes_say_where_the_rows_of_a_gpu_are() -> None:
    about = {"parameters": {"diffedu": 658019}, "gpu": None}
    assert "appear where there is one" in bench.unets(about)
    assert "658,019 (diffedu)" in bench.unets(about)
    assert "On a fast one: wall time" in bench.unets(about | {"gpu": "a fast one"})


def test_block_replaces_what_stood_between_the_marks() -> None:
    text = f"a\n{bench.BEGIN}\nold\n{bench.END}\nz\n"
    want = f"a\n{bench.BEGIN}\nnew\n{bench.END}\nz\n"
    assert bench.insert(text, "new") == want == bench.insert(want, "new")


@pytest.mark.parametrize("text", ("", bench.BEGIN, f"{bench.END} {bench.BEGIN}"))
def test_readme_without_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        bench.insert(text, "new")


def test_run_prints_and_writes_when_asked(monkeypatch, capsys, tmp_path) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setattr(bench, "walks", lambda *_: [ROW])
    monkeypatch.setattr(bench, "accuracies", lambda *_: [FAR])
    monkeypatch.setattr(bench, "trainings", lambda *_: [ROW])
    monkeypatch.setattr(bench, "on_gpu", lambda *_: ([ROW], [SHARE]))
    monkeypatch.setattr(bench.accuracy, "CROWD", 64)
    monkeypatch.setattr(bench, "HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(bench, "k_diffusion_sampling", lambda: types)
    (tmp_path / "benchmarks").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(f"{bench.BEGIN}\n{bench.END}\n")
    assert bench.main(["--rounds", "3"]) == 0
    assert "own cost of a step" in capsys.readouterr().out
    assert readme.read_text() == f"{bench.BEGIN}\n{bench.END}\n"
    assert bench.main(["--write"]) == 0
    assert "k-diffusion" in readme.read_text() and "120 µs" in readme.read_text()
    numbers = json.loads((tmp_path / "benchmarks" / "results.json").read_text())
    assert numbers["rows"][0]["ratio"] == 0.5 and numbers["with"]["threads"] >= 1
    assert numbers["accuracy"][0]["row"]["task"] == "DDIM"
    assert numbers["accuracy"][0]["theirs"] == [0.5, 0.1234]
    assert numbers["gpu"][0]["ours"] == 120.0
    assert numbers["launches"] == [{"task": "a net", "loop": "by hand", "share": 0.86}]


@pytest.fixture
def walkers():
    """Who runs each method on the oracle with 8 looks, from 16 points.

    diffusers' DDIM steps by 1000 // looks, so looks must divide 1000.
    """
    pytest.importorskip("diffusers")
    return accuracy.contenders(8, accuracy.start(16))


def test_libraries_ask_the_oracle_as_often_and_at_the_same_levels(
    walkers, monkeypatch
) -> None:
    seen = []
    forward = type(accuracy.ring().denoiser(accuracy.CHAIN)).forward

    def listen(self, x, t, **condition):
        seen.append(self.schedule.log_snr(t).item())
        return forward(self, x, t, **condition)

    monkeypatch.setattr("diffedu.worlds.exact.MixtureDenoiser.forward", listen)
    for method, who in walkers.items():
        levels = {}
        for name, prepare in who.items():
            seen.clear()
            prepare()()
            levels[name] = sorted(seen)
        count = 7 if method in accuracy.TWICE else 8
        assert {len(level) for level in levels.values()} == {count}, method
        assert levels["diffedu"] == pytest.approx(levels["diffusers"], abs=1e-6)


def test_told_levels_are_those_where_diffusers_stands() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(12)
    times = accuracy.karras(12)
    ours = (-0.5 * accuracy.CHAIN.log_snr(times[:-1])).exp()
    assert times[-1] == 0 and scheduler.sigmas[-1] == 0
    assert ours.tolist() == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=2e-4)


def test_one_method_ends_at_one_place_in_both_libraries(walkers) -> None:
    """Equal steps on equal levels from equal points, so equal ends, noise and all."""
    for method, who in walkers.items():
        if method == "DPM-Solver++ 3M":  # diffusers halves the second derivative
            continue
        ours, theirs = (who[name]()() for name in ("diffedu", "diffusers"))
        worst = (ours - theirs).abs().max()
        assert worst < 2e-3, (method, worst)
        assert (ours - accuracy.start(16)).abs().max() > 0.1  # and it did walk


def test_exact_end_is_that_of_an_independent_solver() -> None:
    integrate = pytest.importorskip("scipy.integrate")
    x = accuracy.start(3)
    denoise = accuracy.ring(walks.torch.float64).denoiser(accuracy.EDM)

    def slope(sigma, flat):
        here = walks.torch.from_numpy(flat).reshape(3, 2)
        return denoise(here, sigma / accuracy.TOP).eps.flatten().numpy()

    begin = (x.double() * accuracy.STRETCH).flatten().numpy()
    found = integrate.solve_ivp(
        slope, (accuracy.TOP, 1e-4), begin, method="DOP853", rtol=1e-9, atol=1e-9
    )
    end = walks.torch.from_numpy(found.y[:, -1]).reshape(3, 2)
    assert accuracy.distance(accuracy.exact_end(x), end) < 1e-3


@pytest.mark.slow
def test_errors_fall_with_the_looks() -> None:
    pytest.importorskip("diffusers")
    rows = accuracy.accuracies(2, looks=(10, 40), timed=4, points=64, crowd=2048)
    named = {(a.row.task, a.row.other): a for a in rows}
    assert {name for name, _ in named} >= {"DDIM", "Euler", *accuracy.TWICE}
    assert ("DPM-Solver-2", accuracy.SINGLESTEP) in named
    for a in rows:
        if a.row.task != accuracy.ANCESTRAL:
            assert a.ours[1] < a.ours[0] / 2 and a.theirs[1] < a.theirs[0] / 2


def test_distance_of_crowds_sees_a_shift() -> None:
    own = accuracy.ring().sample(2048, walks.torch.Generator().manual_seed(4))
    assert accuracy.crowd_distance(own) == accuracy.floor(2048)
    shifted = own + walks.torch.tensor([0.5, 0.0])
    assert accuracy.crowd_distance(shifted) > 2 * accuracy.floor(2048)


def test_spans_that_overlap_count_once() -> None:
    assert launches.covered([(4.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 5.0
    assert launches.covered([]) == 0.0


def event(start, end, on="CUDA", named=False):
    """What a profile says of one thing that happened, in microseconds."""
    return types.SimpleNamespace(
        device_type=getattr(launches.DeviceType, on),
        time_range=types.SimpleNamespace(start=start, end=end),
        is_user_annotation=named,
    )


@pytest.fixture
def a_gpu(monkeypatch):
    """A device that works for 3 of the 10 microseconds that each run takes."""
    events = [event(0, 2), event(5, 6), event(0, 9, on="CPU"), event(0, 9, named=True)]
    clock = iter(range(10_000))

    class Profile:
        def __init__(self, activities):
            assert activities == [launches.ProfilerActivity.CUDA]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def events(self):
            return events

    calls = []
    cuda = launches.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "synchronize", lambda: calls.append("waited"))
    monkeypatch.setattr(launches, "profile", Profile)
    monkeypatch.setattr(launches.time, "perf_counter", lambda: 1e-5 * next(clock))
    return calls


def test_launches_are_what_the_gpu_is_not_busy_for(a_gpu) -> None:
    share = launches.launch_share(lambda: lambda: a_gpu.append("run"))
    assert share == pytest.approx(0.7)
    # wall times are those of runs without a profile, which wait before and after
    assert a_gpu[:3] == ["waited", "run", "waited"] and a_gpu.count("run") == 4


def test_gpu_rows_are_of_all_loops(a_gpu, monkeypatch) -> None:
    monkeypatch.setattr(
        launches, "prepared", lambda task, loop, make=None, **_: lambda: lambda: None
    )
    rows, shares = launches.on_gpu(2, 2)
    others = ["not captured", "by hand", "diffusers' U-Net"]
    others.append("diffusers' U-Net, not captured")
    assert [row.other for row in rows] == others
    assert [one.loop for one in shares] == ["captured", *others]
    assert all(one.share == pytest.approx(0.7) for one in shares)


def test_gpu_loops_differ_in_capture_and_network_alone(monkeypatch) -> None:
    made = {}
    task = trainings.images(2)
    monkeypatch.setattr(launches, "prepared", lambda *a, **k: (a, k))
    for name, (arguments, options) in launches.loops(task, 3).items():
        assert arguments[0] is task
        assert (options["steps"], options["device"]) == (3, "cuda")
        made[name] = (arguments[1], options.get("make"))
    assert made["captured"] == (trainings.by_fit, None)
    assert made["not captured"][0].keywords == {"capture": False}
    assert made["by hand"] == (trainings.by_hand, None)
    assert made["diffusers' U-Net"] == (trainings.by_fit, task.theirs)


def test_gpu_loops_run_on_any_device() -> None:
    small = trainings.nets.MLP(2, 8, 1)
    task = trainings.Task("tiny", lambda: small, (4, 2), lambda: small)
    for prepare in launches.loops(task, 2, device="cpu").values():
        assert len(prepare()()) == 2


def test_there_are_no_gpu_rows_without_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(launches.torch.cuda, "is_available", lambda: False)
    assert launches.on_gpu(2, 2) == ([], [])


@pytest.mark.gpu
def test_gpu_loops_train() -> None:
    if not walks.torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rows, shares = launches.on_gpu(4, 2, trainings.images(4))
    assert len(rows) == 4 and all(row.ours > 0 for row in rows)
    assert all(0 <= one.share <= 1 for one in shares)
