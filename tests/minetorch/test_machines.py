"""A run in S3 goes on on other machines: nothing of it is on a disk, and its secrets are nowhere."""

import json
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minetorch import StorageError

SCRIPT = Path(__file__).parent / "worlds/moving.py"


@pytest.fixture
def machine(tmp_path, tools):
    """Runs the script as a machine of its own would: an empty disk, a home and a working directory of its own."""

    def run(name, runs, *words, environ, expect=0, secrets=()):
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        plain = {key: value for key, value in tools.items() if not key.startswith("AWS_")}
        with (home / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, SCRIPT, runs, *map(str, words)],
                env={**plain, "HOME": str(home), **environ},
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_and_watch(process, secrets)
        finally:
            process.kill()
            process.wait()
        text = (home / "output").read_text()
        assert process.returncode == expect, text
        return text

    return run


def wait_and_watch(process, secrets):
    """Wait for its end; meanwhile no process of this machine may show a secret in its command line."""
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline, "the script hangs"
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes()
            except OSError:
                continue  # it has just ended
            assert not [secret for secret in secrets if secret.encode() in line], line
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue


def objects(bucket):
    """Every object in the bucket, by key."""
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {key: bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read() for key in keys}


def drawn(events, tmp_path):
    """Steps and values of the tags in TensorBoard event files."""
    folder = tmp_path / "events"
    folder.mkdir()
    for key, data in events.items():
        (folder / Path(key).name).write_bytes(data)
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


@pytest.mark.slow
def test_a_run_goes_on_on_other_machines(machine, bucket, s3_server, tmp_path):
    secrets = (s3_server.key, s3_server.secret)
    server = {"AWS_ENDPOINT_URL": s3_server.url, "AWS_DEFAULT_REGION": "us-east-1"}
    runs, killed = f"{bucket.url}/my runs", -9

    machine("whole", tmp_path / "whole/runs", 0, tmp_path / "whole.json", environ={})
    # By credentials in the environment; killed in the first epoch.
    texts = [machine("a", runs, 7, "-", environ=bucket.environ, expect=killed, secrets=secrets)]
    # By those in a file of the user's; killed in the second.
    profile = tmp_path / "profile"
    profile.write_text(f"[lab]\naws_access_key_id = {s3_server.key}\naws_secret_access_key = {s3_server.secret}\n")
    by_profile = {**server, "AWS_SHARED_CREDENTIALS_FILE": str(profile), "AWS_PROFILE": "lab"}
    texts.append(machine("b", runs, 22, "-", environ=by_profile, expect=killed, secrets=secrets))
    # By storage_options; it trains to the end.
    options = tmp_path / "options.json"
    options.write_text(json.dumps(bucket.options))
    words = (0, tmp_path / "moved.json", options)
    texts.append(machine("c", runs, *words, environ={}, secrets=secrets))

    # The one that was never interrupted is matched to the bit.
    assert json.loads((tmp_path / "moved.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
    assert [len(re.findall("Resumed from s3://", text)) for text in texts] == [0, 1, 1]
    for name in "abc":  # nothing of the run on a disk
        assert {path.name for path in (tmp_path / name).iterdir()} <= {"output", ".cache", ".config"}

    stored = objects(bucket)
    log = stored["my runs/moving/log.txt"].decode()
    assert log.count("training from scratch") == 1
    assert log.count("Resumed from") == 2
    assert [int(count) for count in re.findall(r"the tally is (\d+)", log)] == [16, 32, 48]
    for graph in ("loss", "tally"):
        assert stored[f"my runs/moving/graph/{graph}.png"].startswith(b"\x89PNG")
    events = {key: data for key, data in stored.items() if "tfevents" in key and data}
    tags = drawn(events, tmp_path)
    assert [step for step, _ in tags["tally"]] == list(range(1, 49))  # neither overlap nor gap
    assert [step for step, _ in tags["loss/train"]] == [1, 2, 3]

    written = [*(text.encode() for text in texts), *(name.encode() for name in stored), *stored.values()]
    assert not [secret for secret in secrets for data in written if secret.encode() in data]
    assert any(b"archive" in data for data in stored.values())  # payloads are not compressed, which would hide it


@pytest.mark.slow
def test_wrong_credentials_in_the_environment_are_said_and_not_shown(machine, bucket, s3_server):
    wrong = "hunter2" + s3_server.secret[7:]
    environ = {**bucket.environ, "AWS_SECRET_ACCESS_KEY": wrong}
    text = machine("a", f"{bucket.url}/runs", 0, "-", environ=environ, expect=1, secrets=(wrong,))
    assert "StorageError: cannot " in text
    assert "signature" in text
    assert not [secret for secret in (wrong, s3_server.secret, s3_server.key) if secret in text]


def test_wrong_credentials_in_options_are_said_and_not_shown(make_trainer, bucket, capfd):
    wrong = "hunter2" + bucket.options["secret"][7:]
    with pytest.raises(StorageError, match="signature") as caught:
        make_trainer(alchemistic_directory=bucket.url, storage_options={**bucket.options, "secret": wrong})
    shown = "".join([*traceback.format_exception(caught.value), *capfd.readouterr()])
    assert not [secret for secret in (wrong, bucket.options["secret"], bucket.options["key"]) if secret in shown]
