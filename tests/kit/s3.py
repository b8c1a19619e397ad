"""An S3 server on loopback: moto's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.kit.scripted import Answer, ScriptedServer, answer

BUCKET = "kitchen"
KEYS = {"key": "AKIDEXAMPLE01", "secret": "wJalrXUtnFEMI-K7MDENG"}


class S3(ScriptedServer):
    """The server; paths of its requests are below the bucket.

    Attributes:
        oracle: boto3's client of it.
    """

    def __init__(self) -> None:
        import boto3
        from botocore.config import Config
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        super().__init__(DomainDispatcherApplication(create_backend_app), root=f"/{BUCKET}")
        self.oracle = boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=KEYS["key"],
            aws_secret_access_key=KEYS["secret"],
            region_name="us-east-1",
            config=Config(user_agent=self.oracle_agent, proxies={}),
        )

    def empty(self) -> None:
        """Forgets everything."""
        from moto.backends import get_backend

        with self._lock:
            get_backend("s3").reset()
        self.forget()
        self.oracle.create_bucket(Bucket=BUCKET)

    def close(self) -> None:
        """Ends it."""
        self.oracle.close()
        super().close()


def refusal(status: str, code: str, **headers: Any) -> Answer:
    """An error as S3 tells it; it shows what it should not."""
    told = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No. {KEYS['key']}</Message></Error>"
    return answer(status, told.encode(), Content_Type="application/xml", **headers)


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server for the block."""
    server = S3()
    try:
        yield server
    finally:
        server.close()
