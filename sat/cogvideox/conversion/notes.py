"""What more than one tool says."""

MODEL_LEFT_OUT = (
    "the model in the same file is left out; if training changed it too, this LoRA alone is not what was trained: "
    "tools/merge_lora.py gives both in one"
)
CLI_DEMO = (
    "the original's inference/cli_demo.py: its versions with the flag --lora_rank divide by that number; this file "
    "carries its scale, so give --lora_rank 1"
)
