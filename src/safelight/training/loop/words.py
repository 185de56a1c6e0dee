"""What a new model reads with: a tokenizer and a text encoder of the data's own words, or another model's."""

from pathlib import Path
from typing import Any

import torch

from safelight.checkpoint.load import load_text_encoder
from safelight.checkpoint.writing import replacing_folder
from safelight.models.clip import TextConfig, TextEncoder
from safelight.text.tokenizer import Tokenizer
from safelight.training.data.batches import Data
from safelight.training.data.vocabulary import train_tokenizer
from safelight.training.loop.distributed import once
from safelight.training.loop.recipes import TOKENIZER, DiffusionRecipe

VOCABULARY_EPOCHS, VOCABULARY_CAPTIONS = 20, 100_000  # what a new vocabulary is trained on, at most


def new_text_encoder(recipe: DiffusionRecipe) -> bool:
    """Whether the recipe's text encoder begins with random weights."""
    return recipe.conditioning == "text" and recipe.init is None and recipe.text_encoder is None


def text_parts(recipe: DiffusionRecipe, data: Data[Any], run: Path) -> tuple[Tokenizer, TextEncoder]:
    """The tokenizer and text encoder of a model, or new ones with a vocabulary of the captions, which `run` keeps."""
    if recipe.text_encoder is not None:
        return frozen_text(recipe.text_encoder, torch.device("cpu"))
    tokenizer = vocabulary_of(recipe, data, run / TOKENIZER)
    config = TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=4 * recipe.text_width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=max(recipe.text_width // 64, 1),
        max_position_embeddings=tokenizer.max_length,
        projection_dim=recipe.text_width,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
    )
    return tokenizer, TextEncoder(config)


def frozen_text(name: str, device: torch.device) -> tuple[Tokenizer, TextEncoder]:
    """The tokenizer (CLIP's, where there is none) and the text encoder of a model's folder."""
    tokenizer = Path(name) / "tokenizer"
    network = load_text_encoder(name, device=device, dtype=torch.float32)
    return Tokenizer.load(tokenizer) if tokenizer.is_dir() else Tokenizer.clip(), network


def vocabulary_of(recipe: DiffusionRecipe, data: Data[Any], folder: Path) -> Tokenizer:
    """The run's own vocabulary: read from `folder`, or trained on the data's captions and written there."""

    def make() -> None:
        if not folder.is_dir():
            captions = data.captions(recipe.seed, min(len(data) * VOCABULARY_EPOCHS, VOCABULARY_CAPTIONS))
            with replacing_folder(folder, is_ours=lambda _: False) as temporary:
                train_tokenizer(captions, size=recipe.vocabulary_size, max_length=recipe.text_length).save(temporary)

    once(make)
    return Tokenizer.load(folder)
