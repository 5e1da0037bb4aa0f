"""XML as a notation of structured values.

An element is the text that it contains or, with attributes or children, an object of them: "@name" for an attribute, a
list for the children of one name, "#text" for text beside them.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tunewright.data.messages import Json
from tunewright.data.structure.values import MAX_DEPTH, Container, Notation, unfenced

_FENCE = re.compile(r"```(?:xml)?[ \t]*\n(.*?)\n?```", re.S)


def strict_xml(text: str) -> Container | None:
    """The root element of an XML text, as an object of one key. Texts that declare entities are not read."""
    if not text.lstrip().startswith("<") or "<!" in text.replace("<!--", "").replace("<![CDATA[", ""):
        return None
    try:
        root = ElementTree.fromstring(text.strip())
        return {root.tag: _value(root, 1)}
    except (ElementTree.ParseError, ValueError):
        return None


def lenient_xml(text: str, like: Container) -> Container | None:
    """The element in the first fence, or from the first tag to the last."""
    fence = _FENCE.search(text)
    inner = fence[1] if fence else text
    start, end = inner.find("<"), inner.rfind(">")
    return strict_xml(inner[start : end + 1]) if start >= 0 else None


def is_xml(text: str) -> bool:
    return text.lstrip().startswith(("<", "```")) and strict_xml(unfenced(text)) is not None


def is_record(text: str) -> bool:
    """Whether a text is an XML element whose texts are values: none is beside an element or an attribute."""
    value = strict_xml(unfenced(text)) if is_xml(text) else None
    return isinstance(value, dict) and all(isinstance(v, dict) and not _is_mixed(v) for v in value.values())


def _value(element: ElementTree.Element, depth: int) -> Json:
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    texts = [element.text, *(child.tail for child in element)]
    text = " ".join(t.strip() for t in texts if t and t.strip())
    value: dict[str, Json] = {f"@{name}": v for name, v in element.attrib.items()}
    children: dict[str, list[Json]] = {}
    for child in element:
        children.setdefault(child.tag, []).append(_value(child, depth + 1))
    value |= children
    if not value:
        return text
    return {**value, "#text": text} if text else value


def _is_mixed(value: Json) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (isinstance(value, dict) and "#text" in value) or any(map(_is_mixed, inner))


XML = Notation("XML", strict_xml, lenient_xml)
