#!/usr/bin/env bash
# Train on one device.
#   bash finetune_single_gpu.sh                                    the whole job on the small model in demo/, CUDA or CPU
#   bash finetune_single_gpu.sh MODEL.yaml SFT.yaml [key=value ...]  train what these say, for example
#   bash finetune_single_gpu.sh configs/cogvideox_2b_lora.yaml configs/sft.yaml 'args.train_data=[clips]'
# To encode clips and captions once instead of in every run: python sat/cache_dataset.py --base MODEL.yaml SFT.yaml args.cache=DIR ...
# fills DIR, and the same args.cache=DIR here uses it (docs/caching.md).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$root/tools/setup_env.sh"

# A shell inside a cluster job may carry another launcher's variables; one process needs none of them.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE

if [ $# -eq 0 ]; then
  exec python "$root/tools/run_demo.py"
fi
exec python "$root/sat/train_video.py" --base "$@"
