"""The result of a run on the hub: looked for before the work, uploaded after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def reserve_repository(folder: Path, repository: str | None) -> str:
    """Make the repository for a result, if it is not there; the full name of it.

    Parameters
    ----------
    folder : Path
        Result folder; its name is that of the repository where none is given.
    repository : str, optional

    Raises
    ------
    ValueError
        Without a valid token, a connection, or the right to write there.
    """
    from huggingface_hub import create_repo, whoami

    wanted = repository or folder.resolve().name
    try:
        whoami()
    except Exception as error:  # no token, a wrong one, no connection: each has its own class
        raise ValueError(
            f"push_to_hub: the hub does not know you ({error}); log in with `hf auth login` or set HF_TOKEN"
        ) from error
    try:
        return str(create_repo(wanted, exist_ok=True).repo_id)
    except Exception as error:
        raise ValueError(f"push_to_hub: repository {wanted!r} (hub_model_id) cannot be made: {error}") from error


def push_folder(folder: Path, repository: str, private_parts: Sequence[str] = ()) -> None:
    """Upload a result folder, less hidden files and the parts named.

    Raises
    ------
    ConnectionError
        If it fails; the folder itself is whole.
    """
    from huggingface_hub import upload_folder

    ignored = [".*", *(f"{part}/**" for part in private_parts)]
    try:
        upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=ignored)
    except Exception as error:  # of the connection, the hub, or the upload
        raise ConnectionError(
            f"the result is saved in {folder}, but it could not be uploaded to {repository}: {error}; try again with "
            f"`hf upload {repository} {folder}`"
        ) from error
