"""Launches within a SLURM job, and the submission of one.

::

    job          where in a job this is, and what follows from it: pure
    commands     what is asked of SLURM, and told it
    batch        the launcher in the batch script: one more on each node, by srun
    sbatch       writes the batch script itself
"""
