"""The recipe: one frozen value that says everything about a run. Read strictly, with all mistakes in one message."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from optimum_slim.data.texts import Data
from optimum_slim.deploy.budget import Budget
from optimum_slim.deploy.choose import Deploy
from optimum_slim.errors import RecipeError
from optimum_slim.model.memory import Memory
from optimum_slim.techniques import name_of, technique_class, technique_names
from optimum_slim.techniques.technique import Technique
from optimum_slim.training.trained import Trained

TaskName = Literal[
    "auto", "text-classification", "token-classification", "fill-mask", "text-generation", "feature-extraction"
]


@dataclass(frozen=True)
class Recipe:
    """A way of slimming, for one model or for any."""

    slim: Literal[1] = 1  # schema version
    model: str | None = None  # folder, Hub id (org/name@revision) or demo; ./demo is a folder so called
    teacher: str | None = None  # folder or Hub id; default: the original model
    task: TaskName = "auto"  # auto: from the model's architecture
    data: Data = field(default_factory=Data)
    steps: tuple[Technique, ...] = ()  # techniques, in order
    deploy: Deploy = field(default_factory=Deploy)
    budget: Budget | None = None  # null: whatever the steps and the precision lead to, within max_quality_loss
    seed: int = 0  # of every draw: calibration texts, batches, new weights
    threads: int = 2  # of training, in each process, and of evaluation; the same number gives the same bytes
    memory: Memory = "auto"  # streamed: one block at a time, the rest on the disk; auto: where the machine has no room
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where to train and calibrate; figures are always the CPU's

    def mistakes(self) -> Iterator[str]:
        if self.threads < 1:
            yield f"threads must be at least 1, not {self.threads}"

    def complete(self) -> dict[str, Any]:
        """The recipe as YAML would hold it, every default written out."""
        return _plain(self)


def load_recipe(source: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Reads a recipe by path, or by name if it is one of the shipped ones.

    Args:
        source: `my.yaml`, or `encoder-fast`.
        overrides: YAML values by dotted key, e.g. {"steps.0.ratio": "0.5", "data.evaluation": "validation"}.

    Raises:
        RecipeError: with all mistakes.
    """
    path = find_recipe(source)
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _StrictLoader)  # noqa: S506  a SafeLoader that also refuses repeated keys
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise RecipeError([f"it is not YAML that can be read: {_on_one_line(error)}"], str(path)) from error
    if not isinstance(content, dict):
        raise RecipeError([f"it must be a mapping that starts with `slim: 1`, not {_shown(content)}"], str(path))
    mistakes: list[str] = []
    for key, value in (overrides or {}).items():
        _override(content, key, value, mistakes)
    return read_recipe(content, str(path), mistakes)


def read_recipe(content: Mapping[str, Any], where: str = "the recipe", mistakes: Sequence[str] = ()) -> Recipe:
    """A recipe from a mapping, e.g. of parsed YAML.

    Raises:
        RecipeError: with all mistakes, those given included.
    """
    found = list(mistakes)
    if "slim" not in content:
        found.append("slim: the schema version is missing; start with `slim: 1`")
    recipe = _read(Recipe, content, "", found)
    if found:
        raise RecipeError(found, where)
    return recipe


def recipe_folder() -> Path:
    """Where the shipped recipes are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def find_recipe(source: str) -> Path:
    path, shipped = Path(source), shipped_recipes()
    if path.is_file():
        return path
    if source in shipped:
        return shipped[source]
    raise RecipeError([f"there is no such file, and no shipped recipe of that name{_meant(source, shipped)}"], source)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader, but a key that stands twice is a mistake instead of silently the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for at, key in enumerate(keys):
            if key in keys[:at]:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _override(content: dict[str, Any], key: str, value: str, mistakes: list[str]) -> None:
    """Sets a dotted key in place. A number picks from a list, and goes through the name of a technique there."""
    *parents, last = key.split(".")
    place: Any = content
    for part in [*parents, last][: len(parents)]:
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            if isinstance(place[int(part)], str):
                place[int(part)] = {place[int(part)]: {}}
            step = place[int(part)]
            if not isinstance(step, dict) or len(step) != 1:
                mistakes.append(f"--set {key}: there is nothing at {part!r} to set a value in")
                return
            name = next(iter(step))
            if step[name] is None:
                step[name] = {}
            place = step[name]
        elif isinstance(place, dict) and part in place and isinstance(place[part], dict | list):
            place = place[part]
        elif isinstance(place, dict) and place.get(part) is None:
            place[part] = {}
            place = place[part]
        else:
            mistakes.append(f"--set {key}: there is nothing at {part!r} to set a value in")
            return
    if not isinstance(place, dict):
        mistakes.append(f"--set {key}: {last!r} is not a key there")
        return
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        mistakes.append(f"--set {key}: {_on_one_line(error)}")


def _read(kind: Any, value: Any, key: str, mistakes: list[str]) -> Any:
    """Turns plain YAML `value` into `kind`, an annotation; appends to `mistakes` where it does not fit."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Technique or kind is Trained:
        return _read_technique(kind, value, key, mistakes)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, key, mistakes)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, value, key, mistakes)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        options = ", ".join(map(str, arguments))
        mistakes.append(
            f"{key}: must be one of {options}; not {_shown(value)}{_meant(str(value), map(str, arguments))}"
        )
        return None
    if origin in (list, tuple):
        if not isinstance(value, list):
            mistakes.append(f"{key}: must be a list, not {_shown(value)}")
            return origin()
        return origin(_read(arguments[0], one, f"{key}.{i}", mistakes) for i, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            mistakes.append(f"{key}: must be a mapping, not {_shown(value)}")
            return {}
        of_key, of_value = arguments
        return {
            _read(of_key, one, f"{key} (its keys)", mistakes): _read(of_value, item, f"{key}.{one}", mistakes)
            for one, item in value.items()
        }
    return _read_scalar(kind, value, key, mistakes)


def _read_scalar(kind: Any, value: Any, key: str, mistakes: list[str]) -> Any:
    if kind is Any or (kind is type(None) and value is None):
        return value
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML 1.1 reads 2e-4 as text
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif type(value) is kind:
        return value
    names = {type(None): "null", int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
    mistakes.append(f"{key}: must be {names.get(kind, kind)}, not {_shown(value)}")
    return None


def _read_union(options: Sequence[Any], value: Any, key: str, mistakes: list[str]) -> Any:
    if value is None and type(None) in options:
        return None
    attempts = []
    for option in options:
        if option is not type(None):
            tried: list[str] = []
            result = _read(option, value, key, tried)
            if not tried:
                return result
            attempts.append(tried)
    mistakes += attempts[-1] if len(attempts) == 1 or isinstance(value, list | dict) else attempts[0]
    return None


def _read_dataclass(kind: Any, value: Any, key: str, mistakes: list[str]) -> Any:
    if not isinstance(value, dict):
        mistakes.append(f"{key}: must be a mapping of settings, not {_shown(value)}")
        return None
    hints = typing.get_type_hints(kind)
    fields = {one.name.rstrip("_"): one for one in dataclasses.fields(kind) if one.init}
    before, settings = len(mistakes), {}
    for name, item in value.items():
        at = f"{key}.{name}" if key else str(name)
        if name not in fields:
            mistakes.append(f"{at}: there is no such key{_meant(str(name), fields)}")
            continue
        settings[fields[name].name] = _read(hints[fields[name].name], item, at, mistakes)
    if len(mistakes) > before:
        return None
    made = kind(**settings)
    mistakes += [f"{key}.{mistake}" if key else mistake for mistake in made.mistakes()]
    return made


def _read_technique(kind: Any, value: Any, key: str, mistakes: list[str]) -> Any:
    """`prune.ffn: {ratio: 0.5}`, or just `prune.ffn`."""
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, dict) or len(value) != 1:
        mistakes.append(f"{key}: must be one technique with its settings, e.g. `prune.ffn: {{ratio: 0.25}}`")
        return None
    name, settings = next(iter(value.items()))
    if name not in technique_names():
        mistakes.append(f"{key}: there is no technique {name!r}{_meant(str(name), technique_names())}")
        return None
    found = technique_class(name)
    if not issubclass(found, kind):
        right = "stands among `steps`" if kind is Trained else "works while training: put it under `train: with:`"
        mistakes.append(f"{key}: {name} {right}")
        return None
    return _read_dataclass(found, settings or {}, f"{key}.{name}", mistakes)


def _plain(value: Any) -> Any:
    if isinstance(value, Technique | Trained):
        return {name_of(value): _plain_fields(value)}
    if dataclasses.is_dataclass(value):
        return _plain_fields(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _plain_fields(value: Any) -> dict[str, Any]:
    return {one.name.rstrip("_"): _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}


def _meant(name: str, options: Any) -> str:
    options = list(options)
    close = get_close_matches(name, options, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(options)}" if options else ""


_SHORT = reprlib.Repr()  # a few lines of YAML with aliases can stand for gigabytes
_SHORT.maxstring = _SHORT.maxother = 60


def _shown(value: Any) -> str:
    return _SHORT.repr(value)


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
