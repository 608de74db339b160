"""`optimum-cli slim ...`: one file per verb. Nothing heavy is imported before a verb runs."""
