"""Upload a run to the Hugging Face hub: python -m flax_resnet push RUN USER/NAME --license apache-2.0

Uploads model.safetensors, config.json and a model card (README.md) in one commit. The repository is created if it
does not exist. Then timm.create_model("hf_hub:USER/NAME", pretrained=True) and
flax_resnet.load_pretrained("USER/NAME") load the weights. The token is $HF_TOKEN, or that of hf auth login.
--folder_only=DIR writes the same files to a folder, and uploads nothing.
"""

import pathlib
import sys
import tempfile
from collections.abc import Sequence

from absl import flags

from flax_resnet.cli import app
from flax_resnet.errors import ConfigError, OutputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; `argv` without the program's name."""
    return app.run(
        "flax-resnet push", __doc__, _define, _push, argv, positional=("run", "repository")
    )


def _define(values: flags.FlagValues, argv: list[str]) -> None:
    del argv
    for name, default, help in (
        ("run", "", "run folder"),
        ("repository", "", "USER/NAME on the hub"),
        (
            "license",
            "",
            "licence of the weights, an identifier of the hub such as apache-2.0; or other",
        ),
        ("checkpoint", "last", "last, best, or a step"),
        ("folder_only", "", "write the files to this new folder, and upload nothing"),
    ):
        flags.DEFINE_string(name, default, help, flag_values=values)
    flags.DEFINE_bool("private", False, "make a new repository private", flag_values=values)


def _push(values: flags.FlagValues) -> None:
    run, repository = app.flag(values, "run"), app.flag(values, "repository")
    license, only = app.flag(values, "license"), app.flag(values, "folder_only")
    checkpoint = app.flag(values, "checkpoint")
    if not run:
        raise ConfigError(
            "is needed", key="RUN", cure="run python -m flax_resnet push RUN USER/NAME"
        )
    if not (repository or only):
        raise ConfigError(
            "is needed", key="REPOSITORY", cure="name USER/NAME, or set --folder_only"
        )
    if only and pathlib.Path(only).expanduser().exists():
        raise OutputError("exists already", key=only, cure="name a new folder")
    from flax_resnet.inference.hub_folder import check_license, write_hub_folder
    from flax_resnet.weights.hub_upload import check_repository, upload

    check_license(license)
    if repository:
        check_repository(repository)
    with tempfile.TemporaryDirectory() as scratch:
        made = write_hub_folder(
            only or scratch,
            run,
            license=license,
            repository=repository or "USER/NAME",
            checkpoint=checkpoint,
        )
        if only:
            where, load = str(made.path), f"local-dir:{made.path}"
        else:
            private = app.flag(values, "private")
            message = f"Upload {made.network} of flax_resnet"
            where = upload(made.path, repository, private=private, message=message)
            load = f"hf_hub:{repository}"
    name = str(made.path) if only else repository
    print(f'{where}\nin Python: flax_resnet.load_pretrained("{name}")')
    if made.lacking:
        print(f"timm does not load it: it lacks {', '.join(made.lacking)}")
    else:
        print(f'or timm.create_model("{load}", pretrained=True)')


if __name__ == "__main__":
    sys.exit(main())
