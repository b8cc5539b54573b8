"""The places that channels are tested on."""

from tests.support.places import directory, place, room

__all__ = ["directory", "place", "room"]
