import json
from dataclasses import asdict

import pytest

from minetorch_launch.hangs.blocking_calls import WaitKind
from minetorch_launch.hangs.shared_memory import without_launcher_frames
from minetorch_launch.hangs.stack_summary import CodeOwners, StackSnapshot, read_stacks, summarize

PY, TORCH = "/usr/lib/python3.11", "/venv/lib/python3.11/site-packages/torch"
OWNERS = CodeOwners(libraries=(PY, "/opt/minetorch_launch"), trainer="/src/minetorch", here="/home/a b")
MAIN = 0x7F01
SOURCE = {
    ("/home/a b/train.py", 88): "    dist.all_reduce(loss)\n",
    ("/home/a b/data.py", 41): "batch = next(it)",
    ("/home/a b/train.py", 5): "total = loss.item()",
}

BOTTOM = [
    ("/home/a b/train.py", 120, "<module>"),
    ("/opt/minetorch_launch/worker/run_target.py", 9, "run_script"),
    (f"{PY}/multiprocessing/process.py", 108, "run"),
    ("<string>", 1, "<module>"),
]
ALL_REDUCE = [
    (f"{TORCH}/distributed/distributed_c10d.py", 3000, "all_reduce"),
    (f"{TORCH}/distributed/c10d_logger.py", 83, "wrapper"),
    ("/home/a b/train.py", 88, "train_step"),
]
NEXT = [
    (f"{PY}/selectors.py", 415, "select"),
    (f"{PY}/multiprocessing/queues.py", 113, "get"),
    (f"{TORCH}/utils/data/dataloader.py", 1291, "_try_get_data"),
    (f"{TORCH}/utils/data/dataloader.py", 725, "__next__"),
    ("/home/a b/data.py", 41, "batches"),
]
QUEUE_THREAD = [(f"{PY}/threading.py", 327, "wait"), (f"{PY}/multiprocessing/queues.py", 231, "_feed")]


def dump(*threads, head="Thread"):
    blocks = []
    for ident, frames in threads:
        lines = [f"{head} 0x{ident:016x} (most recent call first):"]
        lines += [f'  File "{file}", line {line} in {function}' for file, line, function in frames]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def read(text):
    return read_stacks(without_launcher_frames(text), MAIN, OWNERS, lambda file, line: SOURCE.get((file, line), ""))


def snapshot(rank, frames=None, *, host="vm", silence="", bottom=BOTTOM):
    threads = () if frames is None else read(dump((MAIN, [*frames, *bottom])))
    return StackSnapshot(rank, host, 100 + rank, threads, silence)


def rows(summary):
    return [line.strip() for line in summary.text().splitlines() if line.startswith("  rank")]


def test_ranks_at_the_same_place_stand_together():
    summary = summarize([snapshot(1, NEXT), *(snapshot(rank, ALL_REDUCE) for rank in (3, 0, 2))])
    assert summary.text("no step for 312 s").splitlines()[:3] == [
        "no step for 312 s; stack summary of 4 ranks:",
        "  ranks 0, 2, 3  in all_reduce (torch.distributed)          "
        "at train.py:88 in train_step: dist.all_reduce(loss)",
        "  rank 1         in __next__ (torch.utils.data.dataloader)  at data.py:41 in batches: batch = next(it)",
    ]
    assert summary.odd_ranks == (1,)
    assert summary.blame() == (
        "hung in __next__ (torch.utils.data.dataloader) at data.py:41 in batches, "
        "while ranks 0, 2, 3 waited in all_reduce (torch.distributed) at train.py:88 in train_step"
    )


def test_the_stacks_end_where_the_script_begins_and_the_odd_one_comes_first():
    text = summarize([snapshot(0, ALL_REDUCE), snapshot(1, NEXT)]).text()
    assert "minetorch_launch" not in text
    assert "<string>" not in text
    assert text.index("rank 1 (process 101), main thread") < text.index("rank 0 (process 100), main thread")
    assert '  File "train.py", line 88 in train_step\n    dist.all_reduce(loss)\n' in text


def test_the_main_thread_is_found_by_its_ident_wherever_it_stands():
    for text in (
        dump((5, QUEUE_THREAD), (MAIN, [*NEXT, *BOTTOM])),
        dump((MAIN, [*NEXT, *BOTTOM]), (5, QUEUE_THREAD), head="Current thread"),
        dump((5, QUEUE_THREAD), (MAIN, [*NEXT, *BOTTOM])).replace("f01 (", "f01 [MainThread] ("),
    ):
        main, other = read(text)
        assert (main.is_main, main.frames[-1].function, other.is_main) == (True, "<module>", False)
        assert other.frames[0].function == "wait"


def test_of_two_dumps_the_last_counts():
    (main,) = read(dump((MAIN, NEXT)) + dump((MAIN, ALL_REDUCE)))
    assert main.frames[0].function == "all_reduce"


def test_a_thread_of_the_launchers_alone_is_left_out():
    assert len(read(dump((5, BOTTOM[1:]), (MAIN, ALL_REDUCE)))) == 1


@pytest.mark.parametrize("text", ["", "Thread 0x", "nonsense\n  File x", "  ...\n\n", "Thread 0x0000000000000005 (mo"])
def test_what_was_cut_off_or_is_no_dump_gives_no_thread(text):
    assert read(text) == ()


def test_a_dump_that_was_cut_off_gives_what_is_whole():
    text = dump((MAIN, [*NEXT, *BOTTOM]))
    (main,) = read(text[: text.index("dataloader.py")])
    assert [frame.function for frame in main.frames] == ["select", "get"]


def test_names_come_back_as_they_are_on_the_disk():
    text = dump((MAIN, [("/home/a b/\\xe9t\\u00e9 \\U0001f642/train.py", "???", "f")]))
    (main,) = read(text)
    assert (main.frames[0].shown, main.frames[0].line) == ("été 🙂/train.py", None)


@pytest.mark.parametrize(
    ("frames", "name", "waiting"),
    [
        ([(f"{TORCH}/distributed/distributed_c10d.py", 1, "recv")], "recv (torch.distributed)", WaitKind.COLLECTIVE),
        (
            [
                (f"{TORCH}/distributed/rendezvous.py", 1, "_create_c10d_store"),
                (f"{TORCH}/distributed/distributed_c10d.py", 1, "init_process_group"),
            ],
            "init_process_group (torch.distributed)",
            WaitKind.COLLECTIVE,
        ),
        (
            [
                (f"{TORCH}/distributed/utils.py", 1, "_sync_module_states"),
                (f"{TORCH}/nn/parallel/distributed.py", 1, "__init__"),
            ],
            "__init__ (torch.nn.parallel.distributed)",
            WaitKind.COLLECTIVE,
        ),
        (
            [(f"{TORCH}/nn/parallel/distributed.py", 1, "forward")],
            "forward (torch.nn.parallel.distributed)",
            WaitKind.MAYBE_COLLECTIVE,
        ),
        (
            [(f"{TORCH}/autograd/graph.py", 1, "_engine_run_backward"), (f"{TORCH}/_tensor.py", 1, "backward")],
            "backward (torch._tensor)",
            WaitKind.MAYBE_COLLECTIVE,
        ),
        (
            [(f"{TORCH}/optim/adamw.py", 1, "step"), (f"{TORCH}/optim/optimizer.py", 1, "wrapper")],
            "step (torch.optim.adamw)",
            WaitKind.MAYBE_COLLECTIVE,
        ),
        (
            [(f"{TORCH}/serialization.py", 1, "_save"), (f"{TORCH}/serialization.py", 1, "save")],
            "save (torch.serialization)",
            1,
        ),
        ([(f"{PY}/subprocess.py", 1, "wait"), (f"{PY}/subprocess.py", 1, "run")], "run (subprocess)", 1),
        (
            [(f"{PY}/socket.py", 1, "readinto"), (f"{PY}/urllib/request.py", 1, "urlopen")],
            "urlopen (urllib.request)",
            1,
        ),
        ([(f"{PY}/threading.py", 1, "wait"), (f"{PY}/queue.py", 1, "get")], "get (queue)", 1),
        ([("<frozen importlib._bootstrap>", 1, "_find_and_load")], "_find_and_load (<frozen importlib._bootstrap>)", 1),
        ([(f"{PY}/shutil.py", 1, "copyfile")], "copyfile (shutil)", 1),
        ([(f"{PY}/sqlite3/dbapi2.py", 1, "connect")], "connect (sqlite3.dbapi2)", 1),
        (
            [("/venv/lib/python3.11/site-packages/pandas/io/parsers.py", 1, "read_csv")],
            "read_csv (pandas.io.parsers)",
            1,
        ),
        (
            [(f"{TORCH}/distributed/distributed_c10d.py", 1, "broadcast"), (f"{TORCH}/optim/zero.py", 1, "step")],
            "broadcast (torch.distributed)",
            WaitKind.COLLECTIVE,
        ),
    ],
)
def test_a_call_is_named_after_what_the_users_line_called(frames, name, waiting):
    (group,) = summarize([snapshot(0, [*frames, ("/home/a b/x.py", 3, "f")])]).groups
    assert (group.call.name, group.call.kind) == (name, waiting)
    assert group.where == "at x.py:3 in f"


def test_calls_into_c_are_told_by_the_users_line():
    (group,) = summarize([snapshot(0, [("/home/a b/train.py", 5, "log")])]).groups
    assert group.call.kind == WaitKind.MAYBE_COLLECTIVE
    (row,) = rows(summarize([snapshot(0, [("/home/a b/train.py", 5, "log")])]))
    assert row == "rank 0  in the script's own code  at train.py:5 in log: total = loss.item()"


def test_the_trainers_part_in_it_is_named():
    frames = [
        (f"{TORCH}/_tensor.py", 1, "backward"),
        ("/src/minetorch/backend.py", 7, "backward"),
        ("/src/minetorch/trainer.py", 300, "_train_iteration"),
        ("/src/minetorch/trainer.py", 200, "train"),
    ]
    (group,) = summarize([snapshot(0, frames)]).groups
    assert group.call.name == "backward (torch._tensor), Trainer: train iteration"
    assert group.where == "at train.py:120"
    (hook,) = summarize([snapshot(0, [("/home/a b/hooks.py", 3, "on_end"), *frames[1:]])]).groups
    assert (hook.call.name, hook.where) == ("the script's own code", "at hooks.py:3 in on_end")


def test_a_users_own_folder_may_be_called_like_ours():
    (main,) = read(dump((MAIN, [("/home/a b/minetorch/trainer.py", 1, "f"), (f"{PY}/runpy.py", 1, "g")])))
    assert [frame.owner for frame in main.frames] == ["user", "library"]


def test_silence_is_blamed_before_anything_else():
    summary = summarize([snapshot(0, ALL_REDUCE), snapshot(1, silence="stopped (T)"), snapshot(2, NEXT)])
    assert summary.odd_ranks == (1,)
    assert summary.blame().startswith("does not answer: stopped (T), while rank 0 waited in all_reduce")
    assert "rank 1  does not answer: stopped (T)" in rows(summary)


def test_ranks_in_no_collective_are_blamed_before_the_fewest():
    summary = summarize([snapshot(0, ALL_REDUCE), snapshot(1, NEXT), snapshot(2, NEXT)])
    assert summary.odd_ranks == (1, 2)


def test_a_rank_that_holds_the_interpreter_elsewhere_is_blamed_before_one_that_may_wait():
    threads = read(dump((MAIN, [*ALL_REDUCE, *BOTTOM]), (5, [("/home/a b/train.py", 5, "in_the_background")])))
    forward = [(f"{TORCH}/nn/parallel/distributed.py", 1, "forward"), ("/home/a b/train.py", 90, "g")]
    held = StackSnapshot(0, "vm", 100, threads, holds_interpreter=True)
    assert summarize([held, snapshot(1, forward)]).blame() == (
        "hung in all_reduce (torch.distributed), another thread holds the interpreter at train.py:88 in "
        "train_step, while rank 1 was in forward (torch.nn.parallel.distributed) at train.py:90 in g"
    )
    assert summarize([StackSnapshot(0, "vm", 100, threads), snapshot(1, forward)]).odd_ranks == (1,)
    alone = StackSnapshot(0, "vm", 100, threads[:1], holds_interpreter=True)
    assert summarize([alone, snapshot(1, forward)]).odd_ranks == (1,), "there is no other thread that could hold it"


def test_of_two_collectives_the_one_with_the_fewest_is_odd():
    other = [(f"{TORCH}/distributed/distributed_c10d.py", 1, "broadcast"), ("/home/a b/train.py", 90, "g")]
    assert summarize([*(snapshot(rank, ALL_REDUCE) for rank in range(3)), snapshot(3, other)]).odd_ranks == (3,)


def test_all_at_one_place():
    summary = summarize(snapshot(rank, ALL_REDUCE) for rank in range(64))
    assert summary.blame() == ("hung in all_reduce (torch.distributed) at train.py:88 in train_step, like ranks 1-63")
    assert summary.text().count("main thread") == 1


def test_answers_travel_as_json_and_hosts_are_named_where_there_are_several():
    answers = [
        snapshot(0, ALL_REDUCE),
        snapshot(1, NEXT),
        snapshot(2, ALL_REDUCE, host="n2"),
        snapshot(3, silence="x", host="n2"),
    ]
    sent = [StackSnapshot.from_dict(json.loads(json.dumps(asdict(one)))) for one in answers]
    assert sent == answers
    summary = summarize(sent)
    assert rows(summary)[0].startswith("ranks [vm:0], [n2:2]  in all_reduce")
    assert summary.blame().startswith("does not answer: x")


def test_a_rank_outside_its_script_is_there_all_the_same():
    (group,) = summarize([snapshot(0, [], bottom=BOTTOM[1:])]).groups
    assert group.doing == "in the launcher's code, before or after the script"


def test_threads_that_are_alike_are_shown_once_and_many_are_cut():
    alike = [(ident, QUEUE_THREAD) for ident in range(5, 9)]
    many = [(ident, [(f"/home/a b/t{ident}.py", 1, "f")]) for ident in range(20, 40)]
    threads = read(dump(*alike, *many, (MAIN, [*NEXT, *BOTTOM])))
    text = summarize([StackSnapshot(0, "vm", 1, threads)]).text()
    assert text.count("in _feed") == 1
    assert "rank 0, 4 more threads:" in text
    assert "13 more threads are left out" in text


def test_without_any_snapshot_nobody_is_blamed():
    assert summarize([]).odd_ranks == ()
    assert summarize([]).text() == "stack summary of 0 ranks:"
