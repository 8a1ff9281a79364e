"""Reading YAML files that build on each other, and locating mistakes by file and line."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from latentsync.config.schema import Key, SchemaError, check_numbers
from latentsync.utils.errors import UserError

BASE_KEY = "base"
MAX_NODES = 100_000  # values of a file, aliases expanded


@dataclass(frozen=True)
class YamlFile:
    """The merged values, and their files: the given one, then its base, the base of the base, ..."""

    values: dict[str, Any]
    files: tuple[Path, ...]

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Turn a SchemaError within into a UserError that names the file and line of the key."""
        try:
            yield
        except SchemaError as error:
            raise UserError(f"{self._place(error.key)}: {error}") from error

    def _place(self, key: Key) -> str:
        for path in self.files:
            line = _line_of(path, key)
            if line is not None:
                return f"{path}, line {line}"
        return str(self.files[0])


def read_yaml(path: str | Path) -> YamlFile:
    """Read a YAML file of keys; `base: other.yaml` (relative to it) is read first and overridden key by key.

    Lists are replaced whole; `${...}` references are resolved over the merged values. Raises UserError.
    """
    files: list[Path] = []
    layers: list[DictConfig] = []
    following: Path | None = Path(path)
    while following is not None:
        if following.resolve() in [file.resolve() for file in files]:
            raise UserError(f"{files[-1]}: base leads back to {following}; a file cannot be its own base")
        layer = _read_layer(following)
        base = layer.pop(BASE_KEY, None)
        files.append(following)
        layers.append(layer)
        if not isinstance(base, str | None):
            raise UserError(f"{following}: base must be the path of a YAML file")
        following = None if base is None else following.parent / base
    try:
        values: Any = OmegaConf.to_container(OmegaConf.merge(*reversed(layers)), resolve=True)
        check_numbers(values)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {_unusable(error)}") from error
    return YamlFile(values, tuple(files))


def _read_layer(path: Path) -> DictConfig:
    if path.is_dir():
        raise UserError(f"{path}: is a directory; give a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
        _check_size(yaml.compose(text, Loader=yaml.SafeLoader), {})
        layer = OmegaConf.load(StringIO(text))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not a text file; give a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{line}: is not valid YAML ({getattr(error, 'problem', None) or _one_line(error)})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {_unusable(error)}") from error
    except (OSError, OmegaConfBaseException) as error:  # OmegaConf reports a lone scalar as OSError
        raise UserError(f"{path}: is not a config of keys and values ({_one_line(error)})") from error
    if not isinstance(layer, DictConfig):
        raise UserError(f"{path}: holds a list; a config is a group of keys")
    return layer


def _check_size(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Number of nodes below `node`, aliases counted as often as they are used.

    Raises:
        ValueError: there are more than `MAX_NODES`, or an alias contains itself.
    """
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    size = sizes.get(id(node))
    if size is None:
        sizes[id(node)] = MAX_NODES  # while it is being counted: an alias of itself
        inner = [item for pair in node.value for item in (pair if isinstance(pair, tuple) else (pair,))]
        size = sizes[id(node)] = 1 + sum(_check_size(item, sizes) for item in inner)
    if size > MAX_NODES:
        raise ValueError(f"has more than {MAX_NODES} values, counting those behind aliases")
    return size


def _line_of(path: Path, key: Key) -> int | None:
    """1-based line where `path` sets `key`; None when it does not."""
    node, line = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), None
    for name in key:
        if not isinstance(node, yaml.MappingNode):
            return line  # an entry of a list: the line of the list
        entries = [(start, value) for start, value in node.value if start.value == name.split("[")[0]]
        if not entries:
            return None
        line, node = entries[-1][0].start_mark.line + 1, entries[-1][1]
    return line


def _unusable(error: Exception) -> str:
    return "is nested too deeply for a config" if isinstance(error, RecursionError) else _one_line(error)


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
