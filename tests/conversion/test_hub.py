"""Without network, or with a server that hangs up, the hub's failures are one line."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cogvideox.conversion.diffusers_import.options import parse_options
from cogvideox.conversion.diffusers_import.source import find_source
from cogvideox.conversion.hub import download, upload
from cogvideox.errors import CheckpointError


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture
def rude_port() -> Iterator[int]:
    """Of a server that takes a request and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture(params=["closed_port", "rude_port"])
def no_hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    port = request.getfixturevalue(request.param)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("asks_before", [True, False])
def test_download(tmp_path: Path, asks_before: bool) -> None:
    before = (lambda files: None) if asks_before else None
    with pytest.raises(CheckpointError, match=r"^no model a/b \(.+\): give another$"):
        download("a/b", "no model a/b", advice=": give another", before=before, cache_dir=tmp_path)


@pytest.mark.usefixtures("no_hub")
def test_no_network_is_no_unknown_model(tmp_path: Path) -> None:
    options = parse_options(["a/b", "--output_path", str(tmp_path / "out"), "--cache_dir", str(tmp_path)])
    expected = r"^no folder a/b here, and Hugging Face can't be reached \(.+\)\. .*`hf download a/b --local-dir b`"
    with pytest.raises(CheckpointError, match=expected):
        find_source(options)


@pytest.mark.usefixtures("no_hub")
def test_upload(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is complete, but the upload failed \(.+\): without a token, try"):
        upload(tmp_path, {})


def test_what_is_raised_before_the_download_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise CheckpointError("not enough space")

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: [])
    with pytest.raises(CheckpointError, match=r"^not enough space$"):
        download("a/b", "no model", before=refuse, cache_dir=tmp_path)
