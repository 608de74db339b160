"""`optimum-cli slim verify`: measure a card's claims again."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser

from optimum_slim.commands.verb import Verb


class VerifyCommand(Verb):
    EXAMPLES = """examples:
  optimum-cli slim verify my-classifier-slim --model ./my-classifier --data ./my-texts
  optimum-cli slim verify me/my-classifier-slim

exit codes: 0 every checked claim holds, 1 a claim is false, 2 it could not be checked
"""

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        parser.add_argument("folder", help="a folder that `slim run` wrote, or its Hub id")
        parser.add_argument("--model", metavar="M", help="the original model, for speed and agreement")
        parser.add_argument("--data", metavar="D", help="the texts, for quality")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def work(self) -> None:
        from dataclasses import asdict

        from optimum_slim.claims import check_claims

        claims = check_claims(self.args.folder, self.args.model, self.args.data)
        if self.args.json:
            print(json.dumps([asdict(claim) for claim in claims], indent=2, default=str))
        else:
            words = {True: "holds", False: "FALSE", None: "not checked"}
            for claim in claims:
                told = claim.note or f"claimed {_short(claim.claimed)}, found {_short(claim.found)}"
                print(f"{words[claim.holds]:<12}{claim.what}: {told}")
        if any(claim.holds is False for claim in claims):
            sys.exit(1)


def _short(value: object) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 90 else f"{text[:87]}..."
