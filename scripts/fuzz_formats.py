"""Mutate splat files for minutes or hours: `python scripts/fuzz_formats.py --minutes 10 [--seed S] [--format NAME]`.

Needs the backend's environment. Prints how many files each reader read and refused; a file that a reader broke on is
saved with the command that makes it again. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.formats.fuzzing import KINDS, Broken, Mutation, Seed, outcome, seeds  # noqa: E402

MEMORY_BYTES = 3_000_000_000
"""Address space beyond what the process has at the start; it bounds what tracemalloc does not see."""


def main() -> int:
    """Run until the time is over or the one case is done.

    Returns:
        0 if every reader passed every case.
    """
    options = _parse()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = [seed for seed in seeds(Path(scratch)) if options.format in (None, seed.format)]
        if not corpus:
            sys.exit(f"error: there is no format {options.format!r}")
        _limit_memory()
        if options.case is not None:
            _, said = _run(corpus, Path(scratch), options, options.case)
            print(f"case {options.case}: {said}")
            return int(said == "broken")
        return _run_all(corpus, Path(scratch), options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument("--case", type=int, help="run this one case of the seed only")
    parser.add_argument("--format", help="only this row of the table of formats")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz", help="folder for files that broke a reader")
    return parser.parse_args()


def _limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():  # Linux
        import resource

        pages = int(statm.read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _run_all(corpus: list[Seed], scratch: Path, options: argparse.Namespace) -> int:
    end = time.monotonic() + 60 * options.minutes
    counts: Counter[tuple[str, str]] = Counter()
    case = 0
    while time.monotonic() < end:
        name, said = _run(corpus, scratch, options, case)
        counts[name, said] += 1
        case += 1
    for name in sorted({name for name, _ in counts}):
        print(f"{name:<16} " + ", ".join(f"{counts[name, said]} {said}" for said in ("read", "refused", "broken")))
    print(f"{case} cases of seed {options.seed} in {options.minutes:g} minutes")
    return int(any(said == "broken" for _, said in counts))


def _run(corpus: list[Seed], scratch: Path, options: argparse.Namespace, case: int) -> tuple[str, str]:
    """The case's format, and "read", "refused" or "broken"."""
    rng = random.Random(f"{options.seed}:{case}")
    seed = rng.choice(corpus)
    data = rng.choice(seed.ways)([_mutation(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 6)))])
    try:
        return seed.format, outcome(scratch, seed, data, strict=rng.random() < 0.5)
    except Broken as error:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"seed{options.seed}_case{case}{seed.suffix}"
        path.write_bytes(data)
        again = f"--seed {options.seed} --case {case}" + (f" --format '{options.format}'" if options.format else "")
        print(f"{seed.name}: the reader {error}; saved as {path}; again with {again}", flush=True)
        return seed.format, "broken"


def _mutation(rng: random.Random) -> Mutation:
    length = rng.choice((1, 1, 2, 4, 8, 16, rng.randint(1, 400)))
    return Mutation(rng.choice(KINDS), rng.random(), length, rng.getrandbits(32))


if __name__ == "__main__":
    sys.exit(main())
