"""The JavaScript that draws the charts: Vega, Vega-Lite and vega-embed, as the package vl-convert-python holds them.

It takes some seconds to put together, so it is kept in the store.
"""

from pathlib import Path

from pipeline.artifacts import manifest, store

PACKAGES = ("altair", "vl-convert-python")


def bundle() -> str:
    """The script, which defines ``vegaEmbed``."""
    place = store.kept(
        "javascript",
        settings={},
        outputs={"bundle": "vega.js"},
        code=("pipeline.report.page.javascript",),
        packages=PACKAGES,
        build=lambda places, _: _write(places["bundle"]),
    )
    return place["bundle"].read_text()


def versions() -> dict[str, str | None]:
    """Of the packages that the charts were made with."""
    return manifest.versions(*PACKAGES)


def _write(place: Path) -> None:
    import altair
    import vl_convert

    major, minor, *_ = altair.SCHEMA_VERSION.removeprefix("v").split(".")
    place.write_text(vl_convert.javascript_bundle(vl_version=f"{major}.{minor}"))
