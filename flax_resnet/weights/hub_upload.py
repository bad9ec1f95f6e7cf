"""Upload a folder to a repository of the Hugging Face hub, in one commit. No error shows the user's token."""

import pathlib

from flax_resnet.errors import WeightsError
from flax_resnet.weights.hub import REPOSITORY, without_token

LOG_IN = "log in by hf auth login, or set HF_TOKEN to a token that may write"


def check_repository(name: str) -> None:
    """Raise WeightsError if a text cannot name a repository to write to."""
    if not REPOSITORY.fullmatch(name) or "@" in name:
        raise WeightsError(
            key="REPOSITORY", value=name, allowed="USER/NAME, a repository of the hub"
        )


def upload(folder: pathlib.Path, repository: str, *, private: bool, message: str) -> str:
    """Upload all files of a folder in one commit, and return the address of the repository.

    The repository is created if it does not exist. Other files that it holds are kept. The token is that of
    huggingface_hub: $HF_TOKEN, or that of its login.

    Args:
      folder: the folder.
      repository: USER/NAME.
      private: whether only its owners see a new repository.
      message: the message of the commit.

    Raises:
      WeightsError: the name is invalid, there is no token, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    check_repository(repository)
    if not get_token():
        raise WeightsError(
            "needs a token of the hub", key="REPOSITORY", value=repository, cure=LOG_IN
        )
    api = HfApi()
    try:
        address = api.create_repo(repository, private=True if private else None, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # of httpx, of requests or of hf_xet, depending on the version
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise WeightsError(
            f"the hub did not take it: {without_token(error)}",
            key="REPOSITORY",
            value=repository,
            cure=LOG_IN if status in (401, 403) else "",
        ) from None  # the cause could show the token
    return str(address)
