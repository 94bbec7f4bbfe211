"""Files and overrides, one over the other, where some use published names and some ours.

Files in published names are merged with each other before they are translated, because a later one may hold half a
component. What a later file or an override says in our names has no place in them; it is merged after the translation.
"""

from __future__ import annotations

from collections.abc import Sequence

from cogvideox.config.report import Origin, Report
from cogvideox.config.translate import translate
from cogvideox.config.tree import Node, drop_missing, drop_replace_marks, merge


def translate_layers(trees: Sequence[Node], report: Report) -> tuple[Node, bool]:
    """Merge in order and translate. Later trees win; for one key in two names, ours wins.

    Returns: the tree in our names, and whether any tree used a published one.
    """
    root = Node({}, Origin("", None, ""))
    ours: list[Node] = []
    for tree in trees:
        translated = _copy(root)
        if translate(translated, Report()):  # structure only: whatever is wrong is said below
            tree, in_our_names = _split(tree, root, translated)
            ours += [] if in_our_names is None else [in_our_names]
        root = merge(root, tree)
    _drop_marks(root, report)
    published = translate(root, report)
    for tree in ours:
        root = merge(root, tree)
    if ours:
        _drop_marks(root, report)
        translate(root, report)  # a component in there may have a published target
    return root, published


def _split(later: Node, published: Node, translated: Node) -> tuple[Node, Node | None]:
    """What of `later` goes over the published names, and what names keys that only the translated tree has."""
    if not all(isinstance(node.value, dict) for node in (later, published, translated)):
        return later, None
    before: dict[str, Node] = {}
    after: dict[str, Node] = {}
    for key, child in later.value.items():
        theirs, ours = published.child(key), translated.child(key)
        if theirs is None and ours is not None:
            after[key] = child
        elif theirs is None or ours is None:
            before[key] = child
        else:
            before[key], rest = _split(child, theirs, ours)
            if rest is not None:
                after[key] = rest
    return Node(before, later.origin), Node(after, later.origin) if after else None


def _drop_marks(root: Node, report: Report) -> None:
    drop_missing(root, report)
    drop_replace_marks(root, report)


def _copy(node: Node) -> Node:
    """The same tree in other nodes."""
    if isinstance(node.value, dict):
        return Node({key: _copy(child) for key, child in node.value.items()}, node.origin)
    if isinstance(node.value, list):
        return Node([_copy(child) for child in node.value], node.origin)
    return Node(node.value, node.origin)
