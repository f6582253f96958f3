"""An S3 server on this machine for as long as it is needed: moto's, which is slow, so that its clients hardly show.

A faster one is measured by giving its URL, with the credentials and the endpoint in the environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["bucket"]

_TO_START = 60.0


@contextmanager
def bucket() -> Iterator[tuple[str, dict[str, str]]]:
    """Start a server and yield the URL of a bucket on it, with the variables that its clients need."""
    import boto3

    with tempfile.TemporaryDirectory(prefix="minetorch-benchmark-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            variables = {
                "AWS_ACCESS_KEY_ID": "benchmark",
                "AWS_SECRET_ACCESS_KEY": "benchmark",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": _address(server, log),
            }
            os.environ.update(variables)
            boto3.client("s3").create_bucket(Bucket="benchmark")
            yield "s3://benchmark", variables
        finally:
            server.terminate()
            server.wait()


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _TO_START
    while (found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())) is None:
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"moto's server did not start:\n{log.read_text()}")
        time.sleep(0.05)
    return found[1]
