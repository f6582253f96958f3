"""What a worker reports about its own exception: whose fault it is, and where it was raised."""

import json
import runpy
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from minetorch.errors import LostRankError, RemoteError
from minetorch_launch.failures.worker_exit import (
    MESSAGE_FIELDS,
    describe_exception,
    describe_exit,
    is_secondary,
    repeats_peer_error,
)

GLOO = (
    "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset"
)
WRAPPED_MONITOR = f"[Rank 0]: Rank 1 failed to pass monitoredBarrier in 1000 ms\n Original exception: \n{GLOO}"


def caught(action):
    try:
        action()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def raised_in(folder, error):
    """Raise ``error`` from a function whose file is in ``folder``."""
    names = {"error": error}
    exec(compile("def f():\n    raise error", f"{folder}/x.py", "exec"), names)
    return caught(names["f"])


def raise_(error, *, cause=None):
    if cause is None:
        raise error
    raise error from cause


DISTRIBUTED = dist.__path__[0]


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError("NCCL error"),
        dist.DistNetworkError("Connection refused"),
        dist.DistStoreError("wait timeout"),
        RuntimeError(GLOO),
        RuntimeError(WRAPPED_MONITOR),
        RemoteError("Rank 1 failed, so rank 0 stops too: ValueError: a"),
        LostRankError("Rank 1 is gone: Connection closed by peer"),
        raised_in(DISTRIBUTED, RuntimeError("Some other backend lost its peer")),
    ],
    ids=lambda error: f"{type(error).__name__}: {str(error)[:30]}",
)
def test_the_loss_of_a_rank_is_secondary(error):
    assert is_secondary(caught(lambda: raise_(error)))
    assert is_secondary(caught(lambda: raise_(KeyError("wrapped"), cause=error)))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connection refused"),
        BrokenPipeError(32, "Broken pipe"),
        ConnectionResetError(104, "Connection reset by peer"),
        RuntimeError("the data server said: Connection closed by peer"),
        OSError(GLOO),
        raised_in(f"{DISTRIBUTED}/checkpoint", RuntimeError("Missing key in checkpoint")),
        raised_in(DISTRIBUTED, TypeError("Invalid function argument")),
        raised_in(f"{DISTRIBUTED}/../nn/parallel", RuntimeError("Expected to have finished reduction")),
        raised_in(DISTRIBUTED, torch.OutOfMemoryError("CUDA out of memory")),
    ],
    ids=lambda error: f"{type(error).__name__}: {str(error)[:30]}",
)
def test_the_scripts_own_errors_are_not(error):
    assert not is_secondary(caught(lambda: raise_(error)))
    assert not is_secondary(caught(lambda: raise_(RuntimeError("wrapped"), cause=error)))


def test_an_error_while_a_lost_rank_is_handled_is_secondary_unless_the_script_cuts_the_tie():
    def clean_up(suppress):
        try:
            raise RuntimeError(GLOO)
        except RuntimeError:
            if suppress:
                raise KeyError("x") from None
            raise KeyError("x")  # noqa: B904 - without "from" on purpose

    assert is_secondary(caught(lambda: clean_up(suppress=False)))
    assert not is_secondary(caught(lambda: clean_up(suppress=True)))


def test_an_error_that_repeats_a_peers_is_told_from_a_lost_peer():
    assert repeats_peer_error(RemoteError("Rank 1 failed"))
    assert not repeats_peer_error(LostRankError("Rank 1 is gone"))
    assert not repeats_peer_error(ValueError("Rank 1 failed, so rank 0 stops too: words of the script"))


def run_file(tmp_path, text):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(text))
    return script, describe_exception(caught(lambda: runpy.run_path(str(script))))


def test_the_message_of_an_exception(tmp_path):
    script, message = run_file(tmp_path, "import json\n\ndef parse():\n    json.loads('{')\n\nparse()\n")
    assert message["error"] == "json.decoder.JSONDecodeError"
    assert message["place"] == f"{script}:4"
    assert message["summary"].startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert message["traceback"].endswith(message["summary"] + "\n")
    assert (message["code"], message["secondary"], message["repeats_peer_error"]) == (1, False, False)
    assert json.loads(json.dumps(message)) == message
    assert all(isinstance(message[name], kind) for name, kind in MESSAGE_FIELDS.items())


def test_a_syntax_error_has_its_line_as_summary_and_no_place_of_the_script(tmp_path):
    _, message = run_file(tmp_path, "def f(:\n")
    assert message["error"] == "SyntaxError"
    assert message["summary"].startswith("SyntaxError: ")


def test_an_interrupt_ends_the_worker_like_python():
    assert describe_exception(KeyboardInterrupt())["code"] == -2


class Broken(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ConnectionRefusedError("data server")


def test_an_error_in_a_dataloaders_worker_is_the_scripts_own():
    message = describe_exception(caught(lambda: list(DataLoader(Broken(), num_workers=1))))
    assert message["summary"] == "ConnectionRefusedError: data server (in DataLoader worker process 0)"
    assert not message["secondary"]


@pytest.mark.parametrize(
    ("code", "number", "summary"),
    [(3, 3, "called sys.exit(3)"), (259, 3, "called sys.exit(259)"), ("no data", 1, "called sys.exit('no data')")],
)
def test_the_message_of_an_exit(code, number, summary):
    message = describe_exit(SystemExit(code))
    assert (message["code"], message["summary"], message["error"]) == (number, summary, "")
    assert message.keys() == MESSAGE_FIELDS.keys()


@pytest.mark.parametrize("code", [None, 0, 256])
def test_an_exit_that_means_success_has_none(code):
    assert describe_exit(SystemExit(code)) is None


WAYS_TO_LOSE_A_RANK = """
    import os, sys, time
    import torch, torch.distributed as dist
    from minetorch_launch.failures.worker_exit import describe_exception

    def backward():
        loss = model(torch.ones(4, 30)).sum()
        time.sleep(0.5)
        loss.backward()

    WAYS = {
        "all_reduce": lambda: dist.all_reduce(torch.ones(3)),
        "wait": lambda: dist.all_reduce(torch.ones(3), async_op=True).wait(),
        "backward": backward,
        "monitored_barrier": dist.monitored_barrier,
    }
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[3]), world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(30, 30))
    if dist.get_rank() == 1:
        model(torch.ones(4, 30))
        os._exit(3)
    try:
        WAYS[sys.argv[1]]()
    except Exception as error:
        message = describe_exception(error)
        print(message["secondary"], message["summary"])
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["all_reduce", "wait", "backward", "monitored_barrier"])
def test_a_rank_lost_in_gloo_is_secondary_wherever_gloo_raises(way, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(WAYS_TO_LOSE_A_RANK))
    workers = [
        subprocess.Popen(
            [sys.executable, script, way, tmp_path / "store", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    out = [worker.communicate(timeout=120)[0] for worker in workers]
    assert out[0].startswith("True RuntimeError: ")


@pytest.mark.slow
def test_a_scripts_own_lost_connection_is_the_first_failure_though_another_rank_complains_later(launches):
    script = launches.script(
        """
        import os, time, torch, torch.distributed as dist
        dist.init_process_group("gloo")
        if dist.get_rank() == 1:
            time.sleep(1)
            raise ConnectionRefusedError(111, "Connection refused", "data server")
        try:
            dist.all_reduce(torch.ones(1))
        except RuntimeError as error:
            raise ValueError("no batch came") from error
        """
    )
    done = launches.run("--nproc", 2, script)
    assert done.returncode == 1
    assert "rank 1 of 2 failed first: ConnectionRefusedError: [Errno 111] Connection refused" in done.stderr
