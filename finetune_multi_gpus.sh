#!/usr/bin/env bash
# Train on several devices.
#   bash finetune_multi_gpus.sh MODEL.yaml SFT.yaml [key=value ...]   all visible GPUs of this machine; NPROC=4 for another number
#   HOSTFILE=hosts bash finetune_multi_gpus.sh ...                    the machines in a DeepSpeed hostfile ("name slots=8" a line)
# Without arguments: the demo of finetune_single_gpu.sh with its training on all devices (two processes where there is no GPU).
# To encode clips and captions once instead of in every run: python tools/launch.py N sat/cache_dataset.py --base MODEL.yaml SFT.yaml
# args.cache=DIR ... fills DIR, and the same args.cache=DIR here uses it (docs/caching.md).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$root/tools/setup_env.sh"

devices=$(python -c 'import torch; print(torch.cuda.device_count())')
NPROC=${NPROC:-$((devices > 0 ? devices : 2))}

if [ $# -eq 0 ]; then
  exec python "$root/tools/run_demo.py" --processes "$NPROC"
fi
if [ -n "${HOSTFILE:-}" ]; then
  say "deepspeed launcher over the hosts in $HOSTFILE"
  exec deepspeed --hostfile "$HOSTFILE" "$root/sat/train_video.py" --base "$@"
fi
say "$NPROC processes"
exec python "$root/tools/launch.py" "$NPROC" "$root/sat/train_video.py" --base "$@"
