"""An S3 server of our own, for as long as it is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Server:
    """Where it listens, and the key and secret of one user who may do everything."""

    url: str
    key: str
    secret: str

    @property
    def environ(self) -> dict[str, str]:
        """For a process that is to use it."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        """That user's, of boto3."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
        )


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Start an S3 server over HTTP that checks signatures, and end it on leaving. Its log is in `folder`."""
    log = folder / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        # So that a test of uploads in parts needs no large ones.
        environ = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "1024"}
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environ
        )
    try:
        url = _url(server, log)
        anyone = {"endpoint_url": url, "region_name": "us-east-1"}
        iam = boto3.client("iam", aws_access_key_id="admin", aws_secret_access_key="admin", **anyone)
        iam.create_user(UserName="tester")
        key = iam.create_access_key(UserName="tester")["AccessKey"]
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        iam.put_user_policy(UserName="tester", PolicyName="all", PolicyDocument=json.dumps(policy))
        # From here on no request passes without a good signature.
        kind = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", kind), timeout=10).close()
        yield Server(url, key["AccessKeyId"], key["SecretAccessKey"])
    finally:
        server.terminate()
        server.wait(timeout=20)


def _url(server: subprocess.Popen[bytes], log: Path) -> str:
    """Where the server listens, as soon as it says so."""
    deadline = time.monotonic() + 60
    while True:
        found = re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())
        if found:
            return found[1]
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
