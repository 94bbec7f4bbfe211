"""Why the host may wait for the device where it does: (kind, place) -> reason. See simulated_cuda.watch.Wait."""

from __future__ import annotations

START = "once, while the run starts"
MEASURED = "figures are read when they are logged, and every few steps by the guard"
SAVED = "weights are checked and written, tensor by tensor"
SHOWN = "a preview video: some small tensors, and its frames"

# Phases in which the device has nothing to do meanwhile.
WHOLE_PHASES = {"start": START, "engine": START}

REASONS = {
    ("read", "training/metrics.py:check"): MEASURED,
    ("read", "training/metrics.py:read"): MEASURED,
    ("to device", "training/metrics.py:read"): MEASURED,
    ("read", "training/evaluation.py:held_out_loss"): "the loss of a whole evaluation",
    ("read", "training/evaluation.py:adapter_update"): "once, for the summary",
    ("read", "weights/safetensors_stream.py:is_finite"): SAVED,
    ("to host", "weights/sat_folder.py:write_states"): SAVED,
    ("to host", "training/training_state.py:write_state"): SAVED,
    ("read", "sampling/run.py:_check_finite"): SHOWN,
    ("to host", "sampling/run.py:write_frames"): SHOWN,
    ("sync", "vae/convolutions.py:time_on_device"): START,
    ("to device", "vae/pieces.py:_prepare"): "a preview's image, from the CPU",
    ("read", "deepspeed/runtime/utils.py:is_invalid_grad_norm"): "DeepSpeed looks at the norm",
    ("to device", "deepspeed/runtime/utils.py:mask_nan_or_inf_with_val_inplace"): "DeepSpeed's constant",
    ("read", "deepspeed/runtime/zero/stage_1_and_2.py:has_overflow"): "DeepSpeed's flag, once per step",
}
