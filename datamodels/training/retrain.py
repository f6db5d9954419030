"""Retrain what a certificate tells of, with NumPy and PyTorch alone, and judge it again: python retrain.py data.npz

To lie beside certificate.json. data.npz has x_train (N, H, W, C) or (N, d), y_train, x_test and y_test as the certificate's
networks see them, which their digests tell. Networks are trained one after another by the certificate's recipe, in float32, on
S and without R. Their random numbers are PyTorch's own: these are not the certificate's networks, and what must come out again
is the verdict. Exit code 0 where it does, 1 where it does not or networks
are too few to tell, 2 where the data are others.
"""  # noqa: D415

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Sequential):
    """Layers, whose input is added to what they give."""

    def forward(self, x: Any) -> Any:
        """The sum."""
        return x + nn.Sequential.forward(self, x)  # type: ignore[no-untyped-call]


def conv(c_in: int, c_out: int, kernel: int, stride: int, padding: int) -> nn.Module:
    """A convolution with batch normalisation and ReLU."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


def network(recipe: Any, shape: Any, classes: int) -> nn.Module:
    """The network, with PyTorch's own initialisation; a linear one begins at 0."""
    if recipe.get("network") == "linear":
        linear = nn.Linear(math.prod(shape), classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.Flatten(), linear)
    w = recipe["width"]
    first = [conv(shape[0], w, 3, 1, 1), conv(w, 2 * w, 5, 2, 2)]
    two = [Residual(conv(c, c, 3, 1, 1), conv(c, c, 3, 1, 1)) for c in (2 * w, 4 * w)]
    last = [conv(4 * w, 2 * w, 3, 1, recipe["last_padding"]), nn.AdaptiveMaxPool2d(1), nn.Flatten()]
    return nn.Sequential(
        *first, two[0], conv(2 * w, 4 * w, 3, 1, 1), nn.MaxPool2d(2), two[1], *last, nn.Linear(2 * w, classes, bias=False)
    )


def augmented(x: Any, recipe: Any) -> Any:
    """A batch mirrored, shifted within a margin of 0, and with a square cut out, each image at random."""
    if x.ndim < 4:
        return x
    shift, side, (height, width), found = recipe["max_shift"], recipe["cutout"], x.shape[2:], x.clone()
    for k, image in enumerate(x):
        dy, dx = torch.randint(0, 2 * shift + 1, (2,)).tolist()
        top, left = (int(torch.randint(0, size - side + 1, ())) for size in (height, width))
        mirrored = image.flip(2) if recipe["flip"] and torch.rand(()) < 0.5 else image
        found[k] = F.pad(mirrored, (shift,) * 4)[:, dy : dy + height, dx : dx + width]
        found[k, :, top : top + side, left : left + side] = 0
    return found


def trained(x: Any, y: Any, seen: Any, recipe: Any, classes: int) -> nn.Module:
    """One network on the images that it sees, bool (N,): SGD, its rate up to the peak and down to 0 in straight lines.

    A linear network goes over all of S, and learns of each batch the images that it sees.
    """
    model, linear = network(recipe, x.shape[1:], classes).to(x.device), recipe.get("network") == "linear"
    rows = torch.arange(len(x)) if linear else torch.nonzero(seen)[:, 0]
    batch = min(len(x), max(1, round(recipe["batch_size"] * len(x) / int(seen.sum())))) if linear else recipe["batch_size"]
    steps = max(1, recipe["epochs"] * len(rows) // batch)
    order = torch.cat([rows[torch.randperm(len(rows))] for _ in range(-(-steps * batch // len(rows)))])
    own = {name: recipe[name] for name in ("momentum", "weight_decay", "nesterov")}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.0, **own)
    peak = steps * recipe["peak_epoch"] / recipe["epochs"]
    for step in range(steps):
        now = order[step * batch : (step + 1) * batch]
        rise = (step + 1) / peak if peak else math.inf
        optimiser.param_groups[0]["lr"] = recipe["peak_lr"] * max(0.0, min(rise, (steps - step) / (steps + 1 - peak)))
        logits = model(augmented(x[now], recipe)) * (1.0 if linear else 0.2)
        losses = F.cross_entropy(logits, y[now], reduction="none", label_smoothing=recipe["label_smoothing"])
        known = seen[now].to(losses)
        optimiser.zero_grad()
        ((losses * known).sum() / known.sum().clamp(min=1)).backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def margin(model: nn.Module, x: Any, y: Any, recipe: Any) -> float:
    """The right class's logit less the largest other one, the mean over some images; of an image and its mirror image."""
    views = [x, x.flip(3)] if recipe["flip"] and x.ndim == 4 else [x]
    logits = torch.stack([model(view) for view in views]).mean(0) * (1.0 if recipe.get("network") == "linear" else 0.2)
    right = F.one_hot(y, logits.shape[1]).bool()
    return float((logits[right] - logits.masked_fill(right, -math.inf).amax(1)).mean())


def interval(margins: Any) -> tuple[float, float, float]:
    """Mean, and its 95 % interval by Student's t. The quantile: t = √ν tan θ has the density cos^(ν-1) θ, up to a factor."""
    values = np.array(margins)[np.isfinite(margins)]
    nu, low, high = len(values) - 1, 0.0, math.pi / 2
    factor = math.exp(math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)) / math.sqrt(math.pi)
    for _ in range(50):
        angle = np.linspace(0, (low + high) / 2, 4001)
        height = np.cos(angle) ** (nu - 1)
        share = factor * (height[1:] + height[:-1]).sum() / 2 * angle[1]
        low, high = (angle[-1], high) if share < 0.475 else (low, angle[-1])
    half = math.sqrt(nu) * math.tan(high) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def digest(images: Any, labels: Any) -> str:
    """SHA-256 of type and shape, of the images' bytes, and of the labels as int64."""
    parts = (f"{images.dtype} {images.shape}\n".encode(), images.tobytes(), labels.astype("<i8").tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def normalised(data: Any, device: str) -> tuple[Any, ...]:
    """Images of both sides by mean and spread of each channel over S, channels first, and their labels."""
    axes = tuple(range(data["x_train"].ndim - 1))
    whole = data["x_train"].astype(np.float64)
    spread = np.where(np.ptp(whole, axes) > 0, whole.std(axes), 1.0)
    images = (torch.from_numpy((data[f"x_{side}"] - whole.mean(axes)) / spread).float() for side in ("train", "test"))
    x, x_test = (each.movedim(-1, 1).contiguous().to(device) for each in images)
    return x, x_test, *(torch.from_numpy(data[f"y_{side}"]).long().to(device) for side in ("train", "test"))


def main() -> int:
    """Train, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", type=int, help="on S, and without R (default: as many as the certificate has of either)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    told = json.loads(Path(__file__).with_name("certificate.json").read_text(encoding="utf-8"))
    data, recipe = dict(np.load(args.data, allow_pickle=False)), told["recipe"]["training"]
    for side, name in (("train", "train_digest"), ("test", "targets_digest")):
        if digest(data[f"x_{side}"], data[f"y_{side}"]) != told[name]:
            print(f"error: x_{side}, y_{side} of {args.data} are not what the certificate tells of", file=sys.stderr)
            return 2
    x, x_test, y, y_test = normalised(data, args.device)
    removed, targets = ([image["index"] for image in told[name]] for name in ("images", "targets"))
    labels, without = y.clone(), torch.ones(len(x), dtype=torch.bool)
    if told["relabelled"] is None:
        without[removed] = False
    else:
        labels[removed] = told["relabelled"]
    number = max(2, args.networks or max(len(told[kind]["networks"]) for kind in ("before", "after")))
    verdicts = []
    after = "without R" if told["relabelled"] is None else "R relabelled"
    for name, own, seen in (("S", y, torch.ones_like(without)), (after, labels, without)):
        models = (trained(x, own, seen, recipe, told["classes"]) for _ in range(number))
        margins = [margin(model, x_test[targets], y_test[targets], recipe) for model in models]
        mean, low, high = interval(margins)
        verdicts.append("flipped" if high <= 0 else "held" if low > 0 else "undecided")
        print(f"{name}: {' '.join(f'{value:.3f}' for value in margins)}")
        print(f"{name}: mean margin {mean:.3f}, 95 % interval {low:.3f} to {high:.3f}: {verdicts[-1]}", flush=True)
    wanted = ["held", "flipped"] if told["claim"] == "flipped" else ["flipped", "held"]
    certified = f"certified as {told['claim']}"
    if verdicts == wanted:
        print(f"confirmed: {certified}")
        return 0
    if all(found in (one, "undecided") for found, one in zip(verdicts, wanted, strict=True)):
        print(f"undecided: {certified}; {number} networks are too few to tell, try --networks {4 * number}")
    else:
        print(f"not confirmed: {certified}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
