"""One page about an imaging study: what was seen, how much light and how many pixels it took, and the controls.

In: a folder with `records.jsonl`, `sweep.toml` and `runs/`. Out: `report.html`, self-contained, and its figures.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from isoflop.errors import DataError
from isoflop.imaging import figure as drawn
from isoflop.imaging.sweep import ImagingSweep, read_records
from isoflop.pages.html import (
    Markup,
    Pictures,
    bullets,
    decimal,
    duration,
    facts,
    folded,
    join,
    page,
    percent,
    picture,
    section,
    sentence,
    table,
    tag,
    tiles,
)
from isoflop.pages.plot import save, svg_text
from isoflop.recipe import load_recipe, write_text

NAMES = {"test": "digits", "unseen": "unseen letters"}
CAPTIONS = {
    "gallery": "All test objects are new to the network, and letters are a kind of object that it never saw. Numbers "
    "are the correlation with the truth.",
    "crops": "The same objects from less and less of the pattern; the bright square is what the network was given.",
    "crop_curve": "Solid: network. Dashed: ridge regression on the same pairs. Dotted: answering with the mean image.",
    "photon_curve": "At one photon per pixel most pixels saw none, one or two photons.",
    "histogram": "Brightness of the pixels behind the slab, all test objects.",
}
Record = Mapping[str, Any]


def write_report(folder: Path, *, title: str = "Seeing through a scattering slab") -> Path:
    """Write `folder`/report.html and `folder`/figures, and return the page.

    Raises: DataError when the folder holds no finished run.
    """
    records = read_records(folder / "records.jsonl")
    if not records:
        raise DataError(f"{folder} has no records.jsonl with finished runs; run isoflop imaging sweep or demo first")
    recipe = load_recipe(folder / "sweep.toml", ImagingSweep)
    by_crop, by_photons, rest = sort_records(records)
    galleries = {
        math.isqrt(r["camera_px"]): load_file(folder / "runs" / r["run_id"] / "gallery.safetensors") for r in by_crop
    }
    whole = galleries[max(galleries)]
    figures = {"gallery": drawn.gallery_figure(whole)}
    if len(by_crop) > 1:
        figures["crops"] = drawn.crops_figure(galleries, whole["test.frame"][0])
        figures["crop_curve"] = drawn.crop_curve(by_crop)
    if len(by_photons) > 1:
        figures["photon_curve"] = drawn.photon_curve(by_photons)
    frames = np.concatenate([whole[name] for name in ("test.frame", "unseen.frame") if name in whole])
    contrast = float((frames.std(axis=(1, 2)) / frames.mean(axis=(1, 2))).mean())
    figures["histogram"] = drawn.histogram_figure(frames, contrast)
    for name, figure in figures.items():
        for ending in ("svg", "png"):
            save(figure, folder / "figures" / f"{name}.{ending}")
    pictures = {name: svg_text(figure, name, CAPTIONS[name]) for name, figure in figures.items()}
    write_text(folder / "report.html", _page(title, recipe, (by_crop, by_photons, rest), pictures))
    return folder / "report.html"


def sort_records(records: Sequence[Record]) -> tuple[list[Record], list[Record], list[Record]]:
    """(by crop, by photons at the largest crop, all others), the first two with the same network and pairs."""
    first = records[0]
    plain = [r for r in records if not r["shuffled"] and r["network"] == first["network"]]
    plain = [r for r in plain if r["n_pairs"] == first["n_pairs"]]
    by_crop = [r for r in plain if r["photons"] == first["photons"]]
    by_photons = [r for r in plain if r["camera_px"] == first["camera_px"]]
    used = {r["run_id"] for r in (*by_crop, *by_photons)}
    return by_crop, by_photons, [r for r in records if r["run_id"] not in used]


def _page(title: str, recipe: ImagingSweep, sorted_records: tuple[list[Record], ...], pictures: Pictures) -> str:
    by_crop, by_photons, rest = sorted_records
    largest, smallest = by_crop[0], by_crop[-1]
    m, objects = recipe.medium, recipe.objects
    unseen = "unseen" in largest["scores"]
    lead = join(
        sentence(
            "Behind the slab there is no image, only speckle: every camera pixel is a random mixture of the whole "
            f"object. A network that was shown {largest['n_pairs']:,} pairs of speckle and object gives the object "
            "back.",
        ),
        tiles(
            [
                (
                    f"{r['camera_px']:,} pixels",
                    decimal(r["scores"]["test"]["pcc"], 3),
                    f"digits; letters {r['scores']['unseen']['pcc']:.3f}" if unseen else "digits",
                )
                for r in by_crop
            ]
        ),
        tag(
            "p",
            "Correlation of reconstruction and truth, mean over all test objects; 1 is perfect, and answering with "
            f"the mean image scores {largest['mean_image_pcc']['test']:.3f} on digits"
            + (f" and {largest['mean_image_pcc']['unseen']:.3f} on letters." if unseen else "."),
        ),
    )
    sections = [
        (
            "gallery",
            "Gallery",
            section("gallery", "Speckle, reconstruction, truth", picture(pictures, "gallery", CAPTIONS["gallery"])),
        ),
        (
            "crop",
            "Crop",
            section(
                "crop",
                "Any small part of the pattern holds the whole object",
                picture(pictures, "crops", CAPTIONS["crops"]),
                picture(pictures, "crop_curve", CAPTIONS["crop_curve"]),
                _scores(by_crop, "pixels", "camera_px"),
            ),
        ),
        (
            "light",
            "Light",
            section(
                "light",
                "Few photons are enough",
                picture(pictures, "photon_curve", CAPTIONS["photon_curve"]),
                _scores(by_photons, "photons per pixel", "photons"),
            )
            if "photon_curve" in pictures
            else Markup(""),
        ),
        ("controls", "Controls", section("controls", "What it can't do, and must not", *_controls(by_crop, rest))),
        (
            "speckle",
            "Speckle",
            section(
                "speckle",
                "The simulated slab",
                picture(pictures, "histogram", CAPTIONS["histogram"]),
                facts(
                    [
                        ("medium", m.kind),
                        ("object", f"{m.object_px} x {m.object_px} pixels, {m.light}"),
                        ("frame", f"{m.frame_px} x {m.frame_px} pixels"),
                        ("seed of the slab", str(m.seed)),
                        ("clipped pixels", percent(max(r["clipped_share"] for r in (*by_crop, *by_photons)), 3)),
                    ]
                ),
            ),
        ),
        (
            "origin",
            "Origin",
            section("origin", "Where the numbers come from", *_origin(recipe, by_crop, by_photons, rest)),
        ),
    ]
    footer = (
        f"isoflop {largest['commit'] or 'outside a checkout'}; torch {largest['torch']}, {largest['device']}, "
        f"{largest['precision']}; study {largest['study']}, {objects.source} objects; smallest crop "
        f"{smallest['camera_px']} pixels"
    )
    return page(title, lead, sections, footer)


def _scores(records: Sequence[Record], what: str, key: str) -> Markup:
    rows = []
    for r in sorted(records, key=lambda r: r[key]):
        for kind, s in r["scores"].items():
            name = "no noise" if key == "photons" and not r[key] else r[key]
            rows.append(
                [
                    name,
                    NAMES[kind],
                    decimal(s["pcc"]),
                    decimal(r["ridge"][kind]["pcc"]),
                    decimal(r["mean_image_pcc"][kind]),
                    decimal(s["ssim"], 3),
                    decimal(s["psnr_db"], 3),
                    decimal(s["jaccard"], 3),
                ]
            )
    head = [what, "objects", "network", "ridge", "mean image", "SSIM", "PSNR (dB)", "Jaccard"]
    return table(head, rows, text_columns=(1,))


def _controls(by_crop: Sequence[Record], rest: Sequence[Record]) -> list[Markup]:
    rows = []
    for r in by_crop:
        for kind, pcc in r["other_medium_pcc"].items():
            rows.append(
                [
                    f"another slab, {r['camera_px']:,} pixels",
                    NAMES[kind],
                    decimal(pcc),
                    decimal(r["mean_image_pcc"][kind]),
                ]
            )
    for r in rest:
        if r["shuffled"]:
            rows.extend(
                [
                    f"shuffled pairs, {r['camera_px']:,} pixels",
                    NAMES[kind],
                    decimal(s["pcc"]),
                    decimal(r["mean_image_pcc"][kind]),
                ]
                for kind, s in r["scores"].items()
            )
    return [
        sentence(
            "A network that had learned only what digits look like would pass neither test. Behind a slab it was not "
            "trained on, and after training on pairs that don't belong together, it must know no more than the mean "
            "image."
        ),
        table(["control", "objects", "correlation", "mean image"], rows, text_columns=(0, 1)),
    ]


def _origin(
    recipe: ImagingSweep, by_crop: Sequence[Record], by_photons: Sequence[Record], rest: Sequence[Record]
) -> list[Markup]:
    o = recipe.objects
    source = (
        "Glyphs drawn from the fonts of matplotlib with random distortions; test digits are in fonts that training "
        "never saw, capital letters are the unseen kind."
        if o.source == "glyphs"
        else f"Arrays of {Path(o.digits).name}" + (f" and {Path(o.letters).name} ({o.alphabet})." if o.letters else ".")
    )
    twins = [r for r in by_crop if r["twin_held_out"] is not None]
    learned = [
        f"{r['camera_px']:,} pixels: frames of pairs kept aside correlate {r['twin_held_out']:.4f} with its prediction"
        for r in twins
    ]
    runs = [*by_crop, *(r for r in by_photons if r not in by_crop), *rest]
    return [
        sentence(source),
        sentence(
            "Every network saw the measured pairs of its own training set and nothing else of the slab. Where a twin "
            "was used, the same pairs first taught a model of the slab, and the network was trained on its predictions "
            "for distorted copies of the training objects."
            if twins
            else "Every network saw the measured pairs of its own training set and nothing else of the slab."
        ),
        bullets(learned),
        folded(
            "All runs",
            table(
                ["run", "network", "pairs", "parameters", "samples", "training"],
                [
                    [r["run_id"], r["network"], r["n_pairs"], r["n_params"], r["n_samples"], duration(r["wall_s"])]
                    for r in runs
                ],
                text_columns=(0, 1),
            ),
        ),
    ]
