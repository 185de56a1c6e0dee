"""What becomes of a prompt: the facts behind `safelight tokens`."""

from pathlib import Path
from typing import Any

from safelight.text.schedule import PromptPlan, plan_prompt
from safelight.text.table import passage_table, step_table
from safelight.text.tokenizer import Tokenizer


def read_prompt(text: str, steps: int, syntax: str, model: str | None) -> dict[str, Any]:
    """The tokens of a prompt at step 1, branch by branch, and what each step sees, as rows; and remarks."""
    tokenizer = Tokenizer.load(Path(model) / "tokenizer") if model else Tokenizer.clip()
    plan = plan_prompt(text, steps, syntax=syntax, extra_networks="ignore")  # type: ignore[arg-type]
    tokens = [
        {"branch": branch} | row._asdict()
        for branch, (_, passage) in enumerate(plan.at(1), 1)
        for row in passage_table(tokenizer, passage)
    ]
    return {"tokens": tokens, "steps": [row._asdict() for row in step_table(plan)], "remarks": remarks(plan)}


def remarks(plan: PromptPlan) -> list[str]:
    """What people may not have meant so."""
    found = [f"character {position + 1}: {note}" for position, note in plan.notes]
    return found + [f"{network} is read, but this version has no adapters" for network in plan.networks]
