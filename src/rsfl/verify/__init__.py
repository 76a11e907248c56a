"""Certificates of this and of other programs, checked anew: every number is derived a second time,
in ball arithmetic that shares no code with the bounds it checks."""

__all__: list[str] = []
