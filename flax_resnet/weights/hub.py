"""Fetch timm's weights: from the local cache of the Hugging Face hub, or from the hub itself."""

import json
import pathlib
from typing import Any

from flax_resnet.errors import WeightsError, one_line

FILES = ("model.safetensors", "pytorch_model.bin")  # the second is used only if the first is absent
SECONDS = 5.0  # timeout for the first response of the hub


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
        wanted = "config.json" if weights else " or ".join(FILES)
        raise WeightsError(f"{_address(name)} has no {wanted}", key="name", value=name)
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"should describe the weights {name!r}, but cannot be read: {one_line(error)}",
            key=config,
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"should describe the weights {name!r}, but holds no JSON object", key=config
        )
    return weights, content


def _repository(name: str) -> str:
    return f"timm/{name}"


def _address(name: str) -> str:
    return f"huggingface.co/{_repository(name)}"


def _cached(name: str, file: str) -> pathlib.Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError

    try:
        return pathlib.Path(hf_hub_download(_repository(name), file, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise WeightsError(
            f"cannot be a name on the hub: {one_line(error)}", key="name", value=name
        ) from error


def _downloaded(name: str, file: str) -> pathlib.Path | None:
    """Return the downloaded file, or None if the hub has no such file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repo = _repository(name)
    try:
        # Without a network, hf_hub_download retries six times, for half a minute. This call fails at once.
        get_hf_file_metadata(hf_hub_url(repo, file), timeout=SECONDS)
        return pathlib.Path(hf_hub_download(repo, file, etag_timeout=SECONDS))
    except RepositoryNotFoundError as error:
        raise WeightsError(f"{_address(name)} does not exist", key="name", value=name) from error
    # Connection errors are exceptions of httpx or of requests, depending on the version of huggingface_hub.
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise WeightsError(
            f"{file} of {_address(name)} is not in {HF_HUB_CACHE} and cannot be downloaded: {one_line(error)}",
            key="name",
            value=name,
            cure="download it elsewhere and name the file instead",
        ) from error
