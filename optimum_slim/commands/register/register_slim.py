from optimum_slim.commands.slim import SlimCommand

REGISTER_COMMANDS = [SlimCommand]
