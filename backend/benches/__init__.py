"""What `python -m backend bench` measures, one file per area.

Each file has `BENCHES`, a dictionary from a bench's name to a function that takes `Options` and returns its rows, most
often one row of the same name. A bench imports what it measures inside the function: the list of names costs nothing.
A new area is a new file and one more name in `AREAS`.
"""

from __future__ import annotations

import importlib

from backend.benches.measuring import Bench

AREAS = ("raster", "formats", "blender", "guidance", "diffusion", "persona", "portrait")


def all_benches() -> dict[str, Bench]:
    """Every bench by name, in the order of the areas.

    Raises:
        ValueError: If two areas use one name.
    """
    benches: dict[str, Bench] = {}
    for area in AREAS:
        for name, bench in importlib.import_module(f"backend.benches.{area}").BENCHES.items():
            if name in benches:
                raise ValueError(f"two benches are called {name}")
            benches[name] = bench
    return benches
