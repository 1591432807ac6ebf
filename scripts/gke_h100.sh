#!/usr/bin/env bash
# GKE, 16 H100s on two a3-highgpu-8g nodes: one pod per node, which uses all eight GPUs of the node.
#
#   IMAGE=REGISTRY/convoy:1.0-cuda CLAIM=runs scripts/gke_h100.sh           prints the JobSet
#   the same with --apply                                                   starts it
#
# Fill in: IMAGE, built by `docker build --build-arg VARIANT=cuda` and pushed; CLAIM, a PersistentVolumeClaim for runs/
# with access mode ReadWriteMany (Filestore, or a bucket mounted by Cloud Storage FUSE); QUEUE, if you use Kueue.
# The cluster needs JobSet and a node pool of that machine type. GPUDirect between nodes needs Google's extensions of
# the pods, which this script does not add: without them NCCL uses TCP.
# Costs 16 H100s until the run is done. To end it earlier: kubectl delete jobset convoy-h100
set -euo pipefail

exec convoy launch k8s \
  --name "${NAME:-convoy-h100}" --image "${IMAGE:?}" --claim "${CLAIM:?}" ${QUEUE:+--queue "$QUEUE"} \
  --nodes 2 --gpus-per-node 8 --gpu nvidia-h100-80gb --cpus 200 --memory 1500Gi --shm 64Gi "$@" -- \
  train --config="${CONFIG:-configs.lm_stdlib}"
