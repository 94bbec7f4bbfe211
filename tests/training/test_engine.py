"""The engine against a plain torch loop, over ZeRO stages, precisions, accumulation and processes."""

from __future__ import annotations

import pytest
import torch
from cogvideox.errors import CheckpointError, ConfigError
from cogvideox.parallel.groups import start_process_groups
from cogvideox.training.batch_sizes import BatchSizes, read_batch_sizes
from cogvideox.training.deepspeed_config import read_dtype
from deepspeed.ops import op_builder
from deepspeed.ops.op_builder.builder import MissingCUDAException
from processes import run_processes
from training.toy import Toy, after_three_steps, build, check_continues, checked, inputs, section, train, weights

BF16 = {"bf16": {"enabled": True}}


def plain_torch(steps: range) -> tuple[list[float], dict[str, torch.Tensor]]:
    """What all of it must equal: AdamW on global batches of 4, clipped at 0.5."""
    model, losses = Toy(), []
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    spared = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for step in steps:
        loss = model(inputs(step)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decayed + spared, 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, model.state_dict()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_stage_equals_a_plain_loop(stage, accumulation):
    expected, state = plain_torch(range(1, 7))
    engine = build(section(stage, accumulation=accumulation, micro=4 // accumulation))
    # fp32: differences come from the order of sums only, a few units in the last place per step.
    assert train(engine, range(1, 7)) == pytest.approx(expected, rel=1e-5)
    for name, tensor in weights(engine).items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-5, atol=1e-6)


def test_stages_agree_in_bf16():
    runs = [train(build(section(stage, **BF16)), range(1, 7)) for stage in (0, 1, 2)]
    # One bf16 rounding (2^-8) of weights near 0.3 moves these losses by less than one percent.
    assert runs[1] == pytest.approx(runs[0], rel=1e-2) and runs[2] == pytest.approx(runs[1], rel=1e-2)
    assert runs[0] == pytest.approx(plain_torch(range(1, 7))[0], rel=5e-2)


def _two_processes(stages: tuple[int, ...]) -> list[list[float]]:
    groups = start_process_groups("cpu")
    runs = []
    for stage in stages:
        engine = build(section(stage, micro=2), groups)
        results = [engine.step(step, [inputs(step).chunk(2)[groups.rank]]) for step in range(1, 5)]
        runs.append([float(groups.mean(result.loss)) for result in results])
    return runs


def test_two_processes_equal_one():
    first, second = run_processes(_two_processes, 2, (0, 1, 2))
    assert first == second
    expected = plain_torch(range(1, 5))[0]
    for losses in first:
        assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("given", [section(0), section(1), section(0, **BF16), section(2, **BF16)])
def test_a_bad_step_is_skipped_and_reported(given):
    engine = build(given)
    train(engine, range(1, 3))
    before = weights(engine)
    bad = engine.step(3, [inputs(3) * float("nan")])
    assert bool(bad.is_bad) and all(torch.equal(before[name], each) for name, each in weights(engine).items())
    good = engine.step(4, [inputs(4)])
    assert not bool(good.is_bad) and torch.isfinite(good.loss)


@pytest.fixture
def fp16_on_cpu(monkeypatch):
    """fp16 is for CUDA, but its loss scaling is the same everywhere: let DeepSpeed and the engine run it here."""
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from training import toy

    monkeypatch.setattr(CPU_Accelerator, "is_fp16_supported", lambda self: True)
    monkeypatch.setattr(toy, "read_dtype", lambda *_: torch.float16)


@pytest.mark.parametrize("sums", ["fp16", "fp32"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_fp16_finds_its_loss_scale_without_counting_as_bad(fp16_on_cpu, stage, sums):
    scale = {"enabled": True, "initial_scale_power": 20, "loss_scale_window": 1000, "hysteresis": 1}
    engine = build(section(stage, fp16=scale, data_types={"grad_accum_dtype": sums}))
    start = weights(engine)
    first = engine.step(1, [inputs(1)])
    assert not bool(first.is_bad) and all(torch.equal(start[name], each) for name, each in weights(engine).items())
    refused = 1
    while float(engine.step(1 + refused, [inputs(1)]).grad_norm) == float("inf"):
        refused += 1
    assert 1 < refused < 12 and engine.capture()["loss_scale"]["cur_scale"] == 2.0 ** (20 - refused)
    # From here on it is training as in fp32, to the precision of fp16's 11 bits.
    continued = train(engine, range(2, 6))
    exact = build(section(0))
    exact.step(1, [inputs(1)])
    assert continued == pytest.approx(train(exact, range(2, 6)), rel=2e-2)
    assert bool(engine.step(6, [inputs(6) * float("nan")]).is_bad)


@pytest.mark.parametrize("given", [section(0), section(0, **BF16), section(1), section(2, **BF16)])
def test_captured_state_continues_as_if_nothing_happened(given):
    saved, expected = after_three_steps(given, schedule="cosine")
    check_continues(build(given, schedule="cosine"), saved, expected)


def test_state_of_another_kind_of_run_is_refused():
    state = build(section(0)).capture()
    with pytest.raises(CheckpointError, match="saved by AdamW, this run uses DeepSpeedZeroOptimizer"):
        build(section(1)).restore(state)
    state = build(section(1)).capture()
    state["masters"] = state["masters"][:1]
    with pytest.raises(CheckpointError, match="resume with the trainable weights and number of processes"):
        build(section(1)).restore(state)


@pytest.mark.parametrize(
    "builder, given, error, message",
    [
        (
            "FusedAdamBuilder",
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": False}}},
            OSError("CUDA_HOME environment variable is not set. Please set it to your CUDA install root.\nmore"),
            r"optimizer.params.torch_adam: false takes a kernel .* failed \(OSError: CUDA_HOME environment variable is "
            r"not set.*nvcc, found through CUDA_HOME\). Install them, or set it to true",
        ),
        (
            "CPUAdamBuilder",
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            MissingCUDAException("CUDA_HOME does not exist, unable to compile CUDA op(s)"),
            r"zero_optimization.offload_optimizer takes a kernel .*CUDA_HOME does not exist.* or leave it out",
        ),
        (
            "CPUAdamBuilder",
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
            RuntimeError("Unable to JIT load the cpu_adam op due to ninja not being installed."),
            r"ninja not being installed",
        ),
    ],
)
def test_a_kernel_that_cannot_be_compiled_is_one_line(builder, given, error, message, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(getattr(op_builder, builder), "load", fail)
    with pytest.raises(ConfigError, match=message) as caught:
        build({**section(), **given})
    assert "\n" not in str(caught.value)


def test_the_rate_follows_the_schedule():
    engine = build(section(0), schedule="linear")
    assert engine.lr(1) == 1e-2 and engine.lr(20) == 0.0
    train(engine, range(1, 2))
    before = weights(engine)
    engine.step(20, [inputs(20)])
    assert all(torch.equal(before[name], each) for name, each in weights(engine).items())


def test_evaluation_has_no_gradients_and_ends():
    engine = build(section(0))
    with engine.evaluating() as model:
        loss = model(inputs(1))
        assert not loss.requires_grad and not engine.module.training
    assert engine.module.training


def test_precisions():
    cpu = torch.device("cpu")
    fp16 = checked({"fp16": {"enabled": True}})
    assert read_dtype(checked({}), cpu) is torch.float32 and read_dtype(checked(BF16), cpu) is torch.bfloat16
    assert read_dtype(fp16, torch.device("cuda")) is torch.float16
    with pytest.raises(ConfigError, match=r"fp16 training needs a CUDA device; on the CPU use bf16.enabled"):
        read_dtype(fp16, cpu)


def test_batch_sizes():
    both = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}
    assert read_batch_sizes(checked(both), 4) == BatchSizes(2, 3, 4)
    one = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 2}
    assert read_batch_sizes(checked(one), 4) == BatchSizes(2, 2, 4)
    assert read_batch_sizes(checked({"train_batch_size": 16}), 4) == BatchSizes(4, 1, 4)
    with pytest.raises(ConfigError, match=r"train_batch_size: 10 is not .* \(2 x 3 x 2\)"):
        read_batch_sizes(checked({**both, "train_batch_size": 10}), 2)
