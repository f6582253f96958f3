"""What went wrong, and what to do about it.

::

    report       how the workers ended -> who failed first, where and why
    oom          whether memory ran out, and what to do then
    restarts     whether to start again, and what that has cost
"""
