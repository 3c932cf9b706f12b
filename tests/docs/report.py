"""How much of the documentation is run, and why the rest is not."""

from __future__ import annotations

from collections import defaultdict

from tests.docs import pages, running


def lines() -> list[str]:
    """Returns a line that sums up, and one per reason with the places that give it."""
    run, reasons = 0, defaultdict(list)
    for page in map(pages.read, pages.paths()):
        fences = [fence for fence in page.fences if fence.language in pages.RUN]
        run += sum(len(fence.commands) for fence in fences if fence.mark("not run") is None)
        for line, reason in running.not_run(page):
            reasons[reason].append(f"{page.name}:{line}")
    blocks = sum(map(len, reasons.values()))
    head = f"{run} commands of the documentation are run, {blocks} blocks are not:"
    return [head, *(f"  {reason}: {', '.join(places)}" for reason, places in sorted(reasons.items()))]
