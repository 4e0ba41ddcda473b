# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas of requests, checked and rewritten so that `xgrammar` enforces all they say.

The library passes over some keywords (`not`, `uniqueItems`, ...), over whatever stands beside `anyOf` or `$ref`, and
over required properties that are not declared. A reply could then break the schema it was promised to follow. Such
schemas are rewritten where another form says the same, and refused otherwise. A rewritten schema never allows more.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ascend_dsv4.errors import RequestError

_BY_TYPE: Final[Mapping[str, frozenset[str]]] = {
    "object": frozenset((
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
        "maxProperties", "unevaluatedProperties",
    )),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems", "unevaluatedItems")),
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "number": frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
}  # fmt: skip
_ALONE: Final = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")
"""Of these xgrammar reads one, and nothing beside it."""
_ENFORCED: Final = frozenset(("type", *_ALONE)).union(*_BY_TYPE.values())
_OVERLOOKED: Final = frozenset((
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "dependentRequired",
    "dependentSchemas", "dependencies", "additionalItems", "$dynamicRef", "$recursiveRef",
))  # fmt: skip
"""Keywords that constrain, and that xgrammar does not know. All others unknown to it only describe."""
_DEFINITIONS: Final = ("$defs", "definitions")
_SCHEMAS: Final = ("items", "additionalProperties", "propertyNames", "unevaluatedProperties", "unevaluatedItems")
_NAMED_SCHEMAS: Final = ("properties", "patternProperties", *_DEFINITIONS)
_LISTED_SCHEMAS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_PYTHON_TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "string": str, "integer": int, "number": (int, float), "null": type(None), "object": dict, "array": list,
}  # fmt: skip

_PIECES: Final = re.compile(r"\\.|\[(?:[^\]\\]|\\.)*\]|\.", re.DOTALL)
_CLASS: Final = re.compile(r"\[(?:[^\]\\]|\\.)*\]", re.DOTALL)
_ESCAPED_IN_JSON: Final = re.compile(r'["\x00-\x1f]|\\(?:[\\tnrfvb0c]|x[01]|x22|x5c|u\{|u00[01]|u0022|u005c)', re.IGNORECASE)
_ENDS_WITH_ANCHOR: Final = re.compile(r"(?<!\\)(?:\\\\)*\$\Z")
_PLAIN_NAME: Final = re.compile(r"[ !#-\[\]-~]*")
"""Names that are the same in JSON; xgrammar takes other declared ones for additional ones too."""
_UNREADABLE_NAME: Final = re.compile(r'["\\\s\x00-\x1f]')
"""Characters of a name that `deepseek_recipe` does not read back from a parameter's tag."""


def checked_schema(schema: Any, where: str) -> Any:
    """`schema` in the form that xgrammar enforces in full, without what only describes.

    where    the field of the request, for messages
    raises   RequestError for what it would overlook, and for nesting too deep to be checked
    """
    try:
        return _checked(schema, schema, where)
    except RecursionError as error:
        raise refusal(where, "a schema nested too deeply", "a flatter one", "every level is a rule of its own") from error


def checked_tool(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A tool as far as its calls depend on it; with `strict: false` only their form does, as the client wishes.

    raises   RequestError like `checked_schema`, and for parameters that a call cannot name
    """
    parameters = None if function.get("strict") is False else function.get("parameters")
    if parameters:
        parameters = checked_schema(parameters, where)
        _check_names(parameters, where)
    return {"type": "function", "function": {"name": function["name"], "parameters": parameters or None}}


def explicit_dots(pattern: str) -> str:
    """The expression with `.` as the class it stands for; for xgrammar it would match line ends too."""
    return _PIECES.sub(lambda found: r"[^\n\r\u2028\u2029]" if found[0] == "." else found[0], pattern)


def refusal(where: str, got: str, expected: str, because: str) -> RequestError:
    """The error for a request that cannot be enforced."""
    return RequestError(f"{where}: got {got}, expected {expected}: {because}. Change it, or ask in the prompt instead.")


def _checked(schema: Any, root: Any, where: str) -> Any:
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise refusal(where, f"a JSON {type(schema).__name__}", "an object, true or false", "that is what a schema is")
    if overlooked := sorted(key for key in _OVERLOOKED & schema.keys() if schema[key] is not False):
        raise refusal(where, f"`{overlooked[0]}`", "a schema without it", "xgrammar does not enforce it")
    result = {key: value for key, value in schema.items() if key in _ENFORCED or key in _DEFINITIONS}
    _settle_type(result, where)
    _check_parts(result, root, where)
    if "oneOf" in result:
        result["anyOf"] = _disjoint(result.pop("oneOf"), root, where)
    if "pattern" in result:
        result["pattern"] = _whole_pattern(_expect(result["pattern"], str, f"{where}.pattern"), f"{where}.pattern")
    if named := result.get("patternProperties"):
        result["patternProperties"] = {_whole_pattern(name, f"{where}.patternProperties"): named[name] for name in named}
    _declare_required(result, where)
    _settle_other_names(result, where)
    if "array" in _types(result) and not {"items", "prefixItems"} & result.keys():
        result["items"] = True
    return result


def _check_parts(schema: dict[str, Any], root: Any, where: str) -> None:
    """Put checked schemas in the place of those inside `schema`."""
    for key in schema.keys() & set(_SCHEMAS):
        schema[key] = _checked(schema[key], root, f"{where}.{key}")
    for key in schema.keys() & set(_NAMED_SCHEMAS):
        parts = _expect(schema[key], dict, f"{where}.{key}")
        schema[key] = {name: _checked(part, root, f"{where}.{key}.{name}") for name, part in parts.items()}
    for key in schema.keys() & set(_LISTED_SCHEMAS):
        parts = _expect(schema[key], list, f"{where}.{key}")
        schema[key] = [_checked(part, root, f"{where}.{key}[{i}]") for i, part in enumerate(parts)]


def _settle_type(schema: dict[str, Any], where: str) -> None:
    """Refuse what stands beside a keyword that is read alone; give a schema without type that of its keywords."""
    present = _ENFORCED & schema.keys()
    if key := next((key for key in _ALONE if key in schema), None):
        beside = present - {key}
        if beside == {"type"} and key in ("enum", "const"):
            values = _expect(schema["enum"], list, f"{where}.enum") if key == "enum" else [schema["const"]]
            types = _types(schema)
            schema.pop("const", None)
            schema["enum"] = [value for value in values if _has_type(value, types)]
            del schema["type"]
        elif beside == {"type"} and key != "$ref" and _all_have_type(schema[key], _types(schema)):
            del schema["type"]
        elif beside:
            raise refusal(where, f"`{min(beside)}` beside `{key}`", f"`{key}` alone", "xgrammar reads only one of them")
    elif "type" not in schema and present:
        families = [name for name, keywords in _BY_TYPE.items() if keywords & present]
        if len(families) > 1:
            raise refusal(where, "no `type`", f"one of {', '.join(families)}", "its keywords belong to different types")
        schema["type"] = families[0]


def _all_have_type(branches: Any, types: Sequence[str]) -> bool:
    return isinstance(branches, list) and all(
        isinstance(branch, dict) and branch.get("type") and set(_types(branch)) <= set(types) for branch in branches
    )


def _types(schema: Mapping[str, Any]) -> Sequence[str]:
    types = schema.get("type", ())
    return [types] if isinstance(types, str) else [name for name in types if isinstance(name, str)]


def _has_type(value: Any, types: Sequence[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    return any(isinstance(value, _PYTHON_TYPES.get(name, ())) for name in types)


def _declare_required(schema: dict[str, Any], where: str) -> None:
    """Declare properties that are only required: xgrammar would forget them."""
    properties = schema.get("properties", {})
    other = schema.get("additionalProperties", True)
    for name in _expect(schema.get("required", []), list, f"{where}.required"):
        if name not in properties:
            if other is False:
                raise refusal(where, f"`required` {name!r}", "names of `properties`", "what its value may be is not plain")
            schema["properties"] = properties = {**properties, name: other}


def _settle_other_names(schema: dict[str, Any], where: str) -> None:
    """Keep declared names out of the rules for other names; where xgrammar fails to, no other names are allowed."""
    if not schema.get("properties"):
        return
    for key in ("patternProperties", "propertyNames"):
        if key in schema:
            raise refusal(where, f"`{key}` beside `properties`", "one of them", "xgrammar applies either to a declared name")
    if not all(_PLAIN_NAME.fullmatch(name) for name in schema["properties"]):
        schema.pop("additionalProperties", None)
        schema.pop("unevaluatedProperties", None)


def _disjoint(branches: list[Any], root: Any, where: str) -> list[Any]:
    """The branches of `oneOf`, for `anyOf`, which means the same if no value follows two of them."""
    for one, other in itertools.combinations([_resolved(branch, root) for branch in branches], 2):
        if not _are_disjoint(one, other):
            raise refusal(
                f"{where}.oneOf", "branches that one value may follow together", "`anyOf`, or branches that differ in `type` "
                "or in the constant of a required property", "that exactly one of them is followed cannot be enforced",
            )  # fmt: skip
    return branches


def _are_disjoint(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    types, other_types = set(_types(one)), set(_types(other))
    if types and other_types:
        both = types & other_types or (types | other_types) >= {"integer", "number"}
        if not both:
            return True
    values, other_values = _constants(one), _constants(other)
    if values is not None and other_values is not None:
        return not values & other_values
    properties, other_properties = one.get("properties", {}), other.get("properties", {})
    return any(
        isinstance(properties.get(name), dict)
        and isinstance(other_properties.get(name), dict)
        and name in other.get("required", ())
        and _constants(properties[name]) is not None
        and _are_disjoint(properties[name], other_properties[name])
        for name in one.get("required", ())
    )


def _constants(schema: Mapping[str, Any]) -> set[str] | None:
    """The values of `const` or `enum` in a comparable form, None if the schema allows others."""
    if "const" in schema:
        return {_comparable(schema["const"])}
    values = schema.get("enum")
    return {_comparable(value) for value in values} if isinstance(values, list) else None


def _comparable(value: Any) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return json.dumps(float(value) if is_number and abs(value) < 1 << 53 else value, sort_keys=True)


def _resolved(schema: Any, root: Any) -> Mapping[str, Any]:
    """What a branch says, behind one reference; nothing if it cannot be found, so nothing is taken for granted."""
    if isinstance(schema, dict) and isinstance(path := schema.get("$ref"), str):
        schema = root
        for name in path.removeprefix("#").split("/")[1:]:
            schema = schema.get(name) if isinstance(schema, dict) else None
    return schema if isinstance(schema, dict) else {}


def _whole_pattern(pattern: str, where: str) -> str:
    """A pattern, which may match anywhere in a string, for xgrammar, which matches the string as a whole."""
    if _ESCAPED_IN_JSON.search(_CLASS.sub("", pattern)):
        raise refusal(
            where, repr(pattern), "no quotes, backslashes or control characters in it", "xgrammar does not escape them for JSON"
        )  # fmt: skip
    start = "" if pattern.startswith("^") else ".*"
    return explicit_dots(start + pattern + ("" if _ENDS_WITH_ANCHOR.search(pattern) else ".*"))


def _check_names(parameters: Any, where: str) -> None:
    """Refuse parameters whose name the tag of a call cannot carry, and names that are not known beforehand."""
    if not isinstance(parameters, dict):
        return
    for name in parameters.get("properties", {}):
        if _UNREADABLE_NAME.search(name):
            raise refusal(
                where, f"the name {name!r}", "no quotes, backslashes or blanks in it", "calls cannot be read back then"
            )
    for key in ("patternProperties", "propertyNames"):
        if key in parameters:
            raise refusal(where, f"`{key}`", "named `properties`", "names that calls cannot carry would be allowed")
    for branch in itertools.chain.from_iterable(parameters.get(key, ()) for key in ("anyOf", "allOf")):
        _check_names(branch, where)


def _expect(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise refusal(where, f"a JSON {type(value).__name__}", f"a {kind.__name__}", "JSON Schema defines it so")
    return value
