"""The processes of a launch: who starts them, and who ends them.

::

    launcher          one asyncio loop, standard library only
      orphan reaper   starts every other process, and kills them all when the launcher is gone
        fork server   imports torch once
          worker      runs the script: forked, or with ``--start-method spawn`` a child of the reaper
          store       holds a torch.distributed.TCPStore, when one is needed
"""
