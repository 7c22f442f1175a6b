#!/usr/bin/env bash
# isoflop launch torchrun: bash THIS_FILE. A run that dies is started again, at most {{ job.restarts }} times, and goes on
# from its last checkpoint. One process: training over several GPUs does not exist yet.
{% include "before.sh" %}
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else the first restart meets the address of the dead process
exec torchrun --standalone --nproc-per-node=1 --max-restarts={{ job.restarts }} --shutdown-timeout={{ job.grace_s }} \
    -m isoflop {{ words(job, job.recipe_here()) }}
