"""Section `deepspeed`: defaults, checks, old names."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from cogvideox.config.deepspeed_section import _TOP_LEVEL, _TOP_LEVEL_PASSED, _ZERO, _ZERO_PASSED, read_deepspeed
from cogvideox.config.deepspeed_settings import DeepSpeedSection
from cogvideox.config.report import Origin, Report
from cogvideox.config.tree import build
from cogvideox.errors import ConfigError
from config.conftest import Load


def read(section: object) -> tuple[DeepSpeedSection, Report]:
    report = Report()
    return read_deepspeed(build(section, Origin("f.yaml", 1, "deepspeed")), report), report


def test_an_absent_section_is_complete_and_safe() -> None:
    report = Report()
    section = read_deepspeed(None, report)
    assert not report.errors and not report.warnings
    assert section["zero_optimization"]["overlap_comm"] is False
    assert section["fp16"] == {"enabled": False} and section["bf16"] == {"enabled": False}
    assert section["optimizer"]["type"] == "AdamW"
    assert section["optimizer"]["params"]["betas"] == [0.9, 0.95]
    assert (section["train_micro_batch_size_per_gpu"], section["gradient_accumulation_steps"]) == (1, 1)


def test_what_the_user_says_stands() -> None:
    section, report = read({"zero_optimization": {"stage": 2, "overlap_comm": True}, "gradient_clipping": 0})
    assert not report.errors
    assert section["zero_optimization"]["overlap_comm"] is True
    assert section["gradient_clipping"] == 0.0


def test_numeric_strings() -> None:
    section, report = read(
        {"optimizer": {"params": {"eps": "1e-8", "lr": "1e-4"}}, "zero_optimization": {"reduce_bucket_size": 1e9}}
    )
    assert not report.errors
    assert section["optimizer"]["params"]["eps"] == 1e-8
    assert section["zero_optimization"]["reduce_bucket_size"] == 1_000_000_000


def test_one_of_the_three_batch_sizes_is_left_to_the_number_of_processes() -> None:
    section, _ = read({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4})
    assert "gradient_accumulation_steps" not in section
    section, _ = read({"train_batch_size": 32})
    assert "train_micro_batch_size_per_gpu" not in section and section["gradient_accumulation_steps"] == 1


def test_what_several_places_ask_for_has_a_name() -> None:
    section, _ = read({**BF16, **OFFLOAD})
    assert (section.precision, section.stage, section.gradient_sums, section.is_offloaded) == ("bf16", 2, "bf16", True)
    section, _ = read({"zero_optimization": {"offload_optimizer": {"device": "none"}}})
    assert (section.precision, section.stage, section.gradient_sums, section.is_offloaded) == ("fp32", 0, "fp32", False)
    copied = section.as_dict()
    copied["zero_optimization"]["stage"] = 1
    assert section.stage == 0


@pytest.mark.parametrize("path", ["disable_python_gc", "zero_optimization.stage3_max_live_parameters"])
def test_keys_of_deepspeeds_own_are_passed_on_with_a_warning(path: str) -> None:
    block, _, key = path.rpartition(".")
    section, report = read({block: {key: 7}} if block else {key: 7})
    assert (section[block] if block else section)[key] == 7
    assert not report.errors and len(report.warnings) == 1
    assert f"deepspeed.{path}: goes to DeepSpeed as it is" in report.warnings[0]


def test_the_keys_that_are_passed_on_are_deepspeeds() -> None:
    """Read in its source: importing it takes seconds."""
    spec = find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    runtime = Path(spec.origin).parent / "runtime"
    words = set(re.findall(r"[\"'](\w+)[\"']", (runtime / "constants.py").read_text()))
    assert words >= _TOP_LEVEL_PASSED and not _TOP_LEVEL_PASSED & _TOP_LEVEL.keys()
    text = (runtime / "zero" / "config.py").read_text()
    fields = set(re.findall(r"^    (\w+): ", text, re.MULTILINE)) | set(re.findall(r'alias="(\w+)"', text))
    assert fields >= _ZERO_PASSED and not _ZERO_PASSED & _ZERO.keys()


BF16 = {"bf16": {"enabled": True}}
FP16 = {"fp16": {"enabled": True}}
OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
OWN_KERNEL = {"optimizer": {"params": {"torch_adam": False}}}


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, "fp32"),
        (BF16, "fp32"),
        (FP16, "fp32"),
        ({**BF16, "data_types": {}}, "fp32"),
        ({**BF16, "data_types": {"grad_accum_dtype": None}}, "fp32"),
        ({**BF16, "data_types": {"grad_accum_dtype": "torch.bfloat16"}}, "bf16"),
        ({**FP16, "data_types": {"grad_accum_dtype": "half"}}, "fp16"),
        ({**BF16, "data_types": {"grad_accum_dtype": "Float32"}}, "fp32"),
        ({**BF16, **OFFLOAD}, "bf16"),
        ({**BF16, **OFFLOAD, "data_types": {"grad_accum_dtype": "fp32"}}, "fp32"),
        ({**BF16, **OWN_KERNEL}, "bf16"),
        ({**FP16, **OWN_KERNEL}, "fp32"),
        ({**BF16, **OWN_KERNEL, "zero_optimization": {"stage": 2}}, "fp32"),
        (OFFLOAD, "fp32"),
    ],
)
def test_micro_batches_are_summed_in_fp32(given: dict[str, object], expected: str) -> None:
    section, report = read(given)
    assert not report.errors and section["data_types"] == {"grad_accum_dtype": expected}


@pytest.mark.parametrize(
    "given, message",
    [
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "must be fp32 for fp32 weights, not bf16"),
        ({**BF16, "data_types": {"grad_accum_dtype": "fp16"}}, "must be fp32 or bf16 for bf16 weights, not fp16"),
        ({**FP16, "data_types": {"grad_accum_dtype": "fp8"}}, "must be fp32 or fp16 for fp16 weights, not fp8"),
        (
            {**BF16, **OWN_KERNEL, "data_types": {"grad_accum_dtype": "fp32"}},
            "must be bf16 for bf16 weights, ZeRO stage 0 and torch_adam: false, not fp32",
        ),
        ({"data_types": {"grad_accum_dtype": 32}}, "32"),
        ({"data_types": {"grad_acum_dtype": "fp32"}}, "grad_accum_dtype"),
        ({"data_types": "fp32"}, "must be a mapping"),
    ],
)
def test_sums_that_are_not_possible(given: dict[str, object], message: str) -> None:
    _, report = read(given)
    assert len(report.errors) == 1 and message in str(report.errors[0])


def test_old_cpu_offload_key() -> None:
    section, _ = read({"zero_optimization": {"stage": 2, "cpu_offload": True}})
    assert section["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    section, _ = read({"zero_optimization": {"stage": 2, "cpu_offload": False}})
    assert "offload_optimizer" not in section["zero_optimization"]


def test_misplaced_loss_scale_keys_are_named_and_not_moved() -> None:
    section, report = read({"fp16": {"enabled": True}, "loss_scale": 0, "hysteresis": 2})
    assert section["fp16"] == {"enabled": True} and "loss_scale" not in section
    assert len(report.warnings) == 1
    assert "loss_scale, hysteresis beside `fp16:` instead of inside it" in report.warnings[0]


def test_fused_ema_adam_runs_as_adamw() -> None:
    section, report = read({"optimizer": {"type": "sat.ops.FusedEmaAdam", "params": {"lr": 1e-3}}})
    assert section["optimizer"]["type"] == "AdamW"
    assert "runs as AdamW" in report.warnings[0] and "no moving average (EMA)" in report.warnings[0]


@pytest.mark.parametrize(
    ("section", "match"),
    [
        ({"gradient_clippin": 1}, "unknown key 'gradient_clippin'; did you mean 'gradient_clipping'?"),
        ({"zero_optimization": {"stag": 1}}, "unknown key 'stag'; did you mean 'stage'?"),
        ({"zero_optimization": {"stage": 3}}, "deepspeed.zero_optimization.stage: must be 0, 1 or 2, not 3"),
        ({"zero_optimization": {"stage": "x"}}, "must be int, not 'x'"),
        ({"zero_optimization": 2}, "must be a mapping of keys such as stage"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16 and bf16 are both enabled: keep one"),
        ({"fp16": {"enable": True}}, "unknown key 'enable'; did you mean 'enabled'?"),
        ({"optimizer": {"type": "Adamm"}}, "unknown optimizer 'Adamm'; did you mean 'Adam'?"),
        ({"optimizer": {"params": {"learning_rate": 1}}}, "unknown key 'learning_rate'"),
        ({"optimizer": {"params": {"lr": "fast"}}}, "must be float, not 'fast'"),
        ({"optimizer": {"params": {"lr": -1}}}, "deepspeed.optimizer.params.lr: must not be negative: -1"),
        ({"optimizer": {"params": {"betas": [0.9]}}}, "must be a list of 2 float, not [0.9]"),
        ({"optimizer": {"params": {"betas": [0.9, 1.0]}}}, "must lie in 0..1 (1 excluded)"),
        ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu: must be at least 1, not 0"),
        ({"train_batch_size": 0}, "train_batch_size: must be at least 1, not 0"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps: must be at least 1"),
        ({"gradient_clipping": -1}, "gradient_clipping: must be 0 (off) or more, not -1"),
        ({"scheduler": {"type": "WarmupLR"}}, "the learning rate follows args.lr_schedule"),
        (3, "must be a mapping of keys such as train_micro_batch_size_per_gpu"),
    ],
)
def test_mistakes(section: object, match: str) -> None:
    _, report = read(section)
    assert len(report.errors) == 1 and match in report.errors[0], report.errors
    assert report.errors[0].startswith("f.yaml:1: deepspeed")


def test_mistakes_are_reported_with_file_and_line(train: Load, tmp_path: Path) -> None:
    file = tmp_path / "extra.yaml"
    file.write_text("deepspeed:\n  zero_optimization:\n    stage: 3\n")
    with pytest.raises(ConfigError, match=r"extra\.yaml:3: deepspeed\.zero_optimization\.stage: must be 0, 1 or 2"):
        train(more=[str(file)])


@pytest.mark.parametrize("kind", ["adamw", "ADAMW", "AdamW", "sat.ops.fusedemaadam"])
def test_optimizers_in_any_case(kind: str) -> None:
    section, report = read({"optimizer": {"type": kind, "params": {"lr": 1e-3}}})
    assert section["optimizer"]["type"] == "AdamW" and not report.errors
