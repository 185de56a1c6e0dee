"""What becomes of a prompt: the facts behind `safelight tokens`."""

from pathlib import Path
from typing import Any

from safelight.checkpoint.load import DEFAULT, SHIPPED
from safelight.errors import InputError
from safelight.text.schedule import PromptPlan, plan_prompt
from safelight.text.table import passage_table, step_table
from safelight.text.tokenizer import Tokenizer


def read_prompt(text: str, steps: int, syntax: str, model: str | None) -> dict[str, Any]:
    """The tokens of a prompt at step 1, branch by branch, and what each step sees, as rows; and remarks."""
    tokenizer = tokenizer_of(model)
    plan = plan_prompt(text, steps, syntax=syntax, extra_networks="ignore")  # type: ignore[arg-type]
    tokens = [
        {"branch": branch} | row._asdict()
        for branch, (_, passage) in enumerate(plan.at(1), 1)
        for row in passage_table(tokenizer, passage)
    ]
    return {"tokens": tokens, "steps": [row._asdict() for row in step_table(plan)], "remarks": remarks(plan)}


def tokenizer_of(model: str | None) -> Tokenizer:
    """The tokenizer of the model that ships, or of a model's folder; CLIP's for the others and for none.

    Raises InputError for a name that is no folder.
    """
    if model in (None, "random"):
        return Tokenizer.clip()
    folder = SHIPPED if model == DEFAULT else Path(str(model))
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", remedy="give a model's folder, or leave --model out")
    return Tokenizer.load(folder / "tokenizer") if (folder / "tokenizer").is_dir() else Tokenizer.clip()


def remarks(plan: PromptPlan) -> list[str]:
    """What people may not have meant so."""
    found = [f"character {position + 1}: {note}" for position, note in plan.notes]
    return found + [f"{network} stands for no file here: give one with --lora" for network in plan.networks]
