"""Hub ids -> local paths, by huggingface_hub: its cache, HF_HUB_OFFLINE, HF_ENDPOINT and tokens are obeyed as they
stand.
 Only what will be read is downloaded: JSON files, tokenizer files, and one form of each network's weights (safetensors
rather than pickles, the variant that was asked for). The revision is resolved to a commit once, and files are listed
and downloaded from that commit.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safelight.checkpoint.files import STEMS, SUFFIXES
from safelight.errors import CheckpointError

FOLDERS = ("unet", "vae", "vqvae", "text_encoder")
SMALL = (
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*",
    *(f"{folder}/*.json" for folder in FOLDERS),
    "config.json",
)


def fetch(name: str, *, variant: str | None, revision: str | None, local_files_only: bool) -> Path:
    """Bring a hub model ("owner/model"), or one file of it ("owner/model/file.ckpt"), onto this machine.

    Raises CheckpointError where it does not exist, may not be read, or is not in the cache and there is no network.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    owner, model, *inner = name.split("/")
    repo, file = f"{owner}/{model}", "/".join(inner)
    offline = local_files_only or hub.constants.HF_HUB_OFFLINE
    try:
        if file:
            return Path(hub.hf_hub_download(repo, file, revision=revision, local_files_only=offline))
        if offline:
            return Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
        info = hub.HfApi().model_info(repo, revision=revision)
        patterns = [*SMALL, *chosen([entry.rfilename for entry in info.siblings or []], variant, name)]
        return Path(hub.snapshot_download(repo, revision=info.sha, allow_patterns=patterns))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise _failure(error, name, revision) from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        return _cached(repo, name, revision, error) if not file else _raise(error, name, revision)


def chosen(files: Iterable[str], variant: str | None, name: str) -> list[str]:
    """The weight files to download: for each network those of the variant, safetensors where there are any."""
    tag = re.escape(f".{variant}") if variant else ""
    stems = "|".join(STEMS)
    pattern = re.compile(
        rf"({'|'.join(FOLDERS)})/(?:{stems})(?:{tag}(?:-\d+-of-\d+)?|(?:-\d+-of-\d+){tag})\.(safetensors|bin)"
    )
    found: dict[tuple[str, str], list[str]] = {}
    for file in files:
        if match := pattern.fullmatch(file):
            found.setdefault((match[1], match[2]), []).append(file)
    if not found:
        kind = f"of variant {variant!r} " if variant else ""
        singles = [file for file in files if "/" not in file and Path(file).suffix in SUFFIXES]
        remedy = (
            f"name a file of it, as in {name}/{singles[0]}" if singles else "give another variant=, or another model"
        )
        raise CheckpointError(f"has no weights {kind}in a diffusers folder", path=name, remedy=remedy)
    return [file for (folder, kind), names in found.items() for file in names
            if kind == "safetensors" or (folder, "safetensors") not in found]  # fmt: skip


def _cached(repo: str, name: str, revision: str | None, error: Exception) -> Path:
    """Fall back on the cache where the hub cannot be reached."""
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
    except (hub.errors.HfHubHTTPError, OSError, ValueError):
        return _raise(error, name, revision)


def _raise(error: Exception, name: str, revision: str | None) -> Any:
    raise _failure(error, name, revision) from error


def _failure(error: Exception, name: str, revision: str | None) -> CheckpointError:
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    if isinstance(error, errors.GatedRepoError):
        what, remedy = "is gated", "accept its terms on the hub, then log in with `hf auth login`"
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        what = f"is not in the cache{at}, and the hub is not to be asked or cannot be reached"
        remedy = "connect once, or name a folder or file on this machine"
    elif isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.EntryNotFoundError):
        what, remedy = f"does not exist on the hub{at}", "check its name; a private model needs `hf auth login`"
    else:
        what, remedy = (
            f"could not be fetched{at} ({type(error).__name__})",
            "check the network, or name a local folder or file",
        )
    return CheckpointError(what, path=name, remedy=remedy)
