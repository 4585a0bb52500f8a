"""What the report of a step says, line by line."""

from typing import Any

from mingle.cli.console import settings_text, visible

ENERGY_WORDS = {
    "kept": "kept",
    "projection": "dropped by projection",
    "rank": "dropped by rank",
    "not_merged": "in parameters that are not merged",
}


def warning_lines(report: dict[str, Any]) -> list[str]:
    """The warning about a step's seeds, if there is one."""
    found = report.get("seed_check", {}).get("warning")
    return [] if found is None else [f"warning     {visible(found)}"]


def described(report: dict[str, Any]) -> list[str]:
    """Energy, experts, gates, adaptation, seeds and settings of a step, as far as its report has them."""
    lines: list[str] = []
    if "energy" in report:
        energy = report["energy"]
        shares = (f"{energy[part]:.1%} {words}" for part, words in ENERGY_WORDS.items())
        lines.append(f"energy      of ‖θt − θ0‖²: {', '.join(shares)}")
    if "budget" in report:
        lines.append(budget_line(report["budget"]))
    if "merging" in report:
        lines.append(_merging_line(report["merging"]))
    if report.get("energy", {}).get("overlap"):
        lines.append(_overlap_line(report["energy"]["overlap"]))
    if "router" in report:
        gates = sorted(report["router"]["gates_on_seeds"].items(), key=lambda gate: -gate[1])
        lines.append("router      gates on its seeds: " + ", ".join(f"{t} {gate:.0%}" for t, gate in gates))
    if report.get("losses"):
        losses = report["losses"]
        lines.append(f"adaptation  {len(losses)} steps, loss {losses[0]:.4f} → {losses[-1]:.4f}")
    if "seeds" in report:
        seeds = report["seeds"]
        source = visible(seeds["source"])
        lines.append(f"seeds       {seeds['used']} of {seeds['pool']}, {seeds['selection']}, from {source}")
    if "settings" in report:
        lines.append(settings_text(report["settings"]))
    return lines


def _overlap_line(overlap: dict[str, Any]) -> str:
    """The three earlier tasks whose experts read the most of what the new ones read."""
    most = sorted(overlap.items(), key=lambda entry: -entry[1]["shared"])[:3]
    named = (f"{task} {part['shared']:.0%} (chance {part['chance']:.0%})" for task, part in most)
    return f"overlap     of what its experts read, with experts of {', '.join(named)}"


def budget_line(budget: dict[str, Any]) -> str:
    """Ranks in use by task, a mean over the Linears, and the energy that the step took from each."""
    parts = {
        "ranks per Linear": (f"{task} {n / budget['linears']:.1f}" for task, n in budget["ranks"].items()),
        "of ‖θi − θ0‖² given up": (f"{task} {share:.1%}" for task, share in budget["lost"].items() if share),
        "Linears that use another's": (f"{task} {n}" for task, n in budget["merged"].items() if n),
    }
    found = ((words, ", ".join(values)) for words, values in parts.items())
    return "budget      " + "; ".join(f"{words}: {values}" for words, values in found if values)


def _merging_line(merging: dict[str, Any]) -> str:
    """Where a task's experts joined earlier ones, and how many are in use since."""
    joined = f"{len(merging['joined'])} of {merging['linears']} experts joined an earlier one"
    least = "" if merging["threshold"] is None else f" (affinity of {merging['threshold']:.2f} or more)"
    return f"merging     {joined}{least}; {merging['experts']} in use"
