"""Fetch weights of timm, or of any repository: from the Hugging Face hub, or from its local cache."""

import json
import logging
import pathlib
import re
from typing import Any, NamedTuple

from flax_resnet.errors import WeightsError, one_line

FILES = ("model.safetensors", "pytorch_model.bin")  # the second is used only if the first is absent
SECONDS = 5.0  # timeout for the first response of the hub
# A repository of the hub: USER/NAME, and optionally @ and a branch, tag or commit.
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[^@\s]+)?", re.ASCII)
PREPROCESSOR = "preprocessor_config.json"  # of transformers

log = logging.getLogger("flax_resnet")


class Fetched(NamedTuple):
    """The files of a repository.

    Attributes:
      weights: the path of the weights.
      config: the content of config.json.
      preprocessor: the content of preprocessor_config.json; None without such a file.
    """

    weights: pathlib.Path
    config: dict[str, Any]
    preprocessor: dict[str, Any] | None


def fetch(name: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """Find the files of ``timm/{name}`` in the local cache, or download them into it.

    Args:
      name: model and tag, such as "resnet50.a1_in1k".

    Returns:
      The path of the weights (``.safetensors``, or ``.bin`` if there is no other file) and the content of
      ``config.json``.

    Raises:
      WeightsError: the files are not in the cache, and the hub does not have them or cannot be reached.

    Note: the cache is the one of huggingface_hub: $HF_HOME/hub, by default ~/.cache/huggingface/hub.
    """
    weights = next(filter(None, (_cached(name, file) for file in FILES)), None)
    weights = weights or _downloaded(name, FILES[0]) or _downloaded(name, FILES[1])
    config = _cached(name, "config.json") or _downloaded(name, "config.json")
    if weights is None or config is None:
        raise _lacks(name, "config.json" if weights else " or ".join(FILES))
    return weights, read_description(config, name)


def fetch_repository(name: str) -> Fetched:
    """Find the files of a repository, all of one commit. The cache serves if the hub cannot be reached.

    Args:
      name: USER/NAME, or USER/NAME@REVISION.

    Raises:
      WeightsError: there is no such repository, revision or file; or the files are not in the cache, and the hub
        cannot be reached.
    """
    commit = ""
    if _cached(name, "config.json") is None or not _is_commit(_split(name)[1]):
        commit = _newest_commit(name)
    exact = f"{_split(name)[0]}@{commit}" if commit else name

    def found(file: str) -> pathlib.Path | None:
        return _cached(exact, file) or (_downloaded(exact, file) if commit else None)

    config = found("config.json")
    if config is None:
        raise _lacks(name, "config.json")
    content = read_description(config, name)
    weights = next(filter(None, map(found, FILES)), None)
    if weights is None:
        raise _lacks(name, " or ".join(FILES))
    other = found(PREPROCESSOR) if content.get("model_type") == "resnet" else None
    return Fetched(weights, content, read_description(other, name) if other else None)


def read_description(file: pathlib.Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file that describes the weights `name`. Raises WeightsError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"should describe the weights {name!r}, but cannot be read: {one_line(error)}", key=file
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"should describe the weights {name!r}, but holds no JSON object", key=file
        )
    return content


def without_token(error: BaseException) -> str:
    """Return the message of an exception in one line, without the user's token."""
    from huggingface_hub import get_token

    text, token = " ".join(str(error).split()), get_token()
    hidden = text.replace(token, "TOKEN") if token else text
    return one_line(RuntimeError(hidden or type(error).__name__))


def _lacks(name: str, file: str) -> WeightsError:
    return WeightsError(f"{_address(name)} has no {file}", key="name", value=name)


def _is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def _newest_commit(name: str) -> str:
    """Return the commit of the name's revision; "" if the hub cannot be reached, and the cache has the revision."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    repo, revision = _split(name)
    try:
        url = hf_hub_url(repo, "config.json", revision=revision)
        return get_hf_file_metadata(url, timeout=SECONDS).commit_hash or revision
    except Exception as error:  # of httpx or of requests, as below
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise _lacks(name, "config.json") from error
        if getattr(error, "response", None) is None and _cached(name, "config.json"):
            log.info("%s cannot be reached; its files in the cache are used", _address(name))
            return ""
        raise _refused(name, "config.json", error) from None  # the cause could show the token


def _split(name: str) -> tuple[str, str]:
    """Return the repository and the revision."""
    repo, _, revision = name.partition("@")
    return (repo if "/" in repo else f"timm/{repo}"), revision or "main"


def _address(name: str) -> str:
    return f"huggingface.co/{name if '/' in name else f'timm/{name}'}"


def _cached(name: str, file: str) -> pathlib.Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError

    try:
        repo, revision = _split(name)
        path = hf_hub_download(repo, file, revision=revision, local_files_only=True)
        return pathlib.Path(path)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise WeightsError(
            f"cannot be a name on the hub: {one_line(error)}", key="name", value=name
        ) from error


def _downloaded(name: str, file: str) -> pathlib.Path | None:
    """Return the downloaded file, or None if the hub has no such file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    repo, revision = _split(name)
    try:
        # Without a network, hf_hub_download retries six times, for half a minute. This call fails at once.
        get_hf_file_metadata(hf_hub_url(repo, file, revision=revision), timeout=SECONDS)
        return pathlib.Path(hf_hub_download(repo, file, revision=revision, etag_timeout=SECONDS))
    # Connection errors are exceptions of httpx or of requests, depending on the version of huggingface_hub.
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise _refused(name, file, error) from None  # the cause could show the token


def _refused(name: str, file: str, error: Exception) -> WeightsError:
    """Return the error for a file that the hub does not give."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    address = _address(name)
    if isinstance(error, GatedRepoError):
        cure = f"ask for access at https://{address.partition('@')[0]}"
        return WeightsError(
            f"{address} needs its owner's consent", key="name", value=name, cure=cure
        )
    if isinstance(error, RevisionNotFoundError):
        return WeightsError(f"{address} has no such revision", key="name", value=name)
    if isinstance(error, RepositoryNotFoundError):
        own = "" if get_token() or "/" not in name else "log in (hf auth login) if it is private"
        return WeightsError(f"{address} does not exist", key="name", value=name, cure=own)
    return WeightsError(
        f"{file} of {address} is not in {HF_HUB_CACHE} and cannot be downloaded: {without_token(error)}",
        key="name",
        value=name,
        cure="download it elsewhere and name the file instead",
    )
