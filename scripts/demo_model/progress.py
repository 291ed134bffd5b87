"""What training tells: lines as it goes, and a file and a picture of them afterwards."""

import json
from pathlib import Path
from typing import Any


class Log:
    """Kept in `log.json`, which a later piece of the training goes on with."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "log.json"
        kept: dict[str, list[dict[str, Any]]] = {"steps": [], "measured": []}
        self.kept = json.loads(self.file.read_text()) if self.file.exists() else kept

    def add(self, **values: Any) -> None:
        self.kept["steps"].append(values)
        print(" ".join(f"{name} {value}" for name, value in values.items()), flush=True)

    def measured(self, **values: Any) -> None:
        self.kept["measured"].append(values)
        print("measured:", json.dumps(values), flush=True)
        self.save()

    def save(self) -> None:
        self.file.write_text(json.dumps(self.kept, indent=1) + "\n")


def plot(log: Path, picture: Path) -> None:
    """The losses over the pictures seen, one stage after the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = json.loads(log.read_text())["steps"]
    figure, axes = pyplot.subplots(figsize=(9, 5))
    before = 0
    for stage in dict.fromkeys(step["stage"] for step in steps):
        some = [step for step in steps if step["stage"] == stage]
        seen = [(before + step["seen"]) / 1e6 for step in some]
        before += some[-1]["seen"]
        for name in ("answers", "kinds", "letters", "kept"):
            if name in some[0]:
                axes.plot(seen, [step[name] for step in some], label=f"{name} ({stage})")
    axes.set(xlabel="pictures seen, in millions", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120, bbox_inches="tight")
