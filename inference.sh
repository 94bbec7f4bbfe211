#!/usr/bin/env bash
# Sample videos.
#   bash inference.sh                                       the demo's prompts with the newest demo checkpoint (else its base model)
#   bash inference.sh MODEL.yaml INFERENCE.yaml [key=value ...], for example
#   bash inference.sh configs/cogvideox_2b_lora.yaml configs/inference.yaml args.load=ckpts/my_run 'args.prompts=["a ship"]'
# NPROC=4 shares the prompts out over four processes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$root/tools/setup_env.sh"

if [ $# -eq 0 ]; then
  cd "$root"
  newest=$(ls -1td runs/demo/*/latest 2>/dev/null | head -n 1 || true)
  if [ -n "$newest" ]; then
    load=$(dirname "$newest")
    say "sampling with $load"
  else
    load=demo/transformer
    say "no demo checkpoint below runs/demo yet (bash finetune_single_gpu.sh makes one): sampling with the base model $load"
  fi
  set -- configs/demo_lora.yaml configs/demo_inference.yaml "args.load=$load" "args.output_dir=runs/demo_samples/$(date +%m-%d-%H-%M-%S)"
fi
if [ "${NPROC:-1}" -gt 1 ]; then
  exec python "$root/tools/launch.py" "$NPROC" "$root/sat/sample_video.py" --base "$@"
fi
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE
exec python "$root/sat/sample_video.py" --base "$@"
