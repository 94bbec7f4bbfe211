"""What more than one tool says."""

MODEL_LEFT_OUT = (
    "the model in the same file is left out; if training changed it too, this LoRA alone is not what was trained: "
    "tools/merge_lora.py gives both in one"
)
