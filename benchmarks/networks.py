"""A training step of SegNet and Residual U-Net: before their layout was mended, now, and compiled.

    python benchmarks/bench.py networks

Before: the 1x1 shortcut led the residual sum, which left channels_last after the first unit, and
upsampling and unpooling were torch's own. The weights are the same.
"""

import torch
from torch import nn

import ours
import timing
from data import store_of
from loops import Setting, project
from thyroid_lib.models import resunet
from timing import figure, ratios, seconds_of, spread, take_turns


class FormerUnit(resunet.ResidualUnit):
    """The residual unit as it was: the shortcut is the first operand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        strided = x[:, :, :: self.stride, :: self.stride]
        return self.shortcut(strided) + self.residual(x)


def make_former(name: str, width: int, device: torch.device) -> nn.Module:
    """The network as it was before."""
    net = ours.make_model(name, width, device)
    for module in net.modules():
        if isinstance(module, resunet.ResidualUnit):
            module.__class__ = FormerUnit
        if isinstance(getattr(module, "unpool", None), nn.MaxUnpool2d):
            module.unpool = nn.MaxUnpool2d(2)
        if isinstance(module, resunet.ResUNet):
            module.upsample = nn.Upsample(scale_factor=2, mode="nearest")
    return net


class Former(Setting):
    """The setting of a training of the former network."""

    def make_model(self) -> nn.Module:
        return make_former(self.model, self.width, self.device)


def measure(args) -> dict:
    """Time steps of each variant in turns; a compiled one's first step is its compilation."""
    device, small = args.device, args.quick
    how = {"width": 4 if small else 16, "size": 64 if small else 128, "batch": 8 if small else 16}
    steps, repeats = (2, 2) if small else (12, 7)
    precision = ours.pick_precision(device)
    store, rows = store_of(args.frames, how["size"]), []
    for model in ("segnet", "resunet"):
        common = {
            "frames": args.frames, "store": store, "device": device, "precision": precision,
            "model": model, "epoch_steps": steps, **how,
        }  # fmt: skip
        runs = {"before": project(Former(**common)), "now": project(Setting(**common))}
        runs["compiled"] = project(Setting(**common), compile=True)
        first = {name: seconds_of(lambda r=run: r(steps)) for name, run in runs.items()}

        def rate(run) -> float:
            frames = steps * how["batch"]
            return frames / seconds_of(lambda: (run(steps), timing.wait(device)))

        rates = take_turns({n: lambda r=run: rate(r) for n, run in runs.items()}, repeats)
        compiling = first["compiled"] - steps * how["batch"] / timing.median(rates["compiled"])
        rows.append({"model": model, "rates": rates, "compiling": compiling})
    return {
        "rows": rows,
        "how": how | {"steps": steps, "repeats": repeats, "threads": torch.get_num_threads()},
        "precision": precision,
    }


def show(found: dict) -> str:
    """The table, in Markdown."""
    how, rows = found["how"], []
    for row in found["rows"]:
        rates = row["rates"]
        gains = (
            spread(ratios(rates[a], rates[b])) for a, b in (("now", "before"), ("compiled", "now"))
        )
        rows.append((row["model"], *map(spread, rates.values()), *gains, figure(row["compiling"])))
    columns = (
        "model",
        "before",
        "now",
        "compiled",
        "now / before",
        "compiled / now",
        "to compile, s",
    )
    return (
        f"Width {how['width']}, {how['size']}×{how['size']} px, batch {how['batch']}, "
        f"{found['precision']}, {how['threads']} threads; {how['steps']} steps a turn, "
        f"{how['repeats']} turns each. Frames a second:\n\n{timing.table(columns, rows)}"
    )


def goals(found: dict, on_gpu: bool):
    for row in found["rows"]:
        rates = row["rates"]
        yield (
            f"rate of {row['model']} over before",
            ">=",
            0.97,
            timing.median(ratios(rates["now"], rates["before"])),
        )
