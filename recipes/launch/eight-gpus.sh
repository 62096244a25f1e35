#!/bin/sh
# A recipe on the GPUs of one machine.
#   recipes/launch/eight-gpus.sh RECIPE            each GPU holds the whole model (DDP)
#   recipes/launch/eight-gpus.sh RECIPE fsdp       weights are sharded (FSDP2): for models that do not fit one GPU
#   recipes/launch/eight-gpus.sh RECIPE torchrun   the same as the first, without accelerate's launcher
#   GPUS=4 recipes/launch/eight-gpus.sh RECIPE
# `lepta plan RECIPE --gpus 8` says which of them fit.
set -eu
recipe=${1:?usage: eight-gpus.sh RECIPE [ddp|fsdp|torchrun]}
way=${2:-ddp}
gpus=${GPUS:-8}
here=$(python -c 'import torch; print(torch.cuda.device_count())')
if [ "$here" -lt "$gpus" ]; then
    echo "eight-gpus.sh: torch sees $here GPUs here, expected $gpus; give GPUS=$here, or run: lepta adapt $recipe" >&2
    exit 2
fi

case $way in
ddp)
    accelerate launch --multi_gpu --num_processes "$gpus" --num_machines 1 --mixed_precision bf16 --dynamo_backend no \
        -m lepta adapt "$recipe"
    ;;
fsdp)
    accelerate launch --num_processes "$gpus" --num_machines 1 --mixed_precision bf16 --dynamo_backend no \
        --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP \
        --fsdp_reshard_after_forward true --fsdp_state_dict_type SHARDED_STATE_DICT \
        -m lepta adapt "$recipe"
    ;;
torchrun)
    torchrun --standalone --nproc_per_node "$gpus" -m lepta adapt "$recipe"
    ;;
*)
    echo "eight-gpus.sh: $way: expected ddp, fsdp or torchrun" >&2
    exit 2
    ;;
esac
