"""Whatever stands in a run's files, or is asked for: an error of ours or a whole answer, and never any code run."""

import builtins
import io
import json
import os
import pickle
import string
import struct
import sys
from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from minetorch.checkpoint import Manifest, Store, decode, parse_resume
from minetorch.checkpoint.catalogue import Catalogue
from minetorch.checkpoint.claim import Claim, Launch, Process, after_file, highest_claim, is_void, limits, standing
from minetorch.checkpoint.manifest import _seal
from minetorch.checkpoint.names import CheckpointName, alias_problem
from minetorch.checkpoint.reader import decode_file, decode_skeleton
from minetorch.checkpoint.seekable import SeekableReader
from minetorch.checkpoint.urls import hider
from minetorch.checkpoint.urls import shown as shown_url
from minetorch.errors import CheckpointError, ConfigurationError
from minetorch.resumption.history import History, Start

fuzzed = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

HUGE = "9" * 5000
NAME = "g0001-000001-s000000010-abcdef"
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, NAME]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
MANIFEST = Manifest(
    name=NAME, generation=1, sequence=1, step=10, epoch=1, epoch_complete=True, position=0, world_size=1,
    payload=f"{NAME}.pth.tar", size=5, digest="crc32:00000000", metrics={"val_loss": 0.5},
    aliases={"latest": NAME}, created=1000.0,
)  # fmt: skip
CONTENT = json.loads(MANIFEST.to_json())
CLAIM = Claim(1, Process("host", 7, "123", "boot-1"), Launch("slurm-7", (1, 2)), 1000.0, seen=1001.0)


JSON = plain.map(lambda value: json.dumps(value).encode())


@contextmanager
def or_refused(kind, words=""):
    """Within it nothing may be raised but an error of this kind that says these words."""
    try:
        yield
    except kind as error:
        if words not in str(error) or len(str(error)) > 2000:
            raise


def sealed(content):
    """As a program would write it that knows how, so that all of its fields are looked at."""
    content = {name: value for name, value in content.items() if name != "seal"}
    return json.dumps({**content, "seal": _seal(content)}).encode()


def cut_or_overwritten(whole):
    """The bytes with some of them cut away, replaced, or put in."""
    places = st.integers(0, len(whole))
    return st.lists(st.tuples(places, places, st.binary(max_size=6)), min_size=1, max_size=3).map(
        lambda changes: patched(whole, changes)
    )


def patched(whole, changes):
    for start, length, data in changes:
        whole = whole[:start] + data + whole[start + (length % 9) :]
    return whole


@fuzzed
@given(st.binary(max_size=60) | JSON | cut_or_overwritten(MANIFEST.to_json()))
@example(b"[" * 100_000)
@example(b'{"format": 1' + b', "a": ' + b"[" * 900 + b"]" * 900 + b"}")
def test_a_file_of_other_bytes_is_no_manifest(data):
    with or_refused(CheckpointError, "the manifest "):
        assert Manifest.from_json(data) == MANIFEST


@fuzzed
@given(st.dictionaries(st.sampled_from(sorted({*CONTENT} - {"seal"})), plain, min_size=1, max_size=3))
@example({"created": 10**400})
@example({"metrics": {"a": 10**400}})
@example({"settings": {"a": 1.0}, "monitor": "\ud800", "host": "\udcff"})
@example({"metrics": {"a": []}})
@example({"name": f"g{HUGE}-000001-s000000010-abcdef"})
def test_each_field_of_a_manifest_is_of_its_kind_or_refused(changes):
    with or_refused(CheckpointError, "the manifest "):
        manifest = Manifest.from_json(sealed(CONTENT | changes))
        assert Manifest.from_json(manifest.to_json()) == manifest or "nan" in repr(manifest)
        assert manifest.key.payload == manifest.payload


def saved(state, **options):
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


STATE = {"state_dict": {"w": torch.arange(6.0)}, "step": 5, "names": ["a", (1, 2)]}
ZIPPED, LEGACY = saved(STATE), saved(STATE, _use_new_zipfile_serialization=False)


class Bytes(SeekableReader):
    def __init__(self, data):
        self._data = data
        super().__init__(len(data))

    def _read_at(self, start, length):
        return self._data[start : start + length]


_armed, _called = [], []


def _listen(event, arguments):
    if _armed and event in ("os.system", "os.mkdir", "open", "subprocess.Popen", "os.exec", "os.posix_spawn"):
        _called.append((event, arguments))


@pytest.fixture(scope="module", autouse=True)
def _audited():
    sys.addaudithook(_listen)  # for the life of the process, but it only listens when it is armed


@contextmanager
def nothing_is_run():
    """Nothing may be called within it that a file might want to be called."""
    _armed.append(True)
    try:
        yield
    finally:
        _armed.clear()
        called, _called[:] = list(_called), []
        assert called == []


@fuzzed
@given(st.sampled_from([ZIPPED, LEGACY]).flatmap(cut_or_overwritten) | st.binary(max_size=80))
@example(b"")
@example(b"\x80\x02.")
@example(pickle.dumps({"a": 1}))
def test_a_payload_of_other_bytes_is_a_state_or_refused(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp() / "fuzzed.pth.tar"
    file.write_bytes(data)
    with file.open("rb") as opened:
        for read in (
            lambda: decode(data, "the file"),
            lambda: decode_skeleton(Bytes(data), "the file"),
            lambda: decode_file(opened, "the file"),
        ):
            with nothing_is_run(), or_refused(CheckpointError, "the file "):
                assert isinstance(read(), dict)


class Calls:
    """An object that wants a function called when it is read."""

    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


FUNCTIONS = [os.system, os.getenv, builtins.eval, builtins.exec, builtins.open, builtins.getattr, struct.pack, os.mkdir]


@fuzzed
@given(st.sampled_from(FUNCTIONS), st.booleans(), st.booleans())
def test_a_payload_that_wants_a_call_is_refused_for_it(tmp_path_factory, function, zipped, nested):
    mark = tmp_path_factory.getbasetemp() / "was-run"
    wants = Calls(function, (f"touch {mark}",))
    state = {"state_dict": {"w": [wants]}} if nested else {"a": wants}
    data = saved(state, _use_new_zipfile_serialization=zipped)
    refused = pytest.raises(CheckpointError, match=r"is refused because it contains code|cannot be read")
    with nothing_is_run(), refused:
        decode(data, "the file")
    assert not mark.exists()


@fuzzed
@given(st.binary(max_size=60) | JSON | cut_or_overwritten(CLAIM.to_json()))
@example(b"[" * 100_000)
@example(CLAIM.to_json().replace(b"1000.0", b"1e300"))
@example(CLAIM.to_json().replace(b"1000.0", b"NaN"))
@example(CLAIM.to_json().replace(b'"generation": 1', b'"generation": Infinity'))
@example(CLAIM.to_json().replace(b'"pid": 7', b'"pid": "../7"'))
def test_a_generations_file_is_a_claim_or_none(data):
    claim = Claim.from_json(data)
    if claim is not None:
        assert Claim.from_json(claim.to_json()) == claim
        assert claim.describe()
        assert standing(claim, Process.this(), Launch("slurm-7", (3,)), None) in ("gone", "running", "unknown")


@fuzzed
@given(st.dictionaries(st.sampled_from(sorted(json.loads(CLAIM.to_json()))), plain, min_size=1, max_size=3))
@example({"launch": {"id": "a", "attempt": [float("inf")]}})
@example({"start": {"time": "x"}, "step": float("inf")})
def test_each_field_of_a_claim_is_of_its_kind_or_it_is_none(changes):
    claim = Claim.from_json(json.dumps(json.loads(CLAIM.to_json()) | changes).encode())
    if claim is not None:
        assert claim.describe()
        assert Start.from_dict(claim.start or {}) is None or claim.start
        Launch("slurm-7", (9,)).follows(claim.launch)


names = st.one_of(
    st.text(string.digits + "gs-abcdef.", max_size=30),
    st.from_regex(r"g\d{3,20}(-\d{1,8})?(-s\d{1,10})?(-[0-9a-f]{1,7})?", fullmatch=True),
    st.from_regex(r"g\d{3,20}(\.json|\.pth\.tar|\.after\.\w*)", fullmatch=True),
    st.sampled_from([NAME, f"{NAME}.json", f"g{HUGE}.json", f"g{HUGE}.after.{NAME}", after_file(3, None)]),
)


@fuzzed
@given(st.lists(names, max_size=6), st.lists(names, max_size=6))
@example([f"g{HUGE}-000001-s000000010-abcdef.json", ".", ""], [f"g{HUGE}.json", ".."])
def test_a_folder_of_odd_names_is_read(memory_store, files, claims):
    bounds = limits(claims)
    assert highest_claim(claims) >= 0
    for file in files:
        name = CheckpointName.of_file(file)
        assert name is None or (str(name) in file and is_void(name, bounds) in (True, False))
    written = [file for file in files if file not in ("", ".", "..")]  # as which no file can be
    for file in written:
        memory_store.write(file, b"{}")
    catalogue = Catalogue.read(memory_store)
    for file in written:
        memory_store.delete(file)
    assert not catalogue.manifests
    assert catalogue.generation < 10**18


@pytest.fixture(scope="module")
def memory_store():
    return Store.open(f"memory://fuzz-{os.getpid()}")


wishes = st.one_of(
    st.text(max_size=20),
    st.text(string.digits + "epoch_.-/~", max_size=20),
    st.integers(),
    st.booleans(),
    plain,
    st.sampled_from([HUGE, f"epoch_{HUGE}", "²", "epoch_²", 10**5000, "a\0b"]),
)


@fuzzed
@given(wishes)
def test_what_resume_asks_for_is_understood_or_refused(wish):
    with or_refused(ConfigurationError, "resume="):
        wanted = parse_resume(wish)
        assert wanted.kind in ("fresh", "newest", "epoch", "name", "elsewhere")
        assert 0 <= wanted.epoch < 2**63


@fuzzed
@given(st.text(max_size=120))
@example(HUGE)
def test_a_name_for_a_checkpoint_never_reads_as_another_kind(name):
    if alias_problem(name) is None:
        wanted = parse_resume(name)
        assert (wanted.kind, wanted.text) == ("name", name)
        assert CheckpointName.of_file(name) is None


hosts = st.text(string.ascii_lowercase + string.digits + ".-:[]", max_size=12)
secrets = st.text(string.ascii_letters + string.digits, min_size=8, max_size=12).map(lambda word: f"S3CRET{word}")
urls = st.one_of(
    st.text(max_size=30),
    st.builds("{}://{}/{}".format, st.sampled_from(["s3", "memory", "file", "nosuch", "S3", "é"]), hosts, hosts),
)


@fuzzed
@given(urls)
@example("~nosuchuser/x")
@example("file://~nosuchuser/x")
@example("s3://")
@example("://")
@example("\ud800")
def test_a_place_is_opened_or_refused_and_nothing_is_touched(url):
    with or_refused(ConfigurationError):
        store = Store.open(url)
        assert store.url
        assert store.child("models").url.startswith(store.url.rstrip("/"))
        store.parent()


@fuzzed
@given(secrets, secrets, hosts, st.text(max_size=20))
def test_no_secret_of_a_url_is_ever_shown(user, password, host, words):
    url = f"s3://{user}:{password}@{host}/runs?signature={password}"
    assert password not in shown_url(url)
    assert password not in hider(url, {})(f"{words} {password} {words} {url}")
    try:
        text = repr(Store.open(url))
    except ConfigurationError as error:
        text = str(error)
    assert password not in text


@fuzzed
@given(plain, st.lists(plain, max_size=3))
def test_a_history_of_other_things_is_empty(state, states):
    history = History()
    history.load_state_dict(entry for entry in states if isinstance(entry, dict))
    assert history.starts == ()
    assert not isinstance(state, dict) or Start.from_dict(state) is None
