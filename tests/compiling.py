"""What a test needs that compiles a library by hand."""

from pathlib import Path

from pygpt.backends.sources import digest


def digest_source(folder: Path) -> Path:
    """A C file in the folder, as CMakeLists.txt makes one: with it a library counts as built from this checkout."""
    path = folder / "digest.c"
    path.write_text(f'__attribute__((visibility("default"))) const char pygpt_digest[] = "{digest()}";\n')
    return path
