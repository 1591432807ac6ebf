#!/usr/bin/env bash
# GKE, 16 H100s on two nodes a3-highgpu-8g: one pod a node, which drives all eight of its GPUs.
#
#   IMAGE=REGISTRY/convoy:1.0-cuda CLAIM=runs scripts/gke_h100.sh           prints the JobSet
#   the same with --apply                                                   starts it
#
# Fill in: IMAGE, built by `docker build --build-arg VARIANT=cuda` and pushed; CLAIM, a PersistentVolumeClaim of access
# mode ReadWriteMany (Filestore, or a bucket through Cloud Storage FUSE), where runs/ lies; QUEUE, if you have Kueue.
# The cluster needs JobSet and a node pool of that machine type. GPUDirect over several nodes needs Google's own
# additions to the pods, which are not here: without them NCCL goes over TCP.
# Costs 16 H100s until the run is done. To end it before: kubectl delete jobset convoy-h100
set -euo pipefail

exec convoy launch k8s \
  --name "${NAME:-convoy-h100}" --image "${IMAGE:?}" --claim "${CLAIM:?}" ${QUEUE:+--queue "$QUEUE"} \
  --nodes 2 --gpus-per-node 8 --gpu nvidia-h100-80gb --cpus 200 --memory 1500Gi --shm 64Gi "$@" -- \
  train --config="${CONFIG:-configs.lm_stdlib}"
