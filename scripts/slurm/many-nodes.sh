#!/bin/bash
# Several nodes: the launcher starts itself on each of them.
# usage: sbatch [--nodes=4] [--gpus-per-node=8] many-nodes.sh train.py [ARGS]...
#SBATCH --nodes=2
minetorch-launch "$@"
