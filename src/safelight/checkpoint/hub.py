"""Hub ids -> local paths, by huggingface_hub: its cache, HF_HUB_OFFLINE, HF_ENDPOINT and tokens are obeyed.

Only what will be read is downloaded: JSON files, tokenizer files, and one form of each network's weights (safetensors
rather than pickles, the variant that was asked for). The revision is resolved to a commit once, and files are listed
and downloaded from that commit.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from safelight.checkpoint.files import STEMS, SUFFIXES
from safelight.checkpoint.learned_words import WORDS
from safelight.checkpoint.lora import LORAS
from safelight.checkpoint.peft_config import CONFIG, STEM
from safelight.errors import CheckpointError

ADDITIONS = (*LORAS, *WORDS)
FOLDERS = ("unet", "vae", "vqvae", "text_encoder", "text_encoder_2", "conditioner")
SMALL = (
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*",
    "tokenizer_2/*",
    *(f"{folder}/*.json" for folder in FOLDERS),
    # of a repository that is one network, or one tokenizer
    *("config.json", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
)


def fetch(
    name: str, *, variant: str | None, revision: str | None, local_files_only: bool, addition: bool = False
) -> Path:
    """Bring a hub model ("owner/model"), or one file of it ("owner/model/file.ckpt"), onto this machine.

    An `addition` is no model, but a LoRA or a learned word.
    Where the hub cannot be reached the cache is used. Raises CheckpointError where a name does not exist, may not be
    read, or is not in the cache and there is no network.
    """
    from huggingface_hub import constants, errors

    try:
        if not (local_files_only or constants.HF_HUB_OFFLINE):
            return _download(name, variant, revision, addition)
    except CheckpointError:
        raise
    except errors.LocalEntryNotFoundError as error:  # the hub was not reached
        return _from_cache(name, revision, error)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise _failure(error, name, revision) from error
    except Exception as error:  # what the HTTP library beneath raises changes with huggingface_hub's versions
        return _from_cache(name, revision, error)
    return _from_cache(name, revision)


def _download(name: str, variant: str | None, revision: str | None, addition: bool) -> Path:
    import huggingface_hub as hub

    repo, file = _split(name)
    if file:
        if addition and Path(file).stem == STEM:  # whose alpha is there
            hub.hf_hub_download(repo, Path(file).with_name(CONFIG).as_posix(), revision=revision)
        return Path(hub.hf_hub_download(repo, file, revision=revision))
    info = hub.HfApi().model_info(repo, revision=revision)
    files = [entry.rfilename for entry in info.siblings or []]
    patterns = chosen_addition(files, name) if addition else [*SMALL, *chosen(files, variant, name)]
    return Path(hub.snapshot_download(repo, revision=info.sha, allow_patterns=patterns))


def _from_cache(name: str, revision: str | None, first: Exception | None = None) -> Path:
    """Look in the cache alone. `first` is what went wrong with the hub before; it is told where the cache fails too."""
    import huggingface_hub as hub

    repo, file = _split(name)
    try:
        if file:
            return Path(hub.hf_hub_download(repo, file, revision=revision, local_files_only=True))
        return Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
    except (hub.errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        raise _failure(first or error, name, revision) from error


def _split(name: str) -> tuple[str, str]:
    owner, model, *inner = name.split("/")
    return f"{owner}/{model}", "/".join(inner)


def chosen(files: Iterable[str], variant: str | None, name: str) -> list[str]:
    """The weight files to download: for each network those of the variant, safetensors where there are any.

    A network has its folder, or is all there is: then its files lie at the top of the repository.
    """
    tag = re.escape(f".{variant}") if variant else ""
    stems = "|".join(STEMS)
    pattern = re.compile(
        rf"(?:({'|'.join(FOLDERS)})/)?(?:{stems})(?:{tag}(?:-\d+-of-\d+)?|(?:-\d+-of-\d+){tag})\.(safetensors|bin)"
    )
    found: dict[tuple[str, str], list[str]] = {}
    for file in files:
        if match := pattern.fullmatch(file):
            found.setdefault((match[1] or "", match[2]), []).append(file)
    if any(folder for folder, _ in found):
        found = {key: names for key, names in found.items() if key[0]}
    if not found:
        kind = f"of variant {variant!r} " if variant else ""
        singles = [file for file in files if "/" not in file and Path(file).suffix in SUFFIXES]
        remedy = (
            f"name a file of it, as in {name}/{singles[0]}" if singles else "give another variant=, or another model"
        )
        raise CheckpointError(f"has no weights {kind}in a diffusers folder", path=name, remedy=remedy)
    return [file for (folder, kind), names in found.items() for file in names
            if kind == "safetensors" or (folder, "safetensors") not in found]  # fmt: skip


def chosen_addition(files: Sequence[str], name: str) -> list[str]:
    """The files to download of a repository that is a LoRA or a learned word: what diffusers or PEFT writes, or the
    only file of weights."""
    there = [file for file in ADDITIONS if file in files]
    there = there or [file for file in files if "/" not in file and Path(file).suffix in SUFFIXES]
    if not there or (len(there) > 1 and there[0] not in ADDITIONS):
        remedy = f"name a file of it, as in {name}/{there[0]}" if there else "give another, or a file on this machine"
        raise CheckpointError("holds no file that is surely a LoRA or a learned word", path=name, remedy=remedy)
    return [there[0], CONFIG]


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
