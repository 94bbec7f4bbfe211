"""From YAML text to plain values, for text that anybody may have written: it is measured before it is built.

Values are read by OmegaConf (so that `1e-8` is a number and duplicate keys are errors), places by PyYAML.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

MAX_BYTES = 2**20  # of a file; configurations have some thousands
MAX_DEPTH = 40  # of mappings and lists in each other; configurations have 8
MAX_VALUES = 20_000  # with every alias written out
MAX_LENGTH = 10_000  # characters of one value
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where PyYAML has it


class BadYaml(ValueError):
    """The text is no YAML that is read here; `line` counts from 1, None when it is not known."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


@lru_cache(maxsize=64)  # a start reads a file several times: its kind, its layers, what it includes
def parse_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """The mapping, interpolations as written, and PyYAML's nodes, which know their lines (None for no content). Both
    are shared by all who ask for the same text, and only read.

    Raises: BadYaml.
    """
    try:
        _measure(text)
        nodes = yaml.compose(text, Loader=_LOADER)
        if nodes is not None and not isinstance(nodes, yaml.MappingNode):
            raise BadYaml("must hold sections (args, model, data, deepspeed), not a list or a single value", 1)
        return OmegaConf.to_container(OmegaConf.create(text), resolve=False), nodes
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        reason = str(getattr(error, "problem", None) or error).strip().splitlines()[0]
        raise BadYaml(f"not valid YAML: {reason}", None if mark is None else mark.line + 1) from error
    except OmegaConfBaseException as error:
        raise BadYaml(f"not valid: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise BadYaml("not valid: an interpolation ${...} is nested too deeply") from None
    except BadYaml:
        raise
    except ValueError as error:  # of Python's own numbers, such as 0b_
        raise BadYaml(f"not valid: a value is no number, though it looks like one ({error})") from error


def _measure(text: str) -> None:
    """Read the events alone, which takes neither stack nor memory. Raises: BadYaml, yaml.YAMLError."""
    sizes: dict[str | None, int] = {}  # of what an anchor names
    open_nodes: list[list[Any]] = [[None, 0]]  # anchor, and values so far
    for event in yaml.parse(text, Loader=_LOADER):
        size = 1
        line = None if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise BadYaml(f"the alias *{event.anchor} stands inside of what it names", line)
            size = sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise BadYaml(f"the tag {event.tag!r} is not read here: write the plain value", line)
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([event.anchor, 1])
            if len(open_nodes) > MAX_DEPTH:
                raise BadYaml(f"nested more than {MAX_DEPTH} levels deep", line)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            sizes[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1
            if len(event.value) > MAX_LENGTH:
                raise BadYaml(f"a value of {len(event.value):,} characters; the limit is {MAX_LENGTH:,}", line)
        open_nodes[-1][1] += size
        if open_nodes[-1][1] > MAX_VALUES:
            raise BadYaml(f"more than {MAX_VALUES:,} values", line)
