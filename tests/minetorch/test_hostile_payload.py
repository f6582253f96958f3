"""A file that runs no code may still be made to harm: it keeps nobody busy, and wrong kinds are one clear error."""

import copy
import dataclasses
import io
import json
import pickle
import re
import struct
import time
import tracemalloc
import zipfile

import pytest
import torch
from werkzeug.test import Client

import minetorch
from minetorch import CheckpointCorruptError, CheckpointError
from minetorch.checkpoint import Store, decode
from minetorch.checkpoint.curves_file import parse_curves
from minetorch.checkpoint.digest import digest_of
from minetorch.checkpoint.manifest import StoredFile
from minetorch.checkpoint.run import Run
from minetorch.cli import main
from minetorch.errors import in_brief
from minetorch.views.server import Application, Watched

LEVELS = 34


def forge(folder, payload, **changes):
    """Put bytes in the place of the newest checkpoint's payload, with a manifest that vouches for them."""
    newest = Run.open(folder).catalogue.manifests[-1]
    (folder / "models" / newest.payload).write_bytes(payload)
    forged = dataclasses.replace(newest, size=len(payload), digest=digest_of(payload), **changes)
    (folder / "models" / newest.key.manifest).write_bytes(forged.to_json())


def forge_curves(folder, data):
    """Put bytes in the place of the newest checkpoint's file of curves, in the same way."""
    newest = Run.open(folder).catalogue.manifests[-1]
    (folder / "models" / newest.key.curves).write_bytes(data)
    forged = dataclasses.replace(newest, curves=StoredFile(newest.key.curves, len(data), digest_of(data)))
    (folder / "models" / newest.key.manifest).write_bytes(forged.to_json())


FORMAT_1 = {"format": 1, "curves": None}
"""What makes a manifest one of the format in which the payload has the curves."""


def saved(state, **options):
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def get(number):
    return b"h" + bytes([number])


def nested():
    """A tuple of two, each of which is the same tuple of two, and so on; it is the memo's number `LEVELS`."""
    levels = (get(at) + get(at) + b"\x86q" + bytes([at + 1]) for at in range(LEVELS))
    return b"X\x01\x00\x00\x00xq\x00" + b"".join(levels)


def archive(pickled, **options):
    """An archive of `torch.save` with another pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"a": 1}))) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name), **options)
    return file.getvalue()


NAMED = {
    "set": b"c__builtin__\nset\n",
    "counter": b"ccollections\nCounter\n",
    "table": b"ccollections\nOrderedDict\n",
    "encode": b"c_codecs\nencode\n",
}
BOMB = get(LEVELS)
PICKLES = {
    "a key": b"}" + BOMB + b"K\x01s",
    "a key among others": b"}(K\x01K\x01" + BOMB + b"K\x01u",
    "a key of a key": b"}" + BOMB + b"\x85\x85K\x01s",
    "a set": b"}X\x01\x00\x00\x00s" + NAMED["set"] + b"]" + BOMB + b"a\x85Rs",
    "a set of a list that grew later": (
        b"}X\x01\x00\x00\x00s" + NAMED["set"] + b"]q\x50]q\x51" + get(0x50) + b"a" + get(0x50) + BOMB + b"a00"
        b"h\x51\x85Rs"
    ),
    "a counter": b"}X\x01\x00\x00\x00s" + NAMED["counter"] + b"]" + BOMB + b"a\x85Rs",
    "an ordered dict": b"}X\x01\x00\x00\x00s" + NAMED["table"] + b"]" + BOMB + b"K\x01\x86a\x85Rs",
    "a text in a slow encoding": (
        b"}X\x01\x00\x00\x00s"
        + NAMED["encode"]
        + b"X"
        + (8 << 20).to_bytes(4, "little")
        + b"".join(chr(256 + at % 1000).encode() for at in range(4 << 20))
        + b"X\x08\x00\x00\x00punycode\x86Rs"
    ),
    "many sets of one long list": (
        b"}X\x01\x00\x00\x00s](" + b"K\x01" * 30_000 + b"eq\x50(" + (NAMED["set"] + b"h\x50\x85R") * 10_000 + b"es"
    ),
}


@pytest.fixture
def plan(trained, tmp_path):
    trained(code="plan", max_epochs=1, drawer="tensorboard")
    return tmp_path / "runs/plan"


@pytest.fixture
def watched(plan):
    return Client(Application(Watched(Store.open(plan.parent), 2)))


@pytest.fixture
def readers(plan, make_trainer, watched, tmp_path):
    """Everything that reads a checkpoint, as functions that raise nothing but a CheckpointError."""

    def command(*words):
        assert main([str(word) for word in words]) in (0, 1)

    def report():
        command("report", plan, "--out", tmp_path / "report.html")
        print((tmp_path / "report.html").read_text())

    def watch():
        answer = watched.get("/run/plan")
        assert answer.status_code == 200
        print(answer.text)

    return {
        "load": lambda: minetorch.load(plan),
        "resume": lambda: make_trainer(code="plan", max_epochs=2, drawer="tensorboard").train(),
        "show": lambda: command("show", plan, "latest"),
        "verify": lambda: command("verify", plan),
        "export": lambda: command("export", plan, "latest", tmp_path / "out.pth", "--all", "--force"),
        "report": report,
        "compare": lambda: command("compare", plan, plan),
        "watch": watch,
    }


@pytest.mark.parametrize("kind", PICKLES)
def test_a_payload_whose_reading_would_take_years_is_refused(plan, kind):
    forge(plan, archive(b"\x80\x02" + nested() + PICKLES[kind] + b"."))
    began = time.process_time()
    with pytest.raises(CheckpointCorruptError, match=r"takes far longer than its length|does not write"):
        minetorch.load(plan)
    assert time.process_time() - began < 5


def test_a_file_of_before_archives_is_looked_at_as_well(plan):
    whole = saved({"a": 1}, _use_new_zipfile_serialization=False)
    (old,) = re.findall(rb"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s\.", whole)
    forge(plan, whole.replace(old, b"\x80\x02" + nested() + PICKLES["a key"] + b"."))
    with pytest.raises(CheckpointCorruptError, match="takes far longer than its length"):
        minetorch.load(plan)


def resume_last(readers):
    """A resumed run writes its errors to the log, which the views show."""
    return sorted(readers.items(), key=lambda item: item[0] == "resume")


VIEWS = {"report", "compare", "watch"}


@pytest.mark.parametrize("changes", [{}, FORMAT_1], ids=["format 2", "format 1"])
def test_every_reader_of_a_payload_refuses_it_and_the_views_read_only_that_of_an_old_run(
    plan, readers, capsys, changes
):
    forge(plan, archive(b"\x80\x02" + nested() + PICKLES["a key"] + b"."), **changes)
    refused = set()
    for name, read in resume_last(readers):
        began = time.process_time()
        try:
            read()
            said = "".join(capsys.readouterr())
        except CheckpointCorruptError as error:
            said = str(error)
        assert time.process_time() - began < 10, name
        if "takes far longer than its length" in said:
            refused.add(name)
    assert refused == readers.keys() - (VIEWS if not changes else set())


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda data: b"another archive?" + data,
        lambda data: archive(pickle.dumps({}, protocol=2), compress_type=zipfile.ZIP_DEFLATED),
    ],
    ids=["behind something", "compressed"],
)
def test_an_archive_that_two_readers_may_read_differently_is_refused(plan, wrapped):
    forge(plan, wrapped(saved({"a": 1})))
    with pytest.raises(CheckpointCorruptError, match="cannot be read as a checkpoint"):
        minetorch.load(plan)


def test_what_torch_saves_is_read(plan):
    """Whatever a statable may have as its state, however much of it is shared."""
    row = tuple(range(100))
    state = minetorch.load(plan)
    state["statable"]["mine"] = {
        "keys": {(1, (2, "b")): 1, 10**40: 2, None: 3, b"\xff": 4},
        "rows": (row,) * 1000,
        "set": set(range(1000)),
        "bytes": [b"\x00\xff" * 1000] * 3,
        "parameters": [torch.nn.Parameter(torch.zeros(2))] * 200,
        "deep": deep(90),
    }
    forge(plan, saved(state))
    mine = minetorch.load(plan)["statable"]["mine"]
    assert mine["rows"] == (row,) * 1000
    assert mine["keys"] == state["statable"]["mine"]["keys"]
    assert mine["set"] == set(range(1000))


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def test_lists_that_share_lists_are_walked_once(plan, command):
    state = minetorch.load(plan)
    shared = [torch.zeros(3)]
    for _ in range(LEVELS):
        shared = [shared, shared]
    shared.append(shared)
    state["statable"]["mine"] = shared
    forge(plan, saved(state))
    listed = command("show", plan, "latest")
    assert listed.count("statable / mine") == 1
    command("verify", plan)


def test_lists_without_a_bottom_are_refused(plan, readers, capsys):
    lists = b"]" * 5000 + b"a" * 4999
    forge(plan, archive(b"\x80\x02}X\x08\x00\x00\x00statable}X\x01\x00\x00\x00x" + lists + b"ss."))
    del readers["load"]  # it only gives what is there
    for name, read in readers.items():
        try:
            read()
        except CheckpointError:
            continue
        printed = "".join(capsys.readouterr())
        assert name not in ("show", "verify") or "has more than 100 levels" in printed


def test_one_long_list_in_many_places_is_looked_at_once(plan):
    names = [str(number) for number in range(10_000)]
    curves = dict.fromkeys(names, torch.ones(2, 1))
    state = minetorch.load(plan) | {
        "optimizer_groups": [{"parameters": names, "given": {"betas": tuple(names)}}] * 10_000,
        "drawer": {"graphs": dict.fromkeys(names, curves)},
        "random": [{"python": names, "numpy": names}] * 10_000,
    }
    forge(plan, saved(state))
    began = time.process_time()
    assert minetorch.load(plan, "latest")["random"][-1]["python"] == names
    assert time.process_time() - began < 10


WRONG = [None, "text", -1, 10**300, float("nan"), [], {}, ["a", "b"], {"a": None}, b"bytes", torch.zeros(2, 2, 2)]
OWN = (
    "epoch",
    "progress",
    "optimizer_class",
    "optimizer_groups",
    "drawer",
    "history",
    "lowest_train_loss",
    "metrics",
    "random",
    "logs",
    "plugins",
    "statable",
)


def places(value, path=(), own=OWN):
    """The paths of all values in the parts of a state that Minetorch itself reads."""
    if path:
        yield path
    if isinstance(value, dict) and len(path) < 4:
        keys = [key for key in value if path or key in own]
    elif isinstance(value, list | tuple) and len(path) < 4:
        keys = list(range(min(len(value), 4)))
    else:
        keys = []
    for key in keys:
        yield from places(value[key], (*path, key))


def changed(state, path, wrong):
    """A copy of a state with another value at one place."""
    state = copy.deepcopy(state)
    holders, place = [state], state
    for key in path[:-1]:
        place = place[key]
        holders.append(place)
    for key, holder in reversed([*zip(path, holders, strict=True)]):
        if isinstance(holder, tuple):
            holder = tuple(wrong if at == key else item for at, item in enumerate(holder))
        else:
            holder[key] = wrong
        wrong = holder
    return wrong


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("drawer", "marks"), None),
        (("drawer", "marks", 0), ("resume", "a", "b", "c")),
        (("drawer", "marks", 0, 2), 10**300),
        (("drawer", "x_names", "loss"), ["epoch"]),
        (("drawer", "graphs", "loss", "train"), [1.0]),
        (("history", 0, "time"), "yesterday"),
        (("history", 0, "steps_lost"), "2"),
        (("progress", "epoch"), 10**300),
        (("progress", "epoch_complete"), "yes"),
        (("progress",), None),
        (("progress", "data"), [1]),
        (("progress", "data", "samples"), "8"),
        (("optimizer_class",), 5),
        (("optimizer_groups", 0, "parameters"), [1]),
        (("optimizer_groups", 0, "given", "lr"), torch.zeros(2)),
        (("plugins",), [1]),
        (("lowest_train_loss",), "low"),
        (("state_dict",), [1, 2]),
    ],
    ids=lambda value: in_brief(value)[:30],
)
def test_a_value_of_the_wrong_kind_is_one_clear_error(plan, trained, path, wrong):
    trained(code="plan", max_epochs=2, drawer="tensorboard")
    forge(plan, saved(changed(minetorch.load(plan, "latest"), path, wrong)))
    with pytest.raises(CheckpointCorruptError, match=rf"cannot be read as a checkpoint: {path[0]}.* is .*, not "):
        minetorch.load(plan, "latest")


@pytest.mark.slow
def test_no_wrong_kind_at_any_place_is_more_than_an_error(plan, trained):
    """The resumed run's state has every part; whatever stands there, loading gives it or says what is wrong."""
    trained(code="plan", max_epochs=2, drawer="tensorboard")
    state = minetorch.load(plan, "latest")
    refused = 0
    for number, path in enumerate(places(state)):
        for wrong in WRONG[number % 3 :: 3]:
            try:
                decode(saved(changed(state, path, wrong)))
            except CheckpointCorruptError:
                refused += 1
    assert refused > 100


@pytest.mark.slow
def test_no_reader_takes_a_wrong_kind_for_more_than_an_error(plan, trained, readers, capsys):
    trained(code="plan", max_epochs=2, drawer="tensorboard")
    state = minetorch.load(plan, "latest")
    backup = {path: path.read_bytes() for path in plan.rglob("*") if path.is_file() and not path.is_symlink()}
    for number, path in enumerate(places(state)):
        wrong = WRONG[number % len(WRONG)]
        for file, data in backup.items():
            file.write_bytes(data)
        forge(plan, saved(changed(state, path, wrong)))
        read_all(readers, f"{wrong!r} at {path}")


def read_all(readers, what):
    """Have every reader read; one that refuses does so with an error of Minetorch's."""
    for name, read in resume_last(readers):
        try:
            read()
        except CheckpointError:
            pass
        except Exception as error:
            pytest.fail(f"{name}, with {what}: {error!r}")


def curves_file(header, *numbers):
    return json.dumps(header).encode() + b"\n" + struct.pack(f"<{len(numbers)}d", *numbers)


START = {"time": 1e9, "host": "here", "world_size": 1, "generation": 1, "checkpoint": None, "epoch": 0, "step": 0,
         "steps_lost": None, "down_s": None, "load_s": 0.0, "ended": None}  # fmt: skip
HEADER = {
    "graphs": [["loss", [["train", 1]]]],
    "x_names": {"loss": "epoch"},
    "marks": [["resume", 0.5, 1, 1e9]],
    "media": 2,
    "history": [START],
}
WRONG_CURVES = {
    "not JSON": b"\xff\xfe\n",
    "no object": b"[]\n",
    "a deep header": b"[" * 100_000 + b"\n",
    "a number of 10,000 digits": b'{"graphs": [], "media": ' + b"9" * 10_000 + b"}\n",
    "no graphs": curves_file({}),
    "graphs that are no list": curves_file(HEADER | {"graphs": {"loss": 1}}),
    "a graph without a name": curves_file(HEADER | {"graphs": [[5, [["train", 1]]]]}, 1.0, 2.0),
    "a curve without a name": curves_file(HEADER | {"graphs": [["loss", [[None, 1]]]]}, 1.0, 2.0),
    "less than no point": curves_file(HEADER | {"graphs": [["loss", [["train", -1]]]]}, 1.0, 2.0),
    "True points": curves_file(HEADER | {"graphs": [["loss", [["train", True]]]]}, 1.0, 2.0),
    "points beyond the memory": curves_file(HEADER | {"graphs": [["loss", [["train", 2**62]]]]}, 1.0, 2.0),
    "as many as overflow": curves_file(HEADER | {"graphs": [["loss", [["train", 2**60]]]]}, 1.0, 2.0),
    "x of no name": curves_file(HEADER | {"x_names": {"loss": ["epoch"]}}, 1.0, 2.0),
    "a mark that is short": curves_file(HEADER | {"marks": [["resume", 1]]}, 1.0, 2.0),
    "a mark nowhere": curves_file(HEADER | {"marks": [["resume", float("nan"), 1, 1e9]]}, 1.0, 2.0),
    "a history of no starts": curves_file(HEADER | {"history": [5]}, 1.0, 2.0),
    "a start at no time": curves_file(HEADER | {"history": [START | {"time": "yesterday"}]}, 1.0, 2.0),
}


def test_the_file_of_curves_here_is_one_but_for_what_is_wrong_in_it():
    content = parse_curves(curves_file(HEADER, 1.0, 2.0), "here")
    assert content["graphs"]["loss"]["train"].tolist() == [[1.0], [2.0]]
    assert content["history"] == [START]


@pytest.mark.parametrize("kind", WRONG_CURVES)
def test_a_wrong_file_of_curves_is_one_clear_error_without_its_memory(kind):
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointCorruptError, match=r"^here is not a file of curves: .{5}") as caught:
            parse_curves(WRONG_CURVES[kind], "here")
        assert tracemalloc.get_traced_memory()[1] < 10 * (len(WRONG_CURVES[kind]) + (1 << 20))
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 500


@pytest.mark.slow
def test_a_header_of_100_mb_is_refused_at_once():
    began = time.process_time()
    with pytest.raises(CheckpointCorruptError, match="is not a file of curves"):
        parse_curves(b"[" * 100_000_000, "here")
    assert time.process_time() - began < 5


def test_every_reader_of_a_wrong_file_of_curves_says_so_and_keeps_the_weights(plan, readers, capsys):
    forge_curves(plan, WRONG_CURVES["a start at no time"])
    with pytest.warns(UserWarning, match=r"The curves of checkpoint .* are lost, .* history\[0\]\.time is 'yesterday'"):
        assert "drawer" not in readers.pop("load")()
    silent = set()
    for name, read in resume_last(readers):
        read()
        if "is not a file of curves: history[0].time is " not in "".join(capsys.readouterr()):
            silent.add(name)
    assert silent == {"show"}  # it reads no curves
    assert minetorch.load(plan, "latest")["epoch"] == 2


@pytest.mark.parametrize(
    "numbers",
    [
        (float("nan"), float("inf"), -1e308, 1e308, 5e-324, float("-inf"), 1.0, 1e300),
        (1e19, -1e19, 0.5, 3.0, float("nan"), 1e308, -1e308, 0.0),
    ],
)
@pytest.mark.filterwarnings("ignore:The curves of checkpoint")
def test_points_may_be_any_numbers(plan, readers, numbers):
    graphs = [["loss", [["train", 2], ["val", 2]]]]
    for x_name in ("epoch", "step"):
        forge_curves(plan, curves_file(HEADER | {"graphs": graphs, "x_names": {"loss": x_name}}, *numbers))
        for name in ("load", "show", "verify", "export", "report", "compare", "watch"):
            readers[name]()
    readers["resume"]()


JSON_WRONG = [None, "text", -1, 10**300, float("nan"), [], {}, ["a", "b"], {"a": None}, 2**62, True]


@pytest.mark.filterwarnings("ignore:The curves of checkpoint")
@pytest.mark.slow
def test_no_reader_takes_a_wrong_kind_in_a_file_of_curves_for_more_than_an_error(plan, readers, capsys):
    backup = {path: path.read_bytes() for path in plan.rglob("*") if path.is_file() and not path.is_symlink()}
    for number, path in enumerate(places(HEADER, own=HEADER)):
        wrong = JSON_WRONG[number % len(JSON_WRONG)]
        for file, data in backup.items():
            file.write_bytes(data)
        forge_curves(plan, curves_file(changed(HEADER, path, wrong), 1.0, 2.0))
        read_all(readers, f"{wrong!r} at {path}")
