"""The page that shows every registered method, generated from the registry and from measurements."""

from .measurements import Entry, energy_distance, measure
from .page import anchor, picture, write_zoo, zoo_page

__all__ = ["Entry", "anchor", "energy_distance", "measure", "picture", "write_zoo", "zoo_page"]
