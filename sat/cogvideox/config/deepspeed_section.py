"""Section `deepspeed`: checked and completed once, and handed on as an object that needs no second check.

DeepSpeed checks the keys inside its blocks but not at its top level, where a misplaced key is ignored.
"""

from __future__ import annotations

import ast
from typing import Any

from cogvideox.config.aliases import OPTIMIZER_ALIASES
from cogvideox.config.deepspeed_settings import DeepSpeedSection, is_offloaded
from cogvideox.config.report import Report
from cogvideox.config.tree import Node
from cogvideox.config.value_types import TypeMismatch, convert

_BATCH_FACTORS = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
_LOSS_SCALE_KEYS = ("loss_scale", "loss_scale_window", "hysteresis", "min_loss_scale")
_TOP_LEVEL: dict[str, str] = {
    "train_micro_batch_size_per_gpu": "int",
    "train_batch_size": "int",
    "gradient_accumulation_steps": "int",
    "gradient_clipping": "float",
    "steps_per_print": "int",
    "zero_allow_untested_optimizer": "bool",
    "zero_force_ds_cpu_optimizer": "bool",
    "prescale_gradients": "bool",
    "gradient_predivide_factor": "float",
    "communication_data_type": "str | None",
    "wall_clock_breakdown": "bool",
    "dump_state": "bool",
    "optimizer": "Any",  # these five are read key by key
    "zero_optimization": "Any",
    "bf16": "Any",
    "fp16": "Any",
    "activation_checkpointing": "dict",
    "data_types": "Any",
    "flops_profiler": "dict",
    "comms_logger": "dict",
}
_ZERO: dict[str, str] = {
    "stage": "int",
    "contiguous_gradients": "bool",
    "overlap_comm": "bool",
    "reduce_scatter": "bool",
    "reduce_bucket_size": "int",
    "allgather_partitions": "bool",
    "allgather_bucket_size": "int",
    "load_from_fp32_weights": "bool",
    "elastic_checkpoint": "bool",
    "offload_optimizer": "dict | None",
    "offload_param": "dict | None",
    "cpu_offload": "bool",
    "sub_group_size": "int",
    "round_robin_gradients": "bool",
    "ignore_unused_parameters": "bool",
}
# Keys of DeepSpeed's own, here and at the top level, that this program doesn't use: passed on, with a warning.
_ZERO_PASSED = frozenset(
    (
        "use_multi_rank_bucket_allreduce",
        "compute_grad_norm",
        "zenflow",
        "cpu_offload_param",
        "cpu_offload_use_pin_memory",
        "prefetch_bucket_size",
        "param_persistence_threshold",
        "model_persistence_threshold",
        "max_live_parameters",
        "max_reuse_distance",
        "gather_16bit_weights_on_model_save",
        "module_granularity_threshold",
        "use_all_reduce_for_fetch_params",
        "allgather_sequential",
        "stage3_gather_fp16_weights_on_model_save",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_model_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_module_granularity_threshold",
        "stage3_use_all_reduce_for_fetch_params",
        "stage3_allgather_sequential",
        "legacy_stage1",
        "parameter_alignment",
        "zero_hpz_partition_size",
        "zero_quantized_weights",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_gradients",
        "memory_efficient_linear",
        "pipeline_loading_checkpoint",
        "override_module_apply",
        "log_trace_cache_warnings",
        "enable_sanity_checks",
        "save_muon_momentum_buffer_in_memory",
        "leaf_module",
    )
)
_TOP_LEVEL_PASSED = frozenset(
    (
        "checkpoint",
        "dataloader_drop_last",
        "disable_allgather",
        "disable_python_gc",
        "gradient_allreduce_op",
        "log_level",
        "memory_breakdown",
        "seq_parallel_communication_data_type",
        "torch_autocast",
        "use_data_before_expert_parallelism",
    )
)
_FP16: dict[str, str] = {
    "enabled": "bool",
    "auto_cast": "bool",
    "loss_scale": "float",
    "initial_scale_power": "int",
    "loss_scale_window": "int",
    "hysteresis": "int",
    "consecutive_hysteresis": "bool",
    "min_loss_scale": "float",
}
_BF16: dict[str, str] = {"enabled": "bool", "immediate_grad_update": "bool", "check_grad_overflow": "bool"}
_DATA_TYPES: dict[str, str] = {"grad_accum_dtype": "str | None"}
# The names that DeepSpeed knows each precision under; the first is ours.
_PRECISIONS: dict[str, tuple[str, ...]] = {
    "fp32": ("fp32", "float32", "float", "torch.float32"),
    "bf16": ("bf16", "bfloat16", "torch.bfloat16"),
    "fp16": ("fp16", "float16", "half", "torch.float16"),
}
_OPTIMIZER_PARAMS: dict[str, str] = {
    "lr": "float",
    "betas": "tuple[float, float]",
    "eps": "float",
    "weight_decay": "float",
    "torch_adam": "bool",
    "adam_w_mode": "bool",
    "bias_correction": "bool",
    "fused": "bool",
}
OPTIMIZERS = ("AdamW", "Adam")
_IN_ANY_CASE = {name.lower(): name for name in (*OPTIMIZERS, *OPTIMIZER_ALIASES)}
ZERO_STAGES = (0, 1, 2)
_ZERO_3 = "stage 3 is not supported by this version"

_DEFAULTS: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 0.1,
    "steps_per_print": 1_000_000_000,  # our progress bar prints; DeepSpeed's line forces a device sync
    "zero_allow_untested_optimizer": True,
    "wall_clock_breakdown": False,
}
# Overlapping communication and odd bucket sizes have lost gradients in several DeepSpeed versions.
_ZERO_DEFAULTS: dict[str, Any] = {
    "stage": 0,
    "overlap_comm": False,
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "allgather_partitions": True,
    "reduce_bucket_size": 500_000_000,
    "allgather_bucket_size": 500_000_000,
    "load_from_fp32_weights": False,
}
_OPTIMIZER_DEFAULTS: dict[str, Any] = {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 1e-4}


def read_deepspeed(node: Node | None, report: Report) -> DeepSpeedSection:
    """The completed section. Problems go to the report; values that fail are left at their defaults."""
    beside = (*_LOSS_SCALE_KEYS, "scheduler")
    given = _block(node, _TOP_LEVEL, report, allowed_beside=beside, passed=_TOP_LEVEL_PASSED)
    result: dict[str, Any] = {**_DEFAULTS, **given}
    if "train_batch_size" in given:  # a factor that is not given follows from the number of processes
        derived = next((key for key in _BATCH_FACTORS if key not in given), None)
        if derived is not None:
            del result[derived]
    result["zero_optimization"] = _read_zero(node, report)
    result["fp16"] = {"enabled": False, **_block(_child(node, "fp16"), _FP16, report)}
    result["bf16"] = {"enabled": False, **_block(_child(node, "bf16"), _BF16, report)}
    result["optimizer"] = _read_optimizer(_child(node, "optimizer"), report)
    result["data_types"] = _read_data_types(_child(node, "data_types"), result, report)
    _check_ranges(node, result, report)
    _warn_misplaced(node, report)
    return DeepSpeedSection(result)


def _child(node: Node | None, name: str) -> Node | None:
    child = None if node is None else node.child(name)
    return None if child is None or child.value is None else child


def _block(
    node: Node | None,
    types: dict[str, str],
    report: Report,
    allowed_beside: tuple[str, ...] = (),
    passed: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """The keys of one mapping that are known and of the right type, and those that are passed on as they are."""
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        report.error(node.origin, f"must be a mapping of keys such as {', '.join(list(types)[:4])}")
        return {}
    values = {}
    for key, child in node.value.items():
        if key not in types:
            if key in passed:
                values[key] = child.plain()
                report.warn(child.origin, "goes to DeepSpeed as it is: this program doesn't check it")
            elif key not in allowed_beside:
                report.unknown(child.origin, key, types)
            continue
        try:
            values[key] = _listed(convert(child.plain(), ast.parse(types[key], mode="eval").body))
        except TypeMismatch as error:
            report.error(child.origin, str(error))
    return values


def _listed(value: Any) -> Any:
    """DeepSpeed's dict is saved as YAML and JSON, which know no tuples."""
    return list(value) if isinstance(value, tuple) else value


def _read_zero(node: Node | None, report: Report) -> dict[str, Any]:
    block = _child(node, "zero_optimization")
    given = _block(block, _ZERO, report, passed=_ZERO_PASSED)
    offload = given.pop("cpu_offload", False)
    if offload:
        given.setdefault("offload_optimizer", {"device": "cpu", "pin_memory": True})
    zero = {**_ZERO_DEFAULTS, **given}
    if block is not None and zero["stage"] not in ZERO_STAGES:
        report.error(block.value["stage"].origin, f"must be 0, 1 or 2, not {zero['stage']}: {_ZERO_3}")
        zero["stage"] = _ZERO_DEFAULTS["stage"]
    return zero


def _read_optimizer(node: Node | None, report: Report) -> dict[str, Any]:
    given = _block(node, {"type": "str", "params": "Any"}, report)
    kind = _IN_ANY_CASE.get(given.get("type", "AdamW").lower(), given.get("type", "AdamW"))
    if kind in OPTIMIZER_ALIASES and node is not None:
        text = f"{kind} runs as {OPTIMIZER_ALIASES[kind]} with the same parameters: nothing is compiled"
        report.warn(node.value["type"].origin, f"{text}, and no moving average (EMA) of the weights is kept")
        kind = OPTIMIZER_ALIASES[kind]
    elif kind not in OPTIMIZERS and node is not None:
        report.unknown(node.value["type"].origin, kind, [*OPTIMIZERS, *OPTIMIZER_ALIASES], "optimizer")
        kind = "AdamW"
    params = {**_OPTIMIZER_DEFAULTS, **_block(_child(node, "params"), _OPTIMIZER_PARAMS, report)}
    return {"type": kind, "params": params}


def _read_data_types(node: Node | None, result: dict[str, Any], report: Report) -> dict[str, Any]:
    """In which precision the gradients of a step's micro batches are summed: fp32 unless the user says the weights'
    own, or DeepSpeed would need the device's memory for it that the offload is to save."""
    zero, params = result["zero_optimization"], result["optimizer"]["params"]
    weights = next((name for name in ("bf16", "fp16") if result[name]["enabled"]), "fp32")
    # DeepSpeed's own kernel without ZeRO: it refuses to sum in anything else. (fp16 runs with stage 1.)
    is_bound = zero["stage"] == 0 and weights == "bf16" and not params.get("torch_adam", True)
    given = _block(node, _DATA_TYPES, report).get("grad_accum_dtype")
    if given is None:
        return {"grad_accum_dtype": weights if is_offloaded(zero) or is_bound else "fp32"}
    named = next((name for name, words in _PRECISIONS.items() if given.lower() in words), given)
    valid = [weights] if is_bound else list(dict.fromkeys(["fp32", weights]))
    if named not in valid:
        assert node is not None
        why = f"for {weights} weights" + (", ZeRO stage 0 and torch_adam: false" if is_bound else "")
        report.error(node.value["grad_accum_dtype"].origin, f"must be {' or '.join(valid)} {why}, not {given}")
        return {"grad_accum_dtype": valid[0]}
    return {"grad_accum_dtype": named}


def _check_ranges(node: Node | None, result: dict[str, Any], report: Report) -> None:
    def fail(path: str, text: str) -> None:
        here: Node | None = node
        for key in path.split("."):
            here = None if here is None else here.child(key)
        assert here is not None, "a default is out of range"
        report.error(here.origin, text)

    for key in (*_BATCH_FACTORS, "train_batch_size", "steps_per_print"):
        if key in result and result[key] < 1:
            fail(key, f"must be at least 1, not {result[key]}")
    if result["gradient_clipping"] < 0:
        fail("gradient_clipping", f"must be 0 (off) or more, not {result['gradient_clipping']:g}")
    params = result["optimizer"]["params"]
    for key in ("lr", "eps", "weight_decay"):
        if params[key] < 0:
            fail(f"optimizer.params.{key}", f"must not be negative: {params[key]:g}")
    if not all(0 <= beta < 1 for beta in params["betas"]):
        fail("optimizer.params.betas", f"must lie in 0..1 (1 excluded), not {params['betas']}")
    if result["fp16"]["enabled"] and result["bf16"]["enabled"]:
        fail(
            "fp16.enabled",
            "fp16 and bf16 are both enabled: keep one (2B was trained in fp16; the others need bf16)",
        )


def _warn_misplaced(node: Node | None, report: Report) -> None:
    scheduler = _child(node, "scheduler")
    if scheduler is not None:
        report.error(
            scheduler.origin,
            "the learning rate follows args.lr_schedule, args.warmup_steps and args.min_lr_ratio",
        )
    found = [key for key in _LOSS_SCALE_KEYS if node is not None and node.child(key) is not None]
    if found and node is not None:
        report.warn(
            node.value[found[0]].origin,
            f"{', '.join(found)} beside `fp16:` instead of inside it: DeepSpeed ignores them there; "
            "move them into fp16 if you mean them",
        )
