#!/usr/bin/env bash
# Slurm, 16 GPUs on two nodes: one process per node, which uses all eight GPUs of the node.
#
#   VENV=/shared/convoy-env PARTITION=gpu ACCOUNT=perception scripts/slurm_gpu.sh --dry-run     prints the batch script
#   the same without --dry-run                                                                  submits it
#
# Fill in: VENV, a Python environment with convoy-engine[cuda] on a disk that all nodes share; PARTITION and ACCOUNT,
# which `sinfo` and `sacctmgr show associations` list. Start it in a folder that all nodes share: runs/ is created there.
# Costs 16 GPUs until the run is done. After four hours the job saves and requeues itself, 50 times at most.
# To end it earlier: scancel JOB
set -euo pipefail

exec convoy launch slurm \
  --nodes 2 --gpus-per-node 8 --time 4:00:00 --option=exclusive \
  --venv "${VENV:?}" --partition "${PARTITION:?}" --account "${ACCOUNT:?}" --name "${NAME:-convoy}" "$@" -- \
  train --config="${CONFIG:-configs.lm_stdlib}"
