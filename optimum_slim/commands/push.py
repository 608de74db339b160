"""`optimum-cli slim push`: put a finished folder on the Hugging Face Hub."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from optimum_slim.commands.verb import Verb


class PushCommand(Verb):
    EXAMPLES = """examples:
  optimum-cli slim push my-classifier-slim me/my-classifier-slim
  optimum-cli slim push my-classifier-slim me/my-classifier-slim --private
"""

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="a folder that `slim run` wrote")
        parser.add_argument("repo_id", help="the repository, e.g. me/my-classifier-slim; made if it is not there")
        parser.add_argument("--private", action="store_true", help="make a new repository private")

    def work(self) -> None:
        from huggingface_hub import HfApi

        from optimum_slim.errors import OutputError

        folder, repo_id = self.args.folder, self.args.repo_id
        missing = [name for name in ("config.json", "model.onnx", "slim_report.json") if not (folder / name).is_file()]
        if missing:
            raise OutputError(f"{folder} is no finished output of `slim run`: {', '.join(missing)} is not there")
        hub = HfApi()
        try:
            hub.create_repo(repo_id, private=self.args.private or None, exist_ok=True)
            # ORTModel.push_to_hub can push nothing, and ModelCard.push_to_hub ignores HF_ENDPOINT.
            hub.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="Add slim model")
        except Exception as error:
            raise OutputError(f"the Hub did not take {repo_id}: {error}") from error
        print(f"{folder} is at {hub.endpoint}/{repo_id}")
