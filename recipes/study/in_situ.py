"""Training and clustering on a photonic tensor core against the same done digitally: every number of docs/numerics.md.

    python recipes/study/in_situ.py TASK ... --data shared/data/images --out runs/in_situ
    TASK: digits, rates (digits, rate kept), large (12,544 inputs), omniglot (folds), backward, clusters

Each task writes OUT/TASK.json after every run; what was interrupted goes on, and no run is made twice. With
`--processes N` every N-th run belongs to one process, which writes OUT/TASK.PART.json; all parts end in OUT/TASK.json.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from isoflop.in_situ.cluster import autoencoded, components, digital, kmeans, on_core
from isoflop.in_situ.images import Images, read_digits, read_omniglot
from isoflop.in_situ.scores import (
    adjusted_rand_index,
    matched_accuracy,
    normalised_mutual_information,
    paired_interval,
)
from isoflop.in_situ.train import Classify, TrainOptions, accuracy, moved, train_network
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule
from isoflop.recipe import write_json
from isoflop.run import commit, processor

PROTOTYPE = {"weight_scale": "tensor", "capacitor_f": 20e-12, "leak_s": float("inf"), "range_std": 4.0}
"""Settings of the prototype whose numbers optics.md A12 gives: 20 pF, no leak, one weight scale a layer, 4 std."""
CONVERTERS = ("input_bits", "weight_bits", "adc_bits")
SEEDS = (0, 1, 2)


def core(bits: int, backward: str = "ste", *, preset: str = "lin2024", **changes: Any) -> NumericsSection:
    """A preset with converters of so many bits."""
    fields = {**dict.fromkeys(CONVERTERS, bits), **changes}
    return NumericsSection((Rule("*", "photonic"),), photonic=PhotonicSection(preset, fields, backward))  # type: ignore[arg-type]


class Results:
    """Runs by name, in OUT/TASK.json and in the files that parts of the work have written beside it."""

    def __init__(self, out: Path, task: str, part: int = 0, n_parts: int = 1):
        self.task, self.part, self.n_parts, self.n_asked = task, part, n_parts, 0
        whole = out / f"{task}.json"
        self.path = whole if n_parts == 1 else out / f"{task}.{part}.json"
        self.rows: dict[str, Any] = {}
        for path in (whole, *sorted(out.glob(f"{task}.*.json"))):
            self.rows |= _read(path)
        self.own = self.rows if n_parts == 1 else _read(self.path)

    def run(self, name: str, make: Callable[[], Any]) -> None:
        """Make the run called `name` if it is not there and belongs to this part."""
        self.n_asked += 1
        if name in self.rows or (self.n_asked - 1) % self.n_parts != self.part:
            return
        began = time.perf_counter()
        found = make()
        self.own[name] = {"result": found, "wall_s": time.perf_counter() - began, "commit": commit()}
        write_json(self.path, self.own)
        print(f"{self.task} {name}: {json.dumps(found)} ({self.own[name]['wall_s']:.0f} s)", flush=True)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def digits(data: Path, results: Results) -> None:
    """784-100-100-10: trained digitally, moved to the core, trained on the core."""
    train, test = read_digits(data / "mnist/mnist-30k.npz")
    widths = (784, 100, 100, 10)
    for seed in SEEDS:
        options = TrainOptions(n_epochs=10, seed=seed)

        def both(options: TrainOptions = options) -> dict[str, float]:
            network, _ = train_network(Classify(train, test, options), widths, None)
            found = {"digital": accuracy(network, test)}
            for bits in (8, 6, 5, 4, 3):
                there = moved(network, core(bits, **PROTOTYPE))
                found[f"moved {bits}"] = accuracy(there, test)
                found[f"moved {bits}, scale by row"] = accuracy(
                    moved(network, core(bits, **{**PROTOTYPE, "weight_scale": "row"})), test
                )
            return found

        results.run(f"digital {seed}", both)
        for bits in (8, 6, 5, 4, 3):
            results.run(
                f"{bits} bits {seed}", lambda b=bits, o=options: trained(train, test, widths, core(b, **PROTOTYPE), o)
            )


def trained(
    train: Images, test: Images, widths: tuple[int, ...], section: NumericsSection | None, options: TrainOptions
) -> float:
    """Accuracy of a network trained in a number format and tested in it."""
    network, _ = train_network(Classify(train, test, options), widths, section)
    return accuracy(network, test)


def rates(data: Path, results: Results) -> None:
    """Digits with the learning rate kept, as in a plain Adam: what moved weights lose at few bits depends on it."""
    train, test = read_digits(data / "mnist/mnist-30k.npz")
    widths = (784, 100, 100, 10)
    for rate in (5e-4, 1e-3, 2e-3, 3e-3, 5e-3):
        for seed in SEEDS:
            options = TrainOptions(n_epochs=10, learning_rate=rate, constant=True, seed=seed)

            all_bits = (8, 6, 5, 4, 3) if rate == 5e-3 else (4, 3)

            def both(options: TrainOptions = options, all_bits: tuple[int, ...] = all_bits) -> dict[str, float]:
                network, _ = train_network(Classify(train, test, options), widths, None)
                weights = [p.detach() for p in network.parameters() if p.ndim == 2]
                ratios = [float(w.abs().max() / w.std()) for w in weights]
                there = {bits: accuracy(moved(network, core(bits, **PROTOTYPE)), test) for bits in all_bits}
                return {
                    "digital": accuracy(network, test),
                    **{f"moved {bits}": value for bits, value in there.items()},
                    "largest weight in deviations": statistics.fmean(ratios),
                }

            results.run(f"rate {rate:g} digital {seed}", both)
            for bits in all_bits:
                results.run(
                    f"rate {rate:g} {bits} bits {seed}",
                    lambda b=bits, o=options: trained(train, test, widths, core(b, **PROTOTYPE), o),
                )


def large(data: Path, results: Results) -> None:
    """12,544-64-10 on digits enlarged four times (no more information than 28x28)."""
    train, test = read_digits(data / "mnist/mnist-30k.npz")
    train, test = train.first(6000).enlarged(4), test.first(2000).enlarged(4)
    for seed in SEEDS:
        options = TrainOptions(n_epochs=4, seed=seed, learning_rate=1e-3)
        for name, section in (("digital", None), ("6 bits", core(6, **PROTOTYPE))):
            results.run(f"{name} {seed}", lambda s=section, o=options: trained(train, test, (12544, 64, 10), s, o))


def omniglot(data: Path, results: Results) -> None:
    """Alphabet of a character, 12,544-64-8, writers held out: 5 folds x 3 seeds, each digitally and at 6 bits."""
    images = read_omniglot(data / "omniglot/omniglot-112.npz")
    formats = {
        "digital": None,
        "6 bits": core(6, **PROTOTYPE),
        "6 bits, scale by row": core(6, **{**PROTOTYPE, "weight_scale": "row"}),
        "6 bits, best full scale": core(6, **{**PROTOTYPE, "range_std": 0.0}),
        "6 bits, lin2024 as it is": core(6),
        "6 bits, ideal optics": core(6, preset="ideal"),
        "8 bits": core(8, **PROTOTYPE),
    }
    runs = [(name, section, 1e-3) for name, section in formats.items()]
    runs += [(f"rate {rate:g} {name}", formats[name], rate) for rate in (5e-4, 2e-3) for name in ("digital", "6 bits")]
    for fold, (train, test) in enumerate(images.folds(5)):
        for seed in SEEDS:
            for name, section, rate in runs:
                options = TrainOptions(n_epochs=6, seed=seed, learning_rate=rate)
                results.run(
                    f"{name} {fold} {seed}",
                    lambda s=section, o=options, a=train, b=test: trained(a, b, (12544, 64, 8), s, o),
                )


def backward(data: Path, results: Results) -> None:
    """Ways of the backward pass, on the digits network at 8 bits."""
    train, test = read_digits(data / "mnist/mnist-30k.npz")
    for seed in SEEDS:
        options = TrainOptions(n_epochs=4, seed=seed)
        for mode in ("ste", "dx_core", "core", "dfa"):
            section = core(8, mode, **PROTOTYPE)
            results.run(f"{mode} {seed}", lambda s=section, o=options: trained(train, test, (784, 100, 100, 10), s, o))


def clusters(data: Path, results: Results) -> None:
    """Groups of the 10,000 test digits: k-means on pixels, on components, on codes of an autoencoder."""
    _, images = read_digits(data / "mnist/mnist-30k.npz")
    for seed in range(5):

        def pixels(multiply: Any, centred: bool = True, seed: int = seed) -> dict[str, float]:
            found, _ = kmeans(images.x, 10, seed=seed, multiply=multiply, centred=centred)
            return scores(found, images)

        results.run(f"k-means digital {seed}", lambda p=pixels: p(digital))
        for bits in (8, 6, 4):
            results.run(f"k-means {bits} bits {seed}", lambda p=pixels, b=bits, s=seed: p(on_core(core(b), s)))
        results.run(f"k-means 6 bits, not centred {seed}", lambda p=pixels, s=seed: p(on_core(core(6), s), False))

        def by_components(section: NumericsSection | None, seed: int = seed) -> dict[str, float]:
            multiply = digital if section is None else on_core(section, seed)
            w, mean = components(images.x, 16, seed=seed, multiply=multiply)
            codes = multiply(images.x - mean, w)
            return scores(kmeans(codes, 10, seed=seed, multiply=multiply)[0], images)

        def by_codes(section: NumericsSection | None, seed: int = seed) -> dict[str, float]:
            codes = autoencoded(images, section, TrainOptions(n_epochs=8, seed=seed))
            multiply = digital if section is None else on_core(section, seed)
            return scores(kmeans(codes, 10, seed=seed, multiply=multiply)[0], images)

        for name, make in (("components", by_components), ("autoencoder", by_codes)):
            results.run(f"{name} digital {seed}", lambda m=make: m(None))
            results.run(f"{name} 6 bits {seed}", lambda m=make: m(core(6)))


def scores(found: torch.Tensor, images: Images) -> dict[str, float]:
    """Accuracy with groups named in the best way, normalised mutual information, adjusted Rand index."""
    return {
        "accuracy": matched_accuracy(found, images.y),
        "mutual_information": normalised_mutual_information(found, images.y),
        "rand_index": adjusted_rand_index(found, images.y),
    }


def show(results: Results) -> None:
    """Means over seeds (and folds), and paired differences where a digital run of the same seed is there."""
    groups: dict[str, dict[str, Any]] = {}
    for name, row in results.rows.items():
        words = name.split(" ")
        numbers = [w for w in words[-2:] if w.isdigit()] if words[-2].isdigit() else [words[-1]]
        label = " ".join(words[: -len(numbers)])
        groups.setdefault(label, {})[" ".join(numbers)] = row["result"]
    for label, found in groups.items():
        values = [_single(value) for value in found.values()]
        line = f"{label:32s} n {len(values):2d}  mean {statistics.fmean(values):.4f}"
        base = groups[near] if (near := _digital_of(label, groups)) else {}
        pairs = [_single(value) - _single(base[key]) for key, value in found.items() if key in base]
        if base is not found and len(pairs) > 1:
            mean, low, high = paired_interval(pairs)
            line += f"  minus digital {mean:+.4f} (95% {low:+.4f} to {high:+.4f})"
        print(line)
        dicts = [value for value in found.values() if isinstance(value, dict)]
        for key in dicts[0] if dicts else ():
            if key not in ("digital", "accuracy"):
                print(f"    {key:28s} mean {statistics.fmean(value[key] for value in dicts):.4f}")


def _digital_of(label: str, labels: Iterable[str]) -> str | None:
    """The digital runs that a row is compared with: "k-means digital" for "k-means 6 bits", else "digital"."""
    return max((name for name in labels if _is_base(name, label)), key=len, default=None)


def _is_base(name: str, label: str) -> bool:
    return name.endswith("digital") and label.startswith(name.removesuffix("digital"))


def _single(value: Any) -> float:
    return value if not isinstance(value, dict) else value["digital" if "digital" in value else "accuracy"]


TASKS = {
    "digits": digits,
    "rates": rates,
    "large": large,
    "omniglot": omniglot,
    "backward": backward,
    "clusters": clusters,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS, metavar="TASK")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/images"))
    parser.add_argument("--out", type=Path, default=Path("runs/in_situ"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.processes > 1:
        in_parts(options.tasks, options.data, options.out, options.processes, options.threads)
    for task in options.tasks:
        results = Results(options.out, task)
        TASKS[task](options.data, results)
        write_json(results.path, results.rows)
        for path in options.out.glob(f"{task}.*.json"):
            path.unlink()
        print(f"# {task}, {processor()}, {options.threads} threads")
        show(results)


def in_parts(tasks: list[str], data: Path, out: Path, n_parts: int, threads: int) -> None:
    """All runs of all tasks, dealt out to processes."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=one_part, args=(tasks, data, out, part, n_parts, threads)) for part in range(n_parts)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a part of the work failed, see above; what it finished is kept")


def one_part(tasks: list[str], data: Path, out: Path, part: int, n_parts: int, threads: int) -> None:
    """The runs of one process; what it does not own it passes over."""
    torch.set_num_threads(threads)
    n_asked = 0
    for task in tasks:
        results = Results(out, task, (part - n_asked) % n_parts, n_parts)  # tasks follow each other in one deal
        TASKS[task](data, results)
        n_asked += results.n_asked


if __name__ == "__main__":
    main()
