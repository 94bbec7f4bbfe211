"""A data set on Hugging Face: its files are downloaded once into Hugging Face's own cache, then read as a folder."""

from __future__ import annotations

from pathlib import Path

from cogvideox.errors import DataError


def download(name: str) -> Path:
    """The folder of a data set's files, downloaded where they are not there yet.

    Args:
        name: `owner/name`, or `owner/name@revision`.

    Raises:
        DataError: no such data set, no access, or no network.
    """
    # Imported here: it takes a third of a second, and only this layout needs it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision or None))
    except HFValidationError as error:
        raise DataError(f"{name}: is no name of a data set on Hugging Face; expected owner/name") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{name}: can't be downloaded from Hugging Face: {reason}") from error
