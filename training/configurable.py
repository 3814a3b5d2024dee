"""Small frozen objects that are chosen by name and written to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

from pathline.interpolants import unknown_name


class Configurable:
    """Base of a family of frozen dataclasses, each with a `name`.

    A direct sub-class founds a family: it gets its own table of members, filled as they are defined, and gives
    the word used for a member in messages (`kind`).
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    members: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if Configurable in cls.__bases__:
            cls.members = {}
        elif "name" in cls.__dict__:
            cls.members[cls.name] = cls

    @classmethod
    def names(cls) -> list[str]:
        """Names of the members of the family."""
        return list(cls.members)

    @classmethod
    def by_name(cls, name: str, **parameters: Any) -> Self:
        """Make a member from its name and parameters.

        Raises
        ------
        ValueError
            If the name or a parameter is unknown, or a value is not allowed.
        """
        if name not in cls.members:
            raise unknown_name(cls.kind, name, cls.members)
        member = cls.members[name]
        known = [field.name for field in fields(member)]
        for key in parameters:
            if key not in known:
                raise unknown_name(f"parameter of {cls.kind} {name!r}", key, known or ["(none)"])
        try:
            result: Self = member(**parameters)
        except TypeError as error:  # a text or a list where a number is compared or calculated with
            raise ValueError(f"{cls.kind} {name!r} cannot be made of {parameters}: {error}") from error
        return result

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a member from what `config` returned.

        Raises
        ------
        ValueError
            If ``"name"`` is missing or the rest does not fit.
        """
        if "name" not in config:
            raise ValueError(f"a {cls.kind} needs the key 'name', got the keys {sorted(config)}")
        parameters = {key: value for key, value in config.items() if key != "name"}
        return cls.by_name(config["name"], **parameters)

    def config(self) -> dict[str, Any]:
        """Name and parameters, for JSON."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]
        plain = {key: value.config() if isinstance(value, Configurable) else value for key, value in values}
        return {"name": self.name, **plain}
