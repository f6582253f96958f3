"""No secret of a storage is told: not in what a run writes, prints, raises or shows, nor in the process list."""

import io
import json
import logging
import traceback
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from werkzeug.test import Client

import minetorch
from minetorch import MinetorchError
from minetorch.checkpoint import Store
from minetorch.checkpoint.urls import hider, shown
from minetorch.views.server import Application, Watched

PASSWORD, SIGNATURE, KEY, HEADER = "pa%2Fss-w0rd", "s1gnature-9f", "k3y-of-the-bucket", "0a1b2c3d4e5f"
SECRETS = [PASSWORD, "pa/ss-w0rd", SIGNATURE, KEY, HEADER]
PLACE = f"memory://me:{PASSWORD}@host/runs"
OPTIONS = {"secret": KEY, "client_kwargs": {"headers": {"Authorization": f"Bearer {HEADER}"}}}


def told(text):
    return [secret for secret in SECRETS if secret in text]


@pytest.fixture(autouse=True)
def memory():
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    MemoryFileSystem.clear_instance_cache()


def processes():
    """The command lines of all processes, as anyone may read them."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield entry.read_text(errors="replace")
        except OSError:
            continue


def test_a_run_tells_nobody(make_trainer, caplog, capfd):
    caplog.set_level(logging.DEBUG, logger="minetorch")
    arguments = {"alchemistic_directory": PLACE, "storage_options": OPTIONS, "code": "plan", "ledger": True}
    seen = []
    look = {"after_epoch_end": lambda trainer: seen.extend(processes())}
    trainer = make_trainer(**arguments, drawer=["matplotlib", "tensorboard"], hooks=look)
    trainer.train()
    resumed = make_trainer(**arguments, max_epochs=3, resume=f"{PLACE}/plan/models/best.pth.tar")
    resumed.train()
    printed = "".join(capfd.readouterr())
    assert "Resumed" in printed
    assert told(printed + caplog.text + repr(trainer) + repr(vars(resumed.progress))) == []
    assert len(seen) > 2
    assert [line for line in seen if told(line)] == []
    written = {name: file.getvalue() for name, file in MemoryFileSystem.store.items()}
    kinds = {name.rpartition(".")[2] for name in written}
    assert kinds >= {"json", "tar", "txt", "png"}
    for name, content in written.items():
        assert told(content.decode("latin-1")) == [], name


def test_the_commands_tell_nobody(make_trainer, command, tmp_path):
    make_trainer(alchemistic_directory=PLACE, storage_options=OPTIONS, code="plan").train()
    file = tmp_path / "options.json"
    file.write_text(json.dumps(OPTIONS))
    run, options = f"{PLACE}/plan", ("--storage-options-file", file)
    page, picture, out = tmp_path / "page.html", tmp_path / "picture.png", tmp_path / "out.pth"
    text = ""
    for words in (
        ("ls", PLACE), ("ls", run, "--json"), ("show", run), ("show", run, "--json"), ("verify", run, "--json"),
        ("export", run, "latest", out), ("prune", run, "--keep-last", 1, "--json"), ("report", run, "--out", page),
        ("compare", run, run, "--out", picture, "--json"), ("cp", run, tmp_path / "copy/plan"),
    ):  # fmt: skip
        printed = command(*words, *options)
        text += printed if isinstance(printed, str) else json.dumps(printed)
    text += command("cp", run, f"{PLACE}/plan/below", *options, expect=2)
    text += command("show", f"{PLACE}/none", *options, expect=1)
    text += command("show", f"{run}\0", *options, expect=2)
    text += command("ls", PLACE, "--storage-option", f"secret {KEY}", expect=2)
    answer = Client(Application(Watched(Store.open(PLACE, OPTIONS), 2))).get("/")
    assert answer.status_code == 200
    assert told(text + page.read_text() + answer.text) == []
    assert "memory://host/runs" in text


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError, NotImplementedError, FileExistsError, OSError])
def test_an_uncaught_error_of_the_storage_tells_nobody(error, monkeypatch):
    """Its whole traceback, causes and all: what a terminal, a log or a failure report has of it."""
    monkeypatch.setattr(MemoryFileSystem, "cat_file", refusal(error))
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refusal(error))
    store = Store.open(f"{PLACE}?sig={SIGNATURE}", OPTIONS)
    for call in (lambda: store.read("x"), lambda: store.write("x", b""), lambda: store.create("x", b"")):
        with pytest.raises((OSError, MinetorchError, NotImplementedError)) as caught:
            call()
        text = io.StringIO()
        traceback.print_exception(caught.value, file=text)
        assert told(text.getvalue()) == []


def refusal(error):
    def refuse(*_, **__):
        raise error(f"GET me:{PASSWORD}@host?sig={SIGNATURE} (pa/ss-w0rd) with {KEY}, {OPTIONS}")

    return refuse


def test_a_signed_url_is_not_told():
    with pytest.raises(MinetorchError, match=r"memory://host/runs") as caught:
        minetorch.load(f"{PLACE}/plan?sig={SIGNATURE}", storage_options=OPTIONS)
    assert told(str(caught.value)) == []
    store, name = Store.open(PLACE, OPTIONS).locate(f"{PLACE}/plan/best.pth.tar?sig={SIGNATURE}")
    with pytest.raises(FileNotFoundError, match=r"memory://host/runs/plan/best\.pth\.tar does not exist") as missing:
        store.read(name)
    assert told(str(missing.value)) == []


def test_secrets_are_found_wherever_options_keep_them():
    options = {
        "key": "AKIA1234",
        "auth": ("user", "in-a-tuple"),
        "token": {"private": b"in-bytes"},
        "endpoint_url": "http://admin:in-a-url@host:9000/?X-Amz-Security-Token=in-a-query&region=eu",
        "proxies": ["http://proxy:in-a-list@host"],
        "passphrase": "in-a-phrase",
        "anon": False,
        "region_name": "eu-west-1",
    }
    hide = hider("https://host/x", options)
    for secret in ("AKIA1234", "in-a-tuple", "in-bytes", "in-a-url", "in-a-query", "in-a-list", "in-a-phrase"):
        assert hide(f"no: {secret}!") == "no: ***!"
    assert hide("eu-west-1 at host:9000 says: no such key") == "eu-west-1 at host:9000 says: no such key"


def test_a_url_is_shown_without_its_secrets():
    assert shown("s3://key:secret@bucket/runs?versionId=1") == "s3://bucket/runs"
    assert shown("s3://bucket/a@b") == "s3://bucket/a@b"
    assert shown("/data/a@b?c") == "/data/a@b?c"
