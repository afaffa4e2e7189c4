"""Read every byte of a feature set and say what is wrong with it.

    python scripts/verify_shards.py input=runs/features/images

prints one line per problem and ends with exit status 1, or prints one line that all is well:
digests, counts, stored moments, and rows that no direction can be read from.
"""

from pathlib import Path

from omegaconf import DictConfig

from revision.config import entry


def run(cfg: DictConfig) -> None:
    """Verify `cfg.input`; raises ValueError when there is any problem."""
    from revision.shards import read_header, verify

    directory = Path(cfg.input)
    problems = verify(directory)
    for problem in problems:
        print(problem)
    if problems:
        raise ValueError(f"{directory}: {len(problems)} problems; see the lines above")
    header = read_header(directory)
    print(
        f"{directory}: fine; {header.num_rows} {header.kind} rows of width {header.dim} in "
        f"{len(header.shards)} shards, {header.num_rejected} records in quarantine"
    )


main = entry(run, "verify_shards")

if __name__ == "__main__":
    main()
