"""`optimum-cli slim kernels`: what this CPU runs SlimLinear with, and whether it computes right."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser

from optimum_slim.commands.verb import Verb


class KernelsCommand(Verb):
    EXAMPLES = """examples:
  optimum-cli slim kernels
  optimum-cli slim kernels --json

exit codes: 0 the self-test passed, 1 it failed, 2 the kernels are not built here
"""

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON")

    def work(self) -> None:
        from optimum_slim.deploy.machine import environment
        from optimum_slim.errors import ModelError
        from optimum_slim.kernels.library import isa, library_path, self_test, supported_isas

        library = library_path()
        if library is None:
            raise ModelError(
                "the kernels are not built here: SlimLinear runs as plain ONNX operators, slower. Reinstall "
                "optimum-slim where a C++ compiler is found"
            )
        machine, tested, supported = environment(), self_test(), supported_isas()
        told = {
            "cpu": machine["cpu"],
            "cpu_flags": machine["cpu_flags"],
            "library": str(library),
            "chosen": isa(),
            "supported": supported,
            "self_test": dict(tested),
        }
        if self.args.json:
            print(json.dumps(told, indent=2))
        else:
            print(f"cpu        {told['cpu']} ({', '.join(machine['cpu_flags'])})")  # type: ignore[arg-type]
            print(f"library    {told['library']}")
            print(f"chosen     {told['chosen']}, of {', '.join(supported)}")
            for name, passed in tested:
                print(f"self-test  {name}: {'passed' if passed else 'FAILED'}")
        if not all(passed for _, passed in tested):
            sys.exit(1)
