"""`optimum-cli slim`: the group of verbs."""

from __future__ import annotations

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from optimum_slim.commands.bench import BenchCommand
from optimum_slim.commands.kernels import KernelsCommand
from optimum_slim.commands.list import ListCommand
from optimum_slim.commands.plan import PlanCommand
from optimum_slim.commands.push import PushCommand
from optimum_slim.commands.run import RunCommand
from optimum_slim.commands.verify import VerifyCommand


class SlimCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="slim", help="Make a transformer model small and fast on CPUs, and prove it.")
    SUBCOMMANDS = (
        CommandInfo(name="run", help="Slim a model by a recipe.", subcommand_class=RunCommand),
        CommandInfo(name="plan", help="Foretell what a recipe does to a model.", subcommand_class=PlanCommand),
        CommandInfo(name="bench", help="Compare the speed of models.", subcommand_class=BenchCommand),
        CommandInfo(name="verify", help="Measure a card's claims again.", subcommand_class=VerifyCommand),
        CommandInfo(name="push", help="Put a finished folder on the Hub.", subcommand_class=PushCommand),
        CommandInfo(name="kernels", help="Show what runs SlimLinear on this CPU.", subcommand_class=KernelsCommand),
        CommandInfo(name="list", help="Show techniques and shipped recipes.", subcommand_class=ListCommand),
    )
