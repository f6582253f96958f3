#!/bin/bash
# One node: a worker for each of its GPUs, or for each task asked for.
# usage: sbatch [--gpus-per-node=8 | --ntasks-per-node=4] one-node.sh train.py [ARGS]...
#SBATCH --nodes=1
minetorch-launch "$@"
