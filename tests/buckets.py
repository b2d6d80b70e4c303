"""A server that speaks S3, for the tests of object stores: moto's, on loopback."""

from __future__ import annotations

import importlib.util
import itertools
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 60  # seconds until it answers
BUCKET = "chests"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-id",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_REGION": "us-east-1",
}
# One put at a time, because moto looks at the condition and then, without a lock, puts: of
# two that hold the same etag both would win, now and then.
SERVE = """
import sys, threading
from moto import server

lock, run = threading.Lock(), server.run_simple

def serve(host, port, app, **options):
    def one_put_at_a_time(request, answer):
        if request["REQUEST_METHOD"] != "PUT":
            return app(request, answer)
        with lock:
            return app(request, answer)

    run(host, port, one_put_at_a_time, **options)

server.run_simple = serve
server.main(sys.argv[1:])
"""

_numbers = itertools.count()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_bucket(endpoint: str, bucket: str) -> None:
    request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
    urllib.request.urlopen(request).close()


@pytest.fixture(scope="session")
def s3_server(own_temporary_directory: None) -> Iterator[str]:
    """The endpoint of a server, which the environment names; it has one bucket."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto is not installed")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                make_bucket(endpoint, BUCKET)
                break
            except (urllib.error.URLError, ConnectionError):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
                patch.setenv(name, value)
            yield endpoint
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3_server: str) -> str:
    """The address of a place in a bucket where nothing is."""
    return f"s3://{BUCKET}/{os.getpid()}/{next(_numbers)}"
