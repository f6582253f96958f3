"""What went wrong and what to do about it. Pure.

::

    worker_exit       how one worker ended, and what it reports about its exception
    report            how all workers ended -> which failed first, where and why
    oom               whether memory ran out, and what to do then
    restart_policy    whether to restart, and what a restart cost
"""
