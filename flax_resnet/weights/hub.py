"""Fetch timm's weights from the Hugging Face hub: from its local cache, else over the network."""

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

    Note: the cache is that of huggingface_hub, at $HF_HOME/hub, by default ~/.cache/huggingface/hub.
    """
    repo = f"timm/{name}"
    weights = next(filter(None, (_cached(repo, file) for file in FILES)), None)
    weights = weights or _downloaded(repo, FILES[0]) or _downloaded(repo, FILES[1])
    config = _cached(repo, "config.json") or _downloaded(repo, "config.json")
    if weights is None or config is None:
        wanted = "config.json" if weights else " or ".join(FILES)
        raise WeightsError(f"weights {name!r}: huggingface.co/{repo} has no {wanted}")
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"weights {name!r}: {config}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"weights {name!r}: {config} holds no JSON object")
    return weights, content


def _cached(repo: str, file: str) -> pathlib.Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError

    try:
        return pathlib.Path(hf_hub_download(repo, file, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise WeightsError(f"weights {repo!r}: no name of the hub: {one_line(error)}") from error


def _downloaded(repo: str, file: str) -> pathlib.Path | None:
    """Return the downloaded file, or None if the hub has no such file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        # Without a network, hf_hub_download retries six times, for half a minute. This call fails at once.
        get_hf_file_metadata(hf_hub_url(repo, file), timeout=SECONDS)
        return pathlib.Path(hf_hub_download(repo, file, etag_timeout=SECONDS))
    except RepositoryNotFoundError as error:
        raise WeightsError(f"there are no weights huggingface.co/{repo}") from error
    # The version of huggingface_hub decides whether connection errors are those of httpx or requests.
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise WeightsError(
            f"cannot get {file} of huggingface.co/{repo}, nor is it in the cache {HF_HUB_CACHE}: "
            f"{one_line(error)}; download it elsewhere and name the file instead"
        ) from error
