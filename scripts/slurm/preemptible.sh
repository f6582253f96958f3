#!/bin/bash
# A job that may be preempted, or take longer than its time limit: it saves, requeues itself and continues.
# usage: sbatch [--partition=cheap] [--time=4:00:00] [--nodes=2] preemptible.sh train.py [ARGS]...
#SBATCH --requeue
#SBATCH --open-mode=append
minetorch-launch "$@"
