"""lm-evaluation-harness's own command, with our model among its models. Needs the extra `lm-eval`.

    python -m inference.lm_eval_command run --model tandem --model_args pretrained=DIRECTORY \\
        --include_path TASKS --tasks NAME

All else is the harness's, its help included. `tandem checkpoint lm-eval` is the shorter way to the tasks.
"""

# mypy: disable-error-code="no-untyped-call"
# The harness is typed in part.

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model

from inference.lm_eval_model import TandemLM


def main() -> None:
    """Register the model under its name, then do what the command line says."""
    register_model("tandem")(TandemLM)
    cli_evaluate()


if __name__ == "__main__":
    main()
