"""What runs inside a worker process: it makes itself at home, runs the target, and ends like ``python``.

The process comes from ``multiprocessing`` (a fork server's child, or a spawned one), where much differs from
``python SCRIPT``: no ``atexit``, another ``__main__``, a start method already chosen, a parent process.
Everything here undoes one of those differences or ties the process to its launcher. Standard library only:
a worker imports nothing that its script does not ask for.
"""

from __future__ import annotations

import _thread
import base64
import builtins
import ctypes
import faulthandler
import functools
import gc
import importlib.machinery
import io
import itertools
import json
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.process
import os
import pickle
import re
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
import types
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from minetorch_launch.ending import end_process
from minetorch_launch.gloo import let_threads_finish
from minetorch_launch.hangs.memory import SharedMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ROLL_CALL_SIGNAL", "Task", "run"]

ROLL_CALL_SIGNAL = signal.SIGRTMIN + 16
"""On this signal a worker writes its stacks into the memory that it shares with the launcher.

Amid the real-time signals: libraries and profilers that need one count from either end of them. The ordinary
ones are taken: SIGUSR1 by batch systems and scripts, SIGUSR2 by torch's profiler, SIGPROF and SIGALRM by samplers.
"""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Task:
    """All that a worker is told; its rank comes from the environment that torch elastic sets."""

    address: str
    """Name of the launcher's socket in Linux's abstract namespace."""

    token: str
    """What a worker shows there to be let in."""

    signal_mask: tuple[int, ...]
    """Signals that were blocked when the launcher was called: the script's own mask."""

    forked: bool
    """Whether this process comes from a fork server, not from an interpreter of its own."""

    attempt: int = 0
    """Which start of all workers this one belongs to. Torch's own count leaves out those for another node."""

    env: Mapping[str, str | None] = field(default_factory=dict)
    """Variables to set, or with None to unset."""

    script: str | None = None
    """Path of a script to run, or"""

    module: str | None = None
    """name of a module to run, or"""

    function: tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]] | None = None
    """a function to call, with its arguments."""

    args: tuple[str, ...] = ()
    """``sys.argv[1:]`` of a script or module."""

    sys_path: tuple[str, ...] | None = None
    """``sys.path`` as the target shall find it; None: as it is."""


def run(task: Task) -> NoReturn:
    """Do ``task`` in this process and end it. The entry point that torch elastic calls."""
    os.setsid()  # Ctrl-C reaches the launcher only, which passes it on once; and what we start can be killed with us
    _die_with_parent()
    memory = SharedMemory.make(os.getpid())
    # Python makes system calls restart after this handler, and a script's children inherit it, or the default
    # action with exec; they are never sent the signal.
    faulthandler.register(ROLL_CALL_SIGNAL, file=memory.stacks, all_threads=True, chain=False)
    link = _Link(task, memory)
    _take_streams(link)
    faulthandler.enable(memory.crash, all_threads=True)
    _become_main_process()
    _keep_interrupts()
    _set_environment(task)
    _destroy_groups_safely()
    os.environ["MINETORCH_HEARTBEAT_FD"] = str(memory.heartbeat)
    gc.freeze()  # what came with the fork is nothing for the collector, which would copy it by looking
    gc.enable()
    end_process(_run_target(task, link), forked=task.forked)


class _Link:
    """The socket to the launcher: passes our output streams and says how we ended."""

    def __init__(self, task: Task, memory: SharedMemory) -> None:
        self._pid = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect("\0" + task.address)
        out_read, self.out = os.pipe()
        err_read, self.err = os.pipe()
        hello = {
            "token": task.token,
            "pid": self._pid,
            "rank": int(os.environ["RANK"]),
            "attempt": task.attempt,
            "main_thread": threading.get_ident(),
            "stacks_fd": memory.stacks,
        }
        socket.send_fds(self._socket, [_line(hello)], [out_read, err_read, *memory.fds])
        os.close(out_read)
        os.close(err_read)
        self._sending = threading.Lock()
        # Not one of threading's, which the script would find among its own.
        _thread.start_new_thread(self._answer_roll_calls, (memory,))

    def tell(self, message: Mapping[str, object]) -> None:
        """Send the launcher one message."""
        if self.is_ours:
            with suppress(OSError), self._sending:
                self._socket.sendall(_line(message))

    def _answer_roll_calls(self, memory: SharedMemory) -> None:
        """Write all threads' stacks whenever the launcher asks.

        While this thread does it no other runs Python code: the signal's handler, which cannot wait for that, may
        look at a stack that is being changed, and crash. It is for when this thread cannot run at all.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the script's main thread's
        with suppress(OSError):
            while asked := self._socket.recv(4096):
                faulthandler.dump_traceback(memory.stacks, all_threads=True)
                self.tell({"event": "stacks", "number": int(asked.split()[-1])})

    @property
    def is_ours(self) -> bool:
        """Whether this is the worker itself: a script may fork a child that comes back here, too."""
        return os.getpid() == self._pid


def _line(message: Mapping[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _die_with_parent() -> None:
    """Be killed, even amid C code, when the fork server (or with spawn: the launcher) dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _take_streams(link: _Link) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for mine, standard in ((null, 0), (link.out, 1), (link.err, 2)):
        os.dup2(mine, standard)
        os.close(mine)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0, closefd=False))  # type: ignore[misc]
    for stream in (sys.stdout, sys.stderr):
        # Into a pipe Python would keep lines back until 8 KiB are full: the console would lag by minutes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def _become_main_process() -> None:
    """Let ``multiprocessing`` see this process as ``python SCRIPT`` would show it: the first of its tree."""
    server: Any = multiprocessing.forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        # While anyone holds this pipe the fork server stays; only the launcher shall, so that they end together.
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
    current: Any = multiprocessing.process.current_process()
    current._name, current._identity, current._parent_pid = "MainProcess", (), None
    current._config.pop("daemon", None)
    process: Any = multiprocessing.process
    process._parent_process = None
    process._process_counter = itertools.count(1)
    # Else set_start_method() in the script fails: "context has already been set".
    multiprocessing.context._default_context._actual_context = None  # type: ignore[attr-defined]


def _keep_interrupts() -> None:
    """Deliver a Ctrl-C again that fell into a destructor or a fork hook, where Python drops every exception.

    Workers get it but once; one that lost it would go on until it is killed.
    """
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if dropped.exc_type is not KeyboardInterrupt:
            before(dropped)
        elif os.getpid() == worker:
            again = threading.Timer(0.05, os.kill, (worker, signal.SIGINT))
            again.daemon = True
            again.start()

    worker = os.getpid()
    sys.unraisablehook = hook


def _set_environment(task: Task) -> None:
    for name, value in task.env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Forked workers share the generator that the fork server imported; fresh processes would each seed their own.
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    if task.sys_path is not None:
        sys.path[:] = task.sys_path


def _destroy_groups_safely() -> None:
    """Have ``destroy_process_group`` wait for gloo's threads first, without which it may hang for ever."""
    modules = [sys.modules.get(name) for name in ("torch.distributed", "torch.distributed.distributed_c10d")]
    destroy = getattr(modules[0], "destroy_process_group", None)  # torch may have been built without
    if destroy is None:
        return

    @functools.wraps(destroy)
    def destroy_when_idle(*args: Any, **kwargs: Any) -> None:
        let_threads_finish()
        destroy(*args, **kwargs)

    for module in modules:
        module.destroy_process_group = destroy_when_idle  # type: ignore[union-attr]


def _run_target(task: Task, link: _Link) -> int:
    """Run the target and return the exit code that ``python`` would end with."""
    try:
        # Blocked since before this process was made, so that a stop that came early is not lost but taken here.
        signal.pthread_sigmask(signal.SIG_SETMASK, task.signal_mask)
        if task.function is not None:
            call, args, kwargs = task.function
            result = pickle.dumps(call(*args, **kwargs))
            link.tell({"event": "result", "pickle": base64.b64encode(result).decode()})
        elif task.module is not None:
            _fresh_main()
            sys.argv = ["-m", *task.args]
            runpy._run_module_as_main(task.module)  # type: ignore[attr-defined]
        elif task.script is not None:
            sys.argv = [task.script, *task.args]
            _run_script(task.script)
    except SystemExit as error:
        return _tell_exit(error, link)
    except BaseException as error:
        return _tell_exception(error, link)
    return 0


def _fresh_main() -> Any:
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    main.__annotations__ = {}
    # The second is what multiprocessing's children call it when they send the script's objects back.
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    return main


def _run_script(path: str) -> None:
    main = _fresh_main()
    main.__file__ = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118 - as Python does, "a/../b" and all
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", main.__file__)
    main.__cached__ = None
    with io.open_code(main.__file__) as file:
        source = file.read()
    exec(compile(source, main.__file__, "exec", dont_inherit=True), main.__dict__)


def _tell_exit(error: SystemExit, link: _Link) -> int:
    code = error.code
    if code is None or (isinstance(code, int) and code & 0xFF == 0):
        return 0
    if isinstance(code, int):
        number, call = code & 0xFF, f"called sys.exit({code})"
    else:
        number, call = 1, f"called sys.exit({str(code)!r})"
        sys.stderr.write(f"{code}\n")
    link.tell({"event": "failed", "time": time.time(), "code": number, "summary": call, "traceback": "", **_known()})
    return number


def _tell_exception(error: BaseException, link: _Link) -> int:
    error.__traceback__ = _without_launcher_frames(error.__traceback__)
    interrupted = isinstance(error, KeyboardInterrupt)
    message = {
        "event": "failed",
        "time": time.time(),
        "code": -signal.SIGINT if interrupted else 1,
        "summary": _in_a_line(error),
        "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        **_known(),
    }
    link.tell(message)
    if _has_own_hook() or not link.is_ours:
        # The script brought a hook of its own (a log, a crash service), or this is a child of whose end the
        # launcher will not hear. Else nothing is printed here: the launcher shows the traceback, once.
        sys.excepthook(type(error), error, error.__traceback__)
    return -signal.SIGINT if interrupted else 1


def _known() -> dict[str, object]:
    """What the launcher shall know of the script to judge a failure."""
    return {"uses_trainer": "minetorch" in sys.modules}


# What torch makes of an error in a DataLoader's worker: the original's traceback, and below its frames what it says.
_OF_LOADER = re.compile(r"Caught \w+ in (DataLoader worker process \d+)\.\n(?:.*\n)* {2}.*\n(\S.*)")


def _in_a_line(error: BaseException) -> str:
    """``ValueError: what it says``, but for a syntax error, which begins with the place."""
    lines = traceback.format_exception_only(type(error), error)
    if wrapped := _OF_LOADER.search("".join(lines)):
        return f"{wrapped[2]} (in {wrapped[1]})"
    return next((line for line in lines if not line.startswith(" ")), lines[-1]).split("\n")[0]


def _has_own_hook() -> bool:
    # init_process_group sets one that only puts "[rank0]:" before each line.
    torchs = getattr(sys.excepthook, "__module__", None) == "torch.distributed.distributed_c10d"
    return sys.excepthook is not sys.__excepthook__ and not torchs


def _without_launcher_frames(trace: types.TracebackType | None) -> types.TracebackType | None:
    own = {__file__, runpy.__file__, "<frozen runpy>", "<frozen importlib._bootstrap>"}
    while trace is not None and (
        trace.tb_frame.f_code.co_filename in own or "__tracebackhide__" in trace.tb_frame.f_locals
    ):
        trace = trace.tb_next
    return trace
