"""The code that only a GPU takes, on a pretended one: streams, captures, replays, memory that runs out in the middle of it."""

import dataclasses
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from datamodels.settings import COMPILED_PADDED, PADDED, PLAIN, GroupSettings
from datamodels.subsets import draw_masks
from datamodels.training import Trainer, choose_groups, devices, tuning
from datamodels.training import group as group_module
from datamodels.training.devices import for_each_group, for_each_on_streams, made_current
from datamodels.training.group import STEPS_BEFORE_CAPTURE, Group
from datamodels.training.memory import out_of_memory
from tests.standins.cuda import Stream, pretend

CPU = torch.device("cpu")
GUISES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    MemoryError(),
]


@pytest.fixture
def gpu(monkeypatch):
    return pretend(monkeypatch)


def block(trainer, k=4):
    return trainer.margins(draw_masks(0, range(k), trainer.n, 0.5), [(0, i) for i in range(k)])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("per_kernel", [1, 2, None])
def test_a_captured_step_replayed_trains_the_models_that_plain_calls_train(digits, recipe, monkeypatch, per_kernel, precision):
    chosen = dataclasses.replace(recipe, precision=precision)
    plain = block(Trainer(digits, chosen, CPU, per_kernel))
    gpu = pretend(monkeypatch)
    assert np.array_equal(block(Trainer(digits, chosen, CPU, per_kernel)), plain)
    assert gpu.replays == 3 * 30 // 10 - STEPS_BEFORE_CAPTURE
    assert len(gpu.streams) == (1 if per_kernel is None else 1 + devices.STREAMS)


@pytest.mark.parametrize(("name", "captured"), [("Random", True), ("Buffers", True), ("Asking", False)])
def test_a_step_of_a_network_of_ones_own_is_captured_where_it_goes_at_once(digits, recipe, monkeypatch, name, captured):
    chosen = dataclasses.replace(recipe, network=f"tests.training.own_networks:{name}", peak_lr=0.1)
    masks = np.ones((3, 60), bool)
    masks[1, :25] = False
    keys = [(0, i) for i in range(3)]
    plain = Trainer(digits, chosen, CPU, 2).margins(masks, keys)
    gpu = pretend(monkeypatch)
    assert np.array_equal(Trainer(digits, chosen, CPU, 2).margins(masks, keys), plain)
    assert gpu.replays == (3 * 60 // 10 - STEPS_BEFORE_CAPTURE if captured else 0)


def test_models_of_different_length_are_set_aside_at_their_last_step_of_a_graph(digits, recipe, monkeypatch):
    masks = np.zeros((3, 60), bool)
    for mask, size in zip(masks, (60, 11, 33), strict=True):
        mask[:size] = True
    keys = [(0, i) for i in range(3)]
    plain = Trainer(digits, recipe, CPU, 1).margins(masks, keys)
    pretend(monkeypatch)
    assert np.array_equal(Trainer(digits, recipe, CPU, 1).margins(masks, keys), plain)


def test_a_number_that_the_host_puts_into_a_step_is_found_out(digits, recipe, gpu, monkeypatch):
    update = Group._update

    def with_a_host_number(self):
        self.counted = getattr(self, "counted", 0) + 1
        self.parameters.mul_(1 - 1e-3 * self.counted)
        update(self)

    plain = block(Trainer(digits, recipe, CPU))
    monkeypatch.setattr(Group, "_update", with_a_host_number)
    captured = block(Trainer(digits, recipe, CPU))
    monkeypatch.setattr(Group, "captured", lambda group: group.advance)
    assert not np.array_equal(block(Trainer(digits, recipe, CPU)), captured)
    assert not np.array_equal(plain, captured)


def test_the_stream_of_a_group_is_joined_when_it_is_left_in_peace_or_by_an_error(gpu):
    waited = []

    class Watched(Stream):
        def wait_stream(self, other):
            waited.append(other)

    gpu.current[0] = Watched()
    with made_current(CPU):
        (working,) = gpu.streams
    assert waited == [working]
    with pytest.raises(ZeroDivisionError), made_current(CPU):
        raise ZeroDivisionError
    assert waited == [working, working]
    assert gpu.streams == [working]


@pytest.mark.parametrize("error", GUISES, ids=lambda error: str(error)[:40] or "MemoryError")
def test_every_guise_of_out_of_memory_is_known(error):
    assert out_of_memory(error)


@pytest.mark.parametrize("error", [GUISES[0], GUISES[1], GUISES[-1]], ids=["out of memory", "no engine", "MemoryError"])
@pytest.mark.parametrize("at", ["first step", "capture"])
def test_out_of_memory_in_any_guise_halves_and_goes_on_and_leaves_nothing_behind(digits, recipe, monkeypatch, error, at):
    whole = block(Trainer(digits, recipe, CPU, 1))
    gpu, loss_of, left = pretend(monkeypatch), group_module.loss_of, list[weakref.ref[torch.Tensor]]()
    groups: list[Any] = []
    monkeypatch.setattr(Group, "advance", _noted(Group.advance, groups))

    def failing(network, parameters, statistics, x, labels, smoothing):
        steps = groups[-1].taken
        if len(groups[-1].num_steps) > 1 and steps == (0 if at == "first step" else STEPS_BEFORE_CAPTURE):
            logits = network.forward(parameters, statistics, x, training=True)
            left.extend([weakref.ref(logits), weakref.ref(x)])
            raise type(error)(*error.args)
        return loss_of(network, parameters, statistics, x, labels, smoothing)

    trainer = Trainer(digits, recipe, CPU, 1)
    trainer.loss = failing
    np.testing.assert_allclose(block(trainer), whole, atol=1e-4)
    assert trainer.at_once == 1
    groups.clear()
    assert left
    assert not [ref for ref in left if ref() is not None]
    assert gpu.emptied == 2


def _noted(advance, groups):
    """`advance` that notes the group, and how many steps it has taken."""

    def noted(self):
        if not groups or groups[-1] is not self:
            self.taken = 0
            groups.append(self)
        advance(self)
        self.taken += 1

    return noted


def test_an_error_that_hides_out_of_memory_is_known_and_any_other_is_not():
    hiding = RuntimeError("CUDA error: capturing stream has unjoined work")
    hiding.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    assert out_of_memory(hiding)
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not out_of_memory(ValueError("out of memory"))


def test_streams_are_joined_though_an_item_fails(gpu):
    streams = [gpu.stream() for _ in range(2)]
    gpu.current[-1].capturing = True

    def work(item):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        for_each_on_streams(range(4), work, streams)
    assert all(stream.joined for stream in streams)


def test_while_one_group_has_the_gpu_the_next_is_drawn(digits, recipe, gpu, monkeypatch):
    trainer, inside, most = Trainer(digits, recipe, CPU), [], []
    drawing = threading.Barrier(2, timeout=20)
    draws, train = Trainer.draws, Group.train

    def meeting(self, masks, keys):
        drawing.wait()
        return draws(self, masks, keys)

    def watched(self):
        inside.append(1)
        most.append(len(inside))
        found = train(self)
        inside.pop()
        return found

    monkeypatch.setattr(Trainer, "draws", meeting)
    monkeypatch.setattr(Group, "train", watched)
    rows = {}
    masks = draw_masks(0, range(2), 60, 0.5)
    for_each_group(range(2), lambda i: rows.update({i: trainer.margins(masks[i : i + 1], [(0, i)])}), CPU)
    assert sorted(rows) == [0, 1]
    assert most == [1, 1]


def test_a_gpus_groups_are_chosen_among_all_programs_and_one_that_fails_is_told_and_left(
    digits, recipe, gpu, monkeypatch, capsys
):
    monkeypatch.setattr(tuning, "MEASURE_S", 0.01)
    monkeypatch.setattr(tuning, "MOST_AT_ONCE", 2)

    def no_compiler():
        def compiled(*arguments):
            raise RuntimeError("no compiler here\nand more")

        return compiled

    monkeypatch.setattr("datamodels.training.models.compiled_loss", no_compiler)
    chosen, speeds = choose_groups(digits, recipe, GroupSettings(), CPU)
    tried = {(g.models_at_once, g.models_per_kernel, g.program) for g in speeds}
    assert {(2, 2, PLAIN), (2, 1, PLAIN), (2, 1, PADDED), (2, 1, COMPILED_PADDED)} <= tried
    assert {g.program for g in speeds if not speeds[g]} == {"compiled", "compiled-padded"}
    assert speeds[chosen] > 0
    assert "K = 2 at once, 1 a kernel, compiled does not work: no compiler here\n" in capsys.readouterr().err


def test_after_out_of_memory_in_one_size_the_others_are_measured(digits, recipe, gpu, monkeypatch):
    monkeypatch.setattr(tuning, "MEASURE_S", 0.01)
    monkeypatch.setattr(tuning, "MOST_AT_ONCE", 4)
    advance, alive = Group.advance, list[weakref.ref[torch.Tensor]]()

    def small_memory(self):
        assert not [ref for ref in alive if ref() is not None], "a failed group is still there"
        if len(self.num_steps) == 2:
            alive.append(weakref.ref(self.parameters))
            raise torch.OutOfMemoryError("CUDA out of memory")
        advance(self)

    monkeypatch.setattr(Group, "advance", small_memory)
    _, speeds = choose_groups(digits, recipe, GroupSettings(program=PLAIN), CPU)
    assert {g.models_at_once for g in speeds if speeds[g]} == {1, 4}
    assert {g.models_at_once for g in speeds if not speeds[g]} == {2}
    assert len(alive) == 2


def test_all_groups_are_trained_by_one_thread_whose_choice_of_convolutions_stays(digits, recipe, gpu, monkeypatch):
    trainer, threads, train = Trainer(digits, recipe, CPU), set[int](), Group.train

    def noted(self):
        threads.add(threading.get_ident())
        return train(self)

    monkeypatch.setattr(Group, "train", noted)
    for _ in range(2):
        for_each_group(range(3), lambda i: block(trainer, i + 1), CPU)
    assert len(threads) == 1


def test_convolutions_are_timed_in_the_first_steps_and_taken_by_the_capture_alone(digits, recipe, gpu):
    trainer, seen, loss_of = Trainer(digits, recipe, CPU), [], group_module.loss_of

    def noted(*arguments):
        seen.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32))
        return loss_of(*arguments)

    trainer.loss = noted
    before = torch.backends.cudnn.benchmark
    block(trainer)
    assert seen == [(True, True, False)] * (STEPS_BEFORE_CAPTURE + 1)
    assert torch.backends.cudnn.benchmark is before


def test_a_compiled_program_that_does_not_work_here_is_told_and_the_plain_one_goes_on(digits, recipe, monkeypatch, capsys):
    def no_compiler():
        def compiled(*arguments):
            raise RuntimeError("no compiler here\nand more")

        return compiled

    plain = block(Trainer(digits, recipe, CPU, 1))
    monkeypatch.setattr("datamodels.training.models.compiled_loss", no_compiler)
    assert np.array_equal(block(Trainer(digits, recipe, CPU, 1, program="compiled")), plain)
    said = "a compiled step does not work here (no compiler here); going on with the plain one\n"
    assert capsys.readouterr().err.count(said) == 1


def test_an_error_after_a_compiled_program_has_worked_is_no_reason_for_another(digits, recipe, monkeypatch):
    calls = [0]

    def breaking():
        def compiled(*arguments):
            calls[0] += 1
            if calls[0] > 5:
                raise RuntimeError("device-side assert")
            return group_module.loss_of(*arguments)

        return compiled

    monkeypatch.setattr("datamodels.training.models.compiled_loss", breaking)
    with pytest.raises(RuntimeError, match="device-side assert"):
        block(Trainer(digits, recipe, CPU, 1, program="compiled"), 1)
