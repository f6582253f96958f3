"""Launches within a SLURM job, and the submission of one.

::

    environment  the job that a process is part of, from SLURM's variables: pure
    options      what the job adds to the user's options: pure
    cli_tools    what SLURM's commands answer, and the requeueing of a job
    srun         the launcher in the batch script: starts one launcher per node
    sbatch       writes and submits the batch script
"""
