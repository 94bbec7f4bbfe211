"""Gradients of many micro batches are summed without loss, and training states outlive the way they are summed."""

from __future__ import annotations

import copy
from typing import Any

import deepspeed
import pytest
import torch
from cogvideox.errors import CheckpointError
from cogvideox.parallel.groups import start_process_groups
from cogvideox.parallel.zero import prepare_deepspeed
from cogvideox.training.engine import TrainEngine
from cogvideox.training.optimizers import AdamSettings, build_adam, parameter_groups
from processes import run_processes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training.toy import Toy, after_three_steps, build, check_continues, inputs, section, train, weights

BF16 = {"bf16": {"enabled": True}}
MICRO = 16


def sums_in(name: str) -> dict[str, Any]:
    return {**BF16, "data_types": {"grad_accum_dtype": name}}


def batches(rank: int) -> list[Tensor]:
    return list(inputs(100 + rank, 2 * MICRO).chunk(MICRO))


def micro_gradients(rank: int) -> list[Tensor]:
    """Of each micro batch, flat and in the order of the optimizer's groups, by torch alone."""
    found, model = [], Toy().bfloat16()
    order = [each for group in parameter_groups(model, 0.1) for each in group["params"]]
    for batch in batches(rank):
        (model(batch).mean() / MICRO).backward()
        found.append(torch.cat([each.grad.flatten().double() for each in order]))
        model.zero_grad()
    return found


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


class Seen:
    """The gradients that the optimizer gets in one step, over all its groups in order."""

    def __init__(self, engine: TrainEngine) -> None:
        self.groups: list[Tensor] = []
        engine._engine.basic_optimizer.register_step_pre_hook(self._look)

    def _look(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            self.groups.append(torch.cat([each.grad.flatten().double() for each in group["params"]]))


def gradients_of_a_step(engine: TrainEngine, rank: int = 0) -> list[Tensor]:
    """One flat tensor per parameter group: this process's slice, where the optimizer is split."""
    seen = Seen(engine)
    engine.step(1, batches(rank))
    return seen.groups


def group_sizes() -> list[int]:
    return [sum(each.numel() for each in group["params"]) for group in parameter_groups(Toy(), 0.1)]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_micro_batches_are_summed_exactly_in_fp32(stage: int) -> None:
    exact = torch.stack(micro_gradients(0)).sum(0)

    def measure(name: str) -> float:
        engine = build(section(stage, accumulation=MICRO, micro=2, clip=0.0, **sums_in(name)))
        found = gradients_of_a_step(engine)
        cut = [part[:size] for part, size in zip(found, group_sizes(), strict=True)]  # slices end in padding
        return error(torch.cat(cut), exact)

    # 16 sums, each rounded to 24 bits; in bf16 to 8 bits, where half of the last place is 0.2 to 0.4 %.
    assert measure("fp32") < 16 * 2**-24
    assert 5e-4 < measure("bf16") < 16 * 2**-9


def _two_processes(stages: tuple[int, ...]) -> list[list[list[float]]]:
    groups = start_process_groups("cpu")
    found = []
    for stage in stages:
        given = section(stage, accumulation=MICRO, micro=2, clip=0.0, **sums_in("fp32"))
        found.append([part.tolist() for part in gradients_of_a_step(build(given, groups), groups.rank)])
    return found


def test_two_processes_average_what_they_summed() -> None:
    exact = torch.stack([torch.stack(micro_gradients(rank)).sum(0) for rank in (0, 1)]).mean(0)
    first, second = run_processes(_two_processes, 2, (0, 1, 2))
    sizes = group_sizes()
    for stage in (0, 1, 2):
        if stage == 0:
            assert first[0] == second[0]
        whole = first[0] if stage == 0 else [a + b for a, b in zip(first[stage], second[stage], strict=True)]
        cut = [each for part, size in zip(whole, sizes, strict=True) for each in part[:size]]
        found = torch.tensor(cut, dtype=torch.float64)
        # ZeRO 2 adds up the processes' gradients of every micro batch in bf16, on the way between them.
        assert error(found, exact) < (2**-9 if stage == 2 else 16 * 2**-24), stage


def of_earlier_versions(steps: range) -> tuple[dict[str, Any], dict[str, Tensor], list[float]]:
    """State and weights after some steps of bf16 without ZeRO in DeepSpeed's own optimizer, and the losses of two more
    steps. One micro batch per step and no clipping: what is computed must be the same bits."""
    groups, model = start_process_groups("cpu"), Toy().bfloat16()
    prepare_deepspeed(groups.device)
    settings = AdamSettings(1e-2, (0.9, 0.95), weight_decay=0.1)
    parameters = parameter_groups(model, settings.weight_decay)
    config = {
        "train_micro_batch_size_per_gpu": 4, "train_batch_size": 4, "gradient_clipping": 0.0,
        "bf16": {"enabled": True}, "zero_optimization": {"stage": 0},
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=build_adam(parameters, settings), config=config, dist_init_required=False
    )
    engine.basic_optimizer.state.clear()
    assert type(engine.optimizer).__name__ == "FP16_UnfusedOptimizer"

    def run(numbers: range) -> list[float]:
        losses = []
        for number in numbers:
            for group in engine.optimizer.param_groups:
                group["lr"] = settings.lr
            loss = engine(inputs(number)).mean()
            losses.append(float(loss.detach()))
            engine.backward(loss)
            engine.step()
        return losses

    run(steps)
    state = {
        "kind": "FP16_UnfusedOptimizer",
        "base": engine.basic_optimizer.state_dict(),
        "masters": [master.detach() for group in engine.optimizer.fp32_groups for master in group],
        "loss_scale": {"cur_scale": 1.0, "cur_iter": 3},
    }
    state, saved = copy.deepcopy(state), copy.deepcopy(model.state_dict())
    return state, saved, run(range(steps.stop, steps.stop + 3))


def test_bf16_states_of_earlier_versions_go_on() -> None:
    state, saved, expected = of_earlier_versions(range(1, 4))
    engine = build(section(0, clip=0.0, **sums_in("fp32")))
    engine.module.load_state_dict(saved)
    engine.restore(state)
    assert train(engine, range(4, 7)) == expected


@pytest.mark.parametrize("before, after", [("bf16", "fp32"), ("fp32", "bf16")])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_states_fit_whatever_the_sums_were_made_in(stage: int, before: str, after: str) -> None:
    """One micro batch per step: then both ways compute the same."""
    saved, expected = after_three_steps(section(stage, **sums_in(before)))
    check_continues(build(section(stage, **sums_in(after))), saved, expected)


@pytest.mark.slow
def test_slices_in_another_order_are_refused() -> None:
    state = build(section(1, **sums_in("bf16"))).capture()
    given = section(1, **sums_in("fp32"))
    given["zero_optimization"]["round_robin_gradients"] = True
    with pytest.raises(CheckpointError, match="saved by DeepSpeedZeroOptimizer, this run uses BF16_Optimizer"):
        build(given).restore(state)


class Largest(TorchDispatchMode):
    """The most elements of a buffer that is made without contents, as DeepSpeed's buckets are."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "aten.empty.memory_format" in str(func):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("bucket", [500_000_000, 40, None])
@pytest.mark.parametrize("stage, sums", [(1, "bf16"), (2, "bf16"), (2, "fp32")])
def test_a_backward_pass_allocates_no_more_than_what_trains(stage: int, sums: str, bucket: int | None) -> None:
    given = section(stage, **sums_in(sums))
    if bucket is not None:
        given["zero_optimization"].update(reduce_bucket_size=bucket, allgather_bucket_size=bucket)
    engine, largest, trainable = build(given), Largest(), sum(group_sizes())
    with largest:
        engine.step(1, [inputs(1)])
    limit = min(bucket or trainable + 1, trainable + 1)
    assert trainable % 2 == 1 and largest.elements <= trainable + 1
    assert engine._engine.zero_reduce_bucket_size() == engine._engine.zero_allgather_bucket_size() == limit


def test_without_clipping_nothing_is_clipped() -> None:
    """DeepSpeed's default is 1."""
    runs = []
    for clip in (0.0, 1e9):
        engine = build(section(0, clip=clip))
        train(engine, range(1, 4))
        runs.append(weights(engine))
    assert all(torch.equal(runs[0][name], each) for name, each in runs[1].items())
