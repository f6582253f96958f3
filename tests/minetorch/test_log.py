import gc
import io
import logging
import logging.handlers
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from minetorch.checkpoint import Store
from minetorch.errors import ConfigurationError, SupersededError
from minetorch.log import RunLog, on_console

LINE = re.compile(r"INFO \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (.*)")


@pytest.fixture(params=["{}/ugly päth/run", "memory://log/{}"])
def store(request, tmp_path):
    name = tmp_path if request.param.startswith("{") else tmp_path.name
    return Store.open(request.param.format(name))


def lines(store):
    return store.read("log.txt").decode().splitlines()


def test_rank_0_writes_to_the_console_and_to_the_file(store, capsys):
    log = RunLog(store)
    assert "log.txt" not in store.list()
    log.logger.info("epoch %d: ünï", 1)
    log.logger.debug("not shown")
    log.flush()
    (line,) = lines(store)
    assert LINE.fullmatch(line)[1] == "epoch 1: ünï"
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d epoch 1: ünï\n", err)
    log.close()


def test_the_console_names_every_level_but_info_and_may_have_a_shorter_message(store, capsys, tree):
    tree.setLevel(logging.DEBUG)
    log = RunLog(store)
    log.logger.info("loss %s", 0.123456, extra=on_console("loss 0.1235"))
    for level in ("debug", "warning", "error"):
        getattr(log.logger, level)("50 %")
    log.close()
    assert [line.split(" ", 3)[::3] for line in lines(store)] == [
        ["INFO", "loss 0.123456"], ["DEBUG", "50 %"], ["WARNING", "50 %"], ["ERROR", "50 %"]
    ]  # fmt: skip
    shown = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["loss 0.1235", "DEBUG 50 %", "WARNING 50 %", "ERROR 50 %"]


def test_the_users_format_is_that_of_the_console_and_of_the_file(store, capsys):
    log = RunLog(store, logging_format="%(levelname)s: %(message)s")
    log.logger.info("loss 0.123456", extra=on_console("loss 0.1235"))
    log.close()
    assert lines(store) == capsys.readouterr().err.splitlines() == ["INFO: loss 0.123456"]


def test_a_resumed_run_goes_on_below(store):
    for message in ("first", "second"):
        log = RunLog(store, logging_format="%(message)s")
        log.logger.info(message)
        log.flush()
        log.logger.info("%s again", message)
        log.close()
    assert lines(store) == ["first", "first again", "second", "second again"]
    log = RunLog(store, logging_format="%(message)s", append=False)
    log.logger.info("anew")
    log.close()
    assert lines(store) == ["anew"]


def test_a_line_that_a_kill_tore_is_ended(store):
    store.write("log.txt", b"whole\nto")
    log = RunLog(store, logging_format="%(message)s")
    log.logger.info("next")
    log.close()
    assert lines(store) == ["whole", "to", "next"]


def test_lines_after_close_are_not_lost(store, capsys):
    log = RunLog(store, logging_format="%(message)s")
    log.logger.info("in time")
    log.close()
    log.close()
    log.logger.info("late")
    log.logger.info("later")
    assert lines(store) == ["in time", "late", "later"]
    assert capsys.readouterr().err == "in time\nlate\nlater\n"


def test_a_local_line_is_there_at_once(tmp_path):
    log = RunLog(Store.open(tmp_path), logging_format="%(message)s")
    log.logger.info("now")
    assert (tmp_path / "log.txt").read_text() == "now\n"
    log.close()


def test_another_rank_writes_to_a_file_of_its_own_and_its_warnings_to_the_console(store, capsys):
    log = RunLog(store, rank=3, world_size=4)
    log.logger.info("nobody needs this four times")
    log.logger.error("look")
    log.logger.warning("and here")
    log.close()
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"rank 3: \d\d:\d\d:\d\d ERROR look", first)
    assert re.fullmatch(r"rank 3: \d\d:\d\d:\d\d WARNING and here", second)
    assert store.list() == ["logs"]
    messages = [line.split(" ", 3)[3] for line in store.read("logs/rank_3.txt").decode().splitlines()]
    assert messages == ["nobody needs this four times", "look", "and here"]


def test_a_notebook_gets_stdout(tmp_path, capsys):
    log = RunLog(Store.open(tmp_path), in_notebook=True, logging_format="%(message)s")
    log.logger.warning("calm")
    log.close()
    assert capsys.readouterr() == ("calm\n", "")


@pytest.mark.parametrize("logging_format", ["", "no field", "{message}", "%(nope)s", "%(message)d", "%(message)", 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bad_format_is_an_error_at_once(logging_format, rank, tmp_path):
    with pytest.raises(ConfigurationError, match=r"logging_format=.*the default is"):
        RunLog(Store.open(tmp_path), logging_format=logging_format, rank=rank)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tree():
    """Python's logger of Minetorch, as it was afterwards; no handler of another test hides a line."""
    logger = logging.getLogger("minetorch")
    before = logger.level, [*logger.handlers], logger.propagate
    yield logger
    logger.setLevel(before[0])
    logger.handlers[:], logger.propagate = before[1:]


def test_the_root_logger_is_left_alone_and_each_log_has_its_own_file(tmp_path, tree):
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    one, two = (RunLog(Store.open(tmp_path / name), logging_format="%(message)s") for name in "12")
    assert before == (root.level, list(root.handlers))
    assert not (tmp_path / "2").exists()
    one.logger.info("first fold")
    two.logger.info("second fold")
    one.close()
    two.close()
    assert [(tmp_path / name / "log.txt").read_text() for name in "12"] == ["first fold\n", "second fold\n"]


def test_importing_configures_nothing():
    code = (
        "import logging, minetorch, minetorch.trainer; tree = logging.getLogger('minetorch'); "
        "assert (tree.level, tree.handlers, logging.root.handlers) == (0, [], [])"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


def test_levels_and_handlers_of_the_tree_apply(tmp_path, tree, caplog, capsys):
    log = RunLog(Store.open(tmp_path), logging_format="%(message)s")
    log.logger.info("usual")
    assert caplog.messages == ["usual"]
    tree.setLevel(logging.WARNING)
    log.logger.info("too much")
    tree.setLevel(logging.DEBUG)
    log.logger.debug("in detail")
    tree.propagate = False
    taken = logging.handlers.BufferingHandler(100)
    tree.addHandler(taken)
    log.logger.info("taken")
    log.close()
    assert caplog.messages == ["usual", "in detail"]
    assert [record.message for record in taken.buffer] == ["taken"]
    assert (tmp_path / "log.txt").read_text() == capsys.readouterr().err == "usual\nin detail\ntaken\n"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_line_that_the_users_console_shows_is_not_shown_again(tmp_path, tree, capsys, rank):
    users = logging.StreamHandler(sys.stderr)
    users.setFormatter(logging.Formatter("mine: %(message)s"))
    log = RunLog(Store.open(tmp_path), rank=rank, world_size=2, logging_format="%(message)s")
    tree.addHandler(users)
    log.logger.info("usual")
    log.logger.warning("hot")
    users.setLevel(logging.ERROR)
    log.logger.error("burnt")
    if rank == 0:
        log.logger.info("only Minetorch shows this")
    log.close()
    lines = (
        ["mine: hot", "mine: burnt"]
        if rank
        else ["mine: usual", "mine: hot", "mine: burnt", "only Minetorch shows this"]
    )
    assert capsys.readouterr().err.splitlines() == lines
    assert "usual\nhot\nburnt\n" in (tmp_path / (f"logs/rank_{rank}.txt" if rank else "log.txt")).read_text()


def test_a_handler_of_a_file_does_not_keep_lines_from_the_console(tmp_path, tree, capsys):
    log = RunLog(Store.open(tmp_path), logging_format="%(message)s")
    own = logging.FileHandler(tmp_path / "own.txt")
    tree.addHandler(own)
    log.logger.info("usual")
    log.close()
    own.close()
    assert capsys.readouterr().err == (tmp_path / "own.txt").read_text() == "usual\n"


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_a_line_stands_above_a_living_bar(stream, tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, stream, screen)
    log = RunLog(Store.open(tmp_path), in_notebook=stream == "stdout", logging_format="%(message)s")
    with tqdm(total=10, file=screen, ncols=40, leave=False, position=0) as bar:
        bar.update(3)
        log.logger.info("line")
        shown = screen.getvalue()
    log.close()
    before, after = shown.split("line\n")
    *_, bar, wiped, start = before.split("\r")
    assert "| 0/10 [" in bar
    assert wiped == " " * len(bar)
    assert start == ""
    assert after.lstrip("\r").startswith(" 30%|")  # and came back below it


class FlakyStore:
    """A remote storage that fails as often as it is told to."""

    is_local = False

    def __init__(self, held=b""):
        self.files = {"log.txt": held} if held else {}
        self.fails = set()
        self.written = []

    def child(self, name):
        return Folder(self, name)

    def delete(self, name):
        self.files.pop(name, None)

    def read(self, name):
        if "read" in self.fails:
            raise OSError("no read")
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def write(self, name, data):
        if "write" in self.fails:
            raise OSError("no write")
        self.files[name] = data
        self.written.append(len(data))


class Folder:
    """A folder of it."""

    def __init__(self, store, name):
        self.store, self.prefix = store, f"{name}/"

    def list(self, prefix=""):
        whole = self.prefix + prefix
        return sorted(name.removeprefix(self.prefix) for name in self.store.files if name.startswith(whole))

    def read(self, name):
        return self.store.read(self.prefix + name)

    def write(self, name, data):
        self.store.write(self.prefix + name, data)

    def delete(self, name):
        self.store.delete(self.prefix + name)


def test_a_failing_storage_stops_nothing_loses_nothing_and_is_reported_once(capsys):
    store = FlakyStore()
    log = RunLog(store, logging_format="%(levelname)s %(message)s")
    store.fails = {"write"}
    log.logger.info("one")
    log.flush()
    log.logger.info("two")
    log.flush()
    assert capsys.readouterr().err.splitlines() == [
        "INFO one",
        "WARNING log.txt cannot be written: OSError: no write. Training goes on; it is tried again, "
        "and this is said only once.",
        "INFO two",
    ]
    store.fails = set()
    log.close()
    assert store.files["log.txt"] == b"INFO one\nINFO two\n"


def test_a_log_that_cannot_be_read_is_not_overwritten(capsys):
    store = FlakyStore(b"precious\n")
    log = RunLog(store, logging_format="%(message)s")
    store.fails = {"read"}
    log.logger.info("new")
    log.flush()
    assert store.files["log.txt"] == b"precious\n"
    store.fails = set()
    log.close()
    assert store.files["log.txt"] == b"precious\nnew\n"


def test_a_local_file_that_cannot_be_opened_stops_nothing(tmp_path, capsys):
    (tmp_path / "log.txt").mkdir()
    log = RunLog(Store.open(tmp_path), logging_format="%(message)s")
    log.logger.info("one")
    log.logger.info("two")
    (tmp_path / "log.txt").rmdir()
    log.logger.info("three")
    log.close()
    err = capsys.readouterr().err
    assert err.count("log.txt cannot be written: StorageError") == 1
    assert (tmp_path / "log.txt").read_text() == "three\n"


def test_nothing_new_is_written_twice(monkeypatch):
    store = FlakyStore()
    log = RunLog(store)
    log.logger.info("one")
    log.flush()
    store.fails = {"write"}
    log.flush()
    log.close()


def test_a_wrong_logging_call_is_shown_with_its_place(tmp_path, tree, capsys):
    tree.propagate = False  # pytest's own handler makes an exception of it
    log = RunLog(Store.open(tmp_path), logging_format="%(message)s")
    log.logger.info("%d epochs", "many")
    log.logger.info("next")
    log.close()
    assert "Logging error" in capsys.readouterr().err
    assert (tmp_path / "log.txt").read_text() == "next\n"


def test_a_process_without_a_console(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    log = RunLog(Store.open(tmp_path), logging_format="%(message)s")
    log.logger.info("one")
    log.close()
    assert (tmp_path / "log.txt").read_text() == "one\n"


def test_a_line_that_is_refused_after_the_end_leaves_no_file_open(tmp_path):
    log = RunLog(Store.open(tmp_path))
    log.logger.info("one")

    def refuse():
        raise SupersededError("another start has the run")

    log.close()
    log.begin(guard=refuse)
    log.logger.info("two")
    gc.collect()  # which would warn of a file that is still open
    assert "two" not in (tmp_path / "log.txt").read_text()
    assert not [
        path for path in Path("/proc/self/fd").iterdir() if path.exists() and path.samefile(tmp_path / "log.txt")
    ]
