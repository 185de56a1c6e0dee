"""Small real models as folders and files, written by diffusers and by us."""

from pathlib import Path

import pytest
import torch
from small_models import small_pipeline
from transformers import CLIPTokenizer

from safelight.checkpoint.load import load_parts
from safelight.checkpoint.save import save_single_file
from safelight.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def clip_tokenizer(tmp_path_factory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.clip().save(folder)
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def sd1(clip_tokenizer, tmp_path_factory) -> Path:
    """A small SD 1 as a folder, written by diffusers."""
    folder = tmp_path_factory.mktemp("models") / "sd1"
    small_pipeline(clip_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sd2(clip_tokenizer, tmp_path_factory) -> Path:
    """A small SD 2 (v-prediction) as a folder, written by diffusers."""
    folder = tmp_path_factory.mktemp("models") / "sd2"
    small_pipeline(clip_tokenizer, sd2=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sd1_file(sd1, tmp_path_factory) -> Path:
    """The small SD 1 as a single file."""
    path = tmp_path_factory.mktemp("single") / "sd1.safetensors"
    save_single_file(load_parts(sd1), path)
    return path


@pytest.fixture(scope="session")
def sd1_tensors(sd1_file) -> dict[str, torch.Tensor]:
    """The single file's tensors, without our metadata: what a file from elsewhere holds."""
    from safetensors.torch import load_file

    return load_file(sd1_file)
