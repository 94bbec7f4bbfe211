"""The Hugging Face hub. What goes wrong on the way to it becomes one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cogvideox.errors import CheckpointError


def download(
    name: str,
    failure: str,
    *,
    advice: str = "",
    unreachable: tuple[str, str] | None = None,
    before: Callable[[Sequence[Any]], None] | None = None,
    **settings: Any,
) -> Path:
    """The local snapshot of a model; what an interrupted download has got is kept and completed.

    Args:
        failure, advice: what the error says before and after the reason.
        unreachable: the same two where the hub gave no answer at all; None says the same.
        before: gets what will be looked at (huggingface_hub's DryRunFileInfo); left out when the hub can't be asked.
        settings: further arguments of huggingface_hub.snapshot_download.

    Raises: CheckpointError when it can't be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    with _failing_as(failure, advice, unreachable):
        if before is not None:
            with suppress(DryRunError):  # what has been downloaded before will do
                before(snapshot_download(name, **settings, dry_run=True))
        return Path(snapshot_download(name, **settings))


def upload(folder: Path, replaced: Mapping[str, bytes]) -> str:
    """Upload a folder to a repository of the user's own, named as the folder; return its address.

    replaced: files of the folder that go with other content.
    Raises: CheckpointError when it is refused (no token), or without network.
    """
    from huggingface_hub import HfApi

    with _failing_as(f"{folder} is complete, but the upload failed", ": without a token, try `hf auth login`"):
        api = HfApi()
        address = api.create_repo(folder.resolve().name, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=address.repo_id, ignore_patterns=list(replaced))
        for name, content in replaced.items():
            api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=address.repo_id)
    return str(address)


@contextmanager
def _failing_as(failure: str, advice: str, unreachable: tuple[str, str] | None = None) -> Iterator[None]:
    from huggingface_hub import errors

    # Its HTTP library has been requests, httpx and httpx2; the base of its own HTTP error is that library's error.
    kinds: tuple[type[Exception], ...] = (errors.XetDownloadError, OSError, ValueError)
    kinds += tuple(base for base in errors.HfHubHTTPError.__bases__ if issubclass(base, Exception))
    try:
        yield
    except CheckpointError:
        raise
    except kinds as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if unreachable is not None and getattr(error, "response", None) is None:
            failure, advice = unreachable
        raise CheckpointError(f"{failure} ({reason}){advice}") from error
