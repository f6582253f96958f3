"""How many requests it takes to look into a bucket."""

import dataclasses
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from minetorch.checkpoint import store
from minetorch.checkpoint.run import Run
from tests.fakes.flaky_s3 import Proxy

FOREIGN = 60
CHECKPOINTS = 40


@pytest.fixture
def place(runs, bucket, aws, monkeypatch):
    """A bucket with a run of 40 checkpoints, which is reached through a proxy, and its `requests`."""
    manifest = Run.open(runs / "plan-a").catalogue.manifests[-1]
    objects = {f"foreign/d{number:03}/file.bin": b"x" for number in range(FOREIGN)}
    for number in range(1, CHECKPOINTS + 1):
        name = f"g0001-{number:06}-s{number:09}-abcdef"
        aliases = {"latest": name}
        one = dataclasses.replace(manifest, name=name, sequence=number, step=number, aliases=aliases, dropped=[])
        one = dataclasses.replace(one, payload=f"{name}.pth.tar", size=1, curves=None)
        objects |= {f"runs/plan/models/{name}.json": one.to_json(), f"runs/plan/models/{name}.pth.tar": b"x"}
    claim = runs / "plan-a/models/writers/g0001.json"
    objects["runs/plan/models/writers/g0001.json"] = claim.read_bytes()
    with ThreadPoolExecutor(8) as pool:
        [
            *pool.map(
                lambda item: bucket.client.put_object(Bucket=bucket.name, Key=item[0], Body=item[1]), objects.items()
            )
        ]
    with Proxy(bucket.client.meta.endpoint_url) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield bucket.url, proxy.requests
        proxy.shutdown()
        thread.join()


def count(requests, what):
    return sum(bool(re.search(what, line)) for line in requests)


LISTING = r"^GET \S*[?&]list-type=2"
MANIFEST = r"^GET \S*\.json "


def test_a_bucket_is_listed_at_once_and_each_manifest_read_once(command, place):
    url, requests = place
    (run,) = command("ls", url, "--json")["runs"]
    assert (run["run"], run["checkpoints"], run["step"]) == ("runs/plan", CHECKPOINTS, CHECKPOINTS)
    assert count(requests, LISTING) == 1
    assert count(requests, MANIFEST) == CHECKPOINTS + 1  # and the claim
    assert len(requests) <= CHECKPOINTS + 3
    requests.clear()
    assert len(command("ls", f"{url}/runs/plan", "--json")["list"]) == CHECKPOINTS
    assert len(requests) <= CHECKPOINTS + 3


def test_a_folder_that_is_no_run_takes_no_manifest(command, place):
    url, requests = place
    text = command("ls", f"{url}/foreign", expect=1)
    assert "there is no run at" in text
    assert count(requests, LISTING) <= 2
    assert count(requests, MANIFEST) == 0
    requests.clear()
    assert "There is no run 'pan'. Did you mean 'plan'?" in command("show", f"{url}/runs/pan", expect=1)
    assert count(requests, MANIFEST) == 0


@pytest.mark.slow
def test_where_everything_is_too_much_folders_are_listed_side_by_side(command, place, monkeypatch):
    url, requests = place
    expected = command("ls", url, "--json")
    requests.clear()
    monkeypatch.setattr(store, "_MOST_PAGES", 0)
    assert command("ls", url, "--json") == expected
    assert count(requests, LISTING) == 6 + FOREIGN  # each folder once
